"""A session runs one graph: the protocol that every backend meets, and ONNX Runtime's. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from vtn_export.errors import BackendError
from vtn_export.spec import FEATURES, Array, GraphSpec, check_inputs

# ONNX Runtime's fused Add + LayerNormalization kernel is slower on CPUs than the two apart: the whole
# temporal encoder of vit_b_vtn takes 5-6 % less without it (benchmarks/temporal.py).
# Its rewrite of Relu before QuantizeLinear drops the Relu of float8 too, where negative numbers stay negative: features
# of a ResNet in FP8 were off by more than their own size (1.32.0).
_DISABLED_OPTIMIZERS = ["SkipLayerNormFusion", "ReluQuantRewrite"]

# Frames from which the temporal graph runs in blocks of tokens (vtn_export/runtime/token_blocks.py); on 1,024 frames
# blocks cost 10 %.
LONG = 4096


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
        self._model = model
        self._threads = threads or available_cpus()
        self._blocks: Any = None
        self._session: Any = self._load(model, profile_to)
        self._outputs = [tensor.name for tensor in spec.outputs]

    def _load(self, model: Path | bytes, profile_to: Path | None = None) -> Any:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # A memory plan is made for one shape and kept; with free shapes it doubles the peak (measured:
        # 1784 MB against 892 MB for a small ResNet on 400 frames) and saves no time.
        options.enable_mem_pattern = False
        # Q/DQ stay what they are, in float32: fused 8-bit kernels saturate on CPUs with AVX2 and no VNNI (1.6 % error)
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.log_severity_level = 3  # its warnings are about its own constant folding
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to / "profile")
            options.optimized_model_filepath = str(profile_to / "optimized.onnx")
        try:
            return ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=_DISABLED_OPTIMIZERS,
            )
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise BackendError(f"ort: cannot load the graph: {_one_line(error)}") from None

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._session is None:
            raise BackendError("ort: the session is closed")
        session = self._session
        if FEATURES in inputs and inputs[FEATURES].shape[1] >= LONG:
            session = self._long_session()
        try:
            values = session.run(self._outputs, dict(inputs))
        except Exception as error:  # see above
            raise BackendError(f"ort: {_one_line(error)}") from None
        return dict(zip(self._outputs, values, strict=True))

    def _long_session(self) -> Any:
        """The temporal graph in blocks of tokens, loaded when a long video first comes; weights are held twice then."""
        if self._blocks is None:
            import onnx

            from vtn_export.runtime.token_blocks import cut_tokens

            model = onnx.load_from_string(self._model) if isinstance(self._model, bytes) else onnx.load(self._model)
            cut_tokens(model)
            # A graph with external data is too large for one message: it runs whole.
            fits = model.ByteSize() < 1 << 30
            self._blocks = self._load(model.SerializeToString()) if fits else self._session
        return self._blocks

    def end_profiling(self) -> Path:
        """Stop profiling and return the file that ONNX Runtime wrote."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._session = self._blocks = None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
