"""A session runs one graph: the protocol that every backend meets, and ONNX Runtime's. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from vtn_export.errors import BackendError
from vtn_export.spec import Array, GraphSpec, check_inputs

# ONNX Runtime's fused Add + LayerNormalization kernel is slower on CPUs than the two apart: the whole
# temporal encoder of vit_b_vtn takes 5-6 % less without it (benchmarks/temporal.py).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion"]


class Session(Protocol):
    """One graph on one backend. Not for several threads at a time."""

    spec: GraphSpec
    backend: str

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays by the names, shapes and dtypes of `spec`. Raises ShapeError and BackendError."""

    def close(self) -> None:
        """Free what the session holds; it cannot run afterwards."""


class SessionBase:
    """`with` and the input check, shared by the backends."""

    backend = ""

    def __init__(self, spec: GraphSpec) -> None:
        self.spec = spec

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        check_inputs(self.spec, inputs)
        return self._run(inputs)

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise BackendError(f"{self.backend}: cannot run")

    def close(self) -> None:
        """Nothing is held unless a backend says so."""

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def available_cpus() -> int:
    """Processors this process may use (containers and taskset counted in)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OrtSession(SessionBase):
    """ONNX Runtime on the CPU. `model` is a path (external data beside it) or serialized bytes."""

    backend = "ort"

    def __init__(
        self, model: Path | bytes, spec: GraphSpec, *, threads: int | None = None, profile_to: Path | None = None
    ) -> None:
        super().__init__(spec)
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_cpus()
        options.inter_op_num_threads = 1
        # A memory plan is made for one shape and kept; with free shapes it doubles the peak (measured:
        # 1784 MB against 892 MB for a small ResNet on 400 frames) and saves no time.
        options.enable_mem_pattern = False
        options.log_severity_level = 3  # its warnings are about its own constant folding
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to / "profile")
            options.optimized_model_filepath = str(profile_to / "optimized.onnx")
        try:
            self._session: Any = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED_OPTIMIZERS,
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise BackendError(f"ort: cannot load the graph: {_one_line(error)}") from None
        self._outputs = [tensor.name for tensor in spec.outputs]

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise BackendError("ort: the session is closed")
        try:
            values = self._session.run(self._outputs, dict(inputs))
        except Exception as error:  # see above
            raise BackendError(f"ort: {_one_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))

    def end_profiling(self) -> Path:
        """Stop profiling and return the file that ONNX Runtime wrote."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._session = None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
