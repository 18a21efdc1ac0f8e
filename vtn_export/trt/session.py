"""An engine as a session: loaded after every check, one lane a thread.

Needs an NVIDIA GPU. The parts that do not (checks, choice of profile, the lane's logic) are tested
without one; the calls are held against the real bindings' signatures (tests/trt/test_signatures.py).
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.errors import BackendError, EngineError, ShapeError, VtnError
from vtn_export.runtime.session import SessionBase
from vtn_export.spec import Array, Part, Precision
from vtn_export.trt import api, profile, sidecar
from vtn_export.trt.cuda import Cuda
from vtn_export.trt.gpu import Gpu, require_gpu
from vtn_export.trt.lane import Lane
from vtn_export.trt.library import find_library
from vtn_export.trt.plugin_form import load_library
from vtn_export.trt.sidecar import Sidecar
from vtn_export.trt.typed import tolerance


class TrtSession(SessionBase):
    """The newest engine of a part that fits this machine. Each calling thread has its own context and stream."""

    backend = "trt"

    def __init__(self, bundle: Bundle, part: Part) -> None:
        """Raises GpuError, EngineError (none there, stale, damaged), MissingDependencyError, PluginError."""
        gpu = require_gpu()
        self.record = find_engine(bundle, part, gpu)
        super().__init__(self.record.spec)
        self._errors: deque[str] = deque(maxlen=4)
        library = api.load(self._flavor())
        self._logger = library.logger(self._log)
        plugin = find_library(None, gpu.compute_capability, bundle) if self.record.plugin is not None else None
        if plugin is not None:
            load_library(library.trt.get_plugin_registry(), str(plugin))
        self._runtime: Any = library.trt.Runtime(self._logger)
        self._engine: Any = deserialize(self._runtime, bundle, self.record, self._errors)
        self._cuda, self._mapped = Cuda(), gpu.integrated
        self._local = threading.local()
        self._lanes: list[Lane] = []
        self._lock = threading.Lock()
        self.precision: Precision = self.record.precision
        # TF32 rounds a product's factors to fp16's mantissa and keeps float32's range
        typed: Precision = "fp16" if self.record.tf32 else self.precision
        same = typed == bundle.manifest.precision
        self.tolerance = bundle.graph(part).tolerance if same else tolerance(bundle, part, typed)

    def covers(self, inputs: Mapping[str, Array]) -> bool:
        """Whether a profile of the engine takes this shape."""
        try:
            profile.choose(self.spec, self.record.profiles, inputs)
        except ShapeError:
            return False
        return True

    def _flavor(self) -> api.Flavor:
        for flavor in api.FLAVORS:
            if flavor == self.record.flavor:
                return flavor
        raise EngineError(f"engine {self.record.name}: unknown flavor {self.record.flavor}; update vtn-export")

    def _log(self, severity: str, message: str) -> None:
        if severity == "error":
            self._errors.append(" ".join(message.split())[:300])

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._engine is None:
            raise BackendError("trt: the session is closed")
        lane: Lane | None = getattr(self._local, "lane", None)
        if lane is None:
            with self._lock:
                lane = Lane(self._engine, self.spec, self.record.profiles, self._cuda, self._mapped)
                self._lanes.append(lane)
            self._local.lane = lane
        self._errors.clear()
        try:
            return lane.run(inputs)
        except BackendError as error:
            said = f" ({self._errors[-1]})" if self._errors else ""
            raise BackendError(f"{error}{said}") from None

    def close(self) -> None:
        with self._lock:
            while self._lanes:
                self._lanes.pop().close()
            self._local = threading.local()
            self._engine = None
            self._runtime = None


def find_engine(bundle: Bundle, part: Part, gpu: Gpu) -> Sidecar:
    """The newest engine of a part that fits this machine. Raises EngineError."""
    bundle.graph(part)

    def check(record: Sidecar) -> list[str]:
        plugin = find_library(None, gpu.compute_capability, bundle) if record.plugin is not None else None
        return sidecar.machine_problems(record, gpu, installed_version, plugin)

    return sidecar.find(bundle, part, check)


def installed_version(flavor: str) -> str | None:
    """The version of a flavour on this machine; None where it cannot be imported."""
    for known in api.FLAVORS:
        if known == flavor and is_installed(api.MODULE[known]):
            try:
                return api.load(known).version
            except VtnError:
                return None
    return None


def deserialize(runtime: Any, bundle: Bundle, record: Sidecar, errors: deque[str]) -> Any:
    """The engine, from the very bytes whose hash is the record's. Raises EngineError."""
    path = sidecar.engine_path(bundle, record.name)
    data = path.read_bytes()
    got = hashlib.sha256(data).hexdigest()
    if got != record.engine_sha256:  # changed since the record was checked
        sidecar.require_usable(record, [f"{path.name}: got SHA-256 {got[:12]}…, expected {record.engine_sha256[:12]}…"])
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        sidecar.require_usable(record, [f"not taken by {record.flavor}: {errors[-1] if errors else 'no reason given'}"])
    return engine
