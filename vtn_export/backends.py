"""Which session runs a bundle's part: the one place that knows every backend."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args

from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.errors import BackendError, EngineError
from vtn_export.runtime.session import OrtSession, Session
from vtn_export.spec import QUANTIZED_PRECISIONS, Part

Backend = Literal["ort", "openvino", "torch", "trt"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


class Sessions:
    """Sessions of one bundle on one backend, opened when asked for, closed together.

    exact: for a 16-bit bundle, show what its type does to the numbers (the rounding copy of the
    graph); without it ONNX Runtime computes fp16 as its CPU kernels do. bf16, for which it has no
    kernels, and quantized graphs, whose numbers are those of an engine, always run as the rounding copy.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend = "ort",
        *,
        checkpoint: Path | None = None,
        threads: int | None = None,
        exact: bool = False,
    ) -> None:
        self.bundle, self.backend = bundle, backend
        self._checkpoint, self._threads, self._exact = checkpoint, threads, exact
        self._open: dict[Part, Session] = {}
        self._model: Any = None

    @property
    def emulated(self) -> bool:
        """Whether the numbers come from the rounding copy."""
        precision = self.bundle.manifest.precision
        always = precision == "bf16" or precision in QUANTIZED_PRECISIONS
        return self.backend == "ort" and (always or (precision == "fp16" and self._exact))

    def __getitem__(self, part: Part) -> Session:
        """Raises BundleError, BackendError, MissingDependencyError, CheckpointError, EngineError."""
        if part not in self._open:
            self._open[part] = self._make(part)
        return self._open[part]

    def _make(self, part: Part) -> Session:
        spec = self.bundle.graph(part).spec
        if self.backend == "torch":
            require("torch")
            from vtn_export.model.torch_session import TorchSession, model_of

            if self._model is None:
                self._model = model_of(self.bundle.manifest, self._checkpoint)
            return TorchSession(self._model, self.bundle.manifest, part)
        if self.backend == "trt":
            from vtn_export.trt.session import TrtSession

            return TrtSession(self.bundle, part)
        path = self.bundle.graph_path(part)
        if self.backend == "openvino":
            require_honest(self.bundle, self.backend)
            from vtn_export.runtime.openvino import OpenVinoSession

            return OpenVinoSession(path, spec, threads=self._threads)
        if self.emulated:
            import onnx

            from vtn_export.onnx.precision import rounding_copy

            return OrtSession(rounding_copy(onnx.load(path)).SerializeToString(), spec, threads=self._threads)
        return OrtSession(path, spec, threads=self._threads)

    def close(self) -> None:
        for session in self._open.values():
            session.close()
        self._open.clear()

    def __enter__(self) -> Sessions:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require_honest(bundle: Bundle, backend: Backend) -> None:
    """Raises BackendError for OpenVINO on int8 graphs.

    It takes Q/DQ for its own 8-bit scheme and moves them, past the normalisation of the pixels too: features were
    off by 5 to 7 times what the graph itself is off (OpenVINO 2026.4), and no option keeps it from that.
    """
    if backend == "openvino" and bundle.manifest.precision == "int8":
        raise BackendError(
            f"openvino: bundle {bundle.path} is int8, whose Q/DQ it places anew: its numbers are not the engine's; "
            f"use --backend ort, or the fp32 bundle"
        )


def require_artefacts(bundle: Bundle, backend: Backend, parts: Iterable[Part]) -> None:
    """Raise BundleError or EngineError unless the bundle has what the backend runs, here or elsewhere."""
    from vtn_export.trt.sidecar import sidecars

    for part in parts:
        bundle.graph(part)
    if backend == "trt" and not sidecars(bundle):
        raise EngineError(f"bundle {bundle.path}: no engine in it; build one with `vtn-export trt {bundle.path}`")
