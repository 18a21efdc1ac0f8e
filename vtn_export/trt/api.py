"""The only import of TensorRT and TensorRT-RTX: which one, what it can do, and every version comparison.

Both flavours have the same classes. What differs is asked as a feature of `Api`, never by name
elsewhere. Read from headers and tried: docs/engines.md.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

from vtn_export.deps import is_installed, require
from vtn_export.errors import MissingDependencyError, UsageError
from vtn_export.trt.gpu import find_gpu

Flavor = Literal["tensorrt", "rtx"]
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)

MODULE: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
_TITLE: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}
# TensorRT 10.3 is JetPack 6.1's; RTX 1.1 is the first whose strongly typed parser was published
_FLOOR: dict[Flavor, tuple[int, ...]] = {"tensorrt": (10, 3), "rtx": (1, 1)}
# What a GPU-less RTX builds for when nothing is asked: every RTX GPU from Ampere on.
RTX_COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
# The first GPUs with FP8 arithmetic. 10.x and later have it but for none of the others: Orin (8.7) has not.
FP8_CAPABILITY = "8.9"


class Api:
    """One flavour, imported. `trt` is the module."""

    def __init__(self, flavor: Flavor) -> None:
        """Raises MissingDependencyError when it is not installed or below the floor."""
        self.flavor = flavor
        self.title = _TITLE[flavor]
        self.trt: Any = require(MODULE[flavor])
        self.version = str(self.trt.__version__)
        if version_tuple(self.version)[: len(_FLOOR[flavor])] < _FLOOR[flavor]:
            floor = ".".join(map(str, _FLOOR[flavor]))
            raise MissingDependencyError(f"{self.title}: got {self.version}, expected {floor} or newer")

    @cached_property
    def has_plugins(self) -> bool:
        """Whether a network can hold an IPluginV3 (RTX aborts the process on one)."""
        return hasattr(self.trt.INetworkDefinition, "add_plugin_v3")

    @cached_property
    def builds_without_gpu(self) -> bool:
        """Whether the builder takes target compute capabilities and needs no device."""
        return hasattr(self.trt.IBuilderConfig, "set_compute_capability")

    @cached_property
    def compute_capabilities(self) -> tuple[str, ...]:
        """What can be built for by name; empty where the present GPU is the only target."""
        if not self.builds_without_gpu:
            return ()
        found = [int(name[2:]) for name in self.trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
        return tuple(f"{number // 10}.{number % 10}" for number in sorted(found))

    def has_type(self, precision: str) -> bool:
        """Whether this library knows the type at all (a GPU may lack it nevertheless: `lacks_precision`)."""
        name = {"fp8": "FP8", "int8": "INT8", "bf16": "BF16"}.get(precision)
        return name is None or hasattr(self.trt.DataType, name)

    @cached_property
    def network_flags(self) -> int:
        """Strongly typed, always: the flag exists since 10.0, and 11 knows nothing else and may drop its name."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def logger(self, listener: Any) -> Any:
        """A TensorRT logger that calls `listener(severity, message)`; "error", "warning", "info" or "verbose"."""
        trt = self.trt
        names = {
            trt.ILogger.Severity.INTERNAL_ERROR: "error",
            trt.ILogger.Severity.ERROR: "error",
            trt.ILogger.Severity.WARNING: "warning",
            trt.ILogger.Severity.INFO: "info",
        }

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                listener(names.get(severity, "verbose"), message)

        return Logger()

    def progress_monitor(self, listener: Any) -> Any:
        """An IProgressMonitor that passes on to `listener.phase_start/step_complete/phase_finish`."""
        trt = self.trt

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                listener.phase_start(phase_name, parent_phase, num_steps)

            def phase_finish(self, phase_name: str) -> None:
                listener.phase_finish(phase_name)

            def step_complete(self, phase_name: str, step: int) -> bool:
                return bool(listener.step_complete(phase_name, step))

        return Monitor()

    def set_targets(self, config: Any, compute_capabilities: list[str]) -> None:
        """Tell an RTX builder which GPUs to build for. Raises UsageError for one it does not know."""
        if not compute_capabilities:
            return
        check_compute_capabilities(self, compute_capabilities)
        config.num_compute_capabilities = len(compute_capabilities)
        for index, capability in enumerate(compute_capabilities):
            value = getattr(self.trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            if not config.set_compute_capability(value, index):
                raise UsageError(f"--compute-capability: {self.title} {self.version} did not take {capability}")

    def profile_bytes(self, engine: Any, profile: int) -> int:
        """Device memory that a context on this profile needs."""
        return int(engine.get_device_memory_size_for_profile_v2(profile))


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "10.3.0.post1" → (10, 3, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def lacks_precision(precision: str, compute_capability: str) -> bool:
    """Whether GPUs of this compute capability have no arithmetic for the type."""
    return precision == "fp8" and version_tuple(compute_capability) < version_tuple(FP8_CAPABILITY)


def in_range(version: str, lowest: str, highest: str) -> bool:
    """Whether lowest ≤ version ≤ highest, compared at the bounds' own depth ("10.16" includes 10.16.2)."""
    low, high = version_tuple(lowest), version_tuple(highest)
    got = version_tuple(version)
    return got[: len(low)] >= low and got[: len(high)] <= high


@lru_cache(maxsize=2)
def load(flavor: Flavor) -> Api:
    return Api(flavor)


def choose(flavor: str) -> Flavor:
    """`auto` as a flavour: TensorRT where it is installed and a GPU answers, else TensorRT-RTX.

    Raises UsageError for an unknown name, MissingDependencyError when none is installed.
    """
    if flavor in FLAVORS:
        if not is_installed(MODULE[flavor]):
            raise MissingDependencyError(_remedy(flavor))
        return flavor
    if flavor != "auto":
        raise UsageError(f"--flavor: got {flavor!r}, expected one of auto, {', '.join(FLAVORS)}")
    if is_installed(MODULE["tensorrt"]) and find_gpu() is not None:
        return "tensorrt"
    if is_installed(MODULE["rtx"]):
        return "rtx"
    raise MissingDependencyError(f"{_remedy('rtx')}; {_remedy('tensorrt')}")


def check_compute_capabilities(api: Api, wanted: list[str]) -> None:
    """Raises UsageError with the list of what this library builds for."""
    known = api.compute_capabilities
    unknown = [capability for capability in wanted if capability not in known]
    if unknown:
        raise UsageError(
            f"--compute-capability: got {unknown[0]}, but {api.title} {api.version} builds for {', '.join(known)} only"
            + ("; Jetsons need TensorRT, built on the device" if unknown[0] in ("8.7", "11.0") else "")
        )


def _remedy(flavor: Flavor) -> str:
    if flavor == "rtx":
        return "TensorRT-RTX is not installed; pip install 'vtn-export[rtx]' (x86-64)"
    return "TensorRT is not installed; on a Jetson it comes with JetPack, elsewhere pip install tensorrt"
