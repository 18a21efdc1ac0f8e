"""What can be validated: a bundle's parts on a backend, or in a form that no backend runs as such.

`rewrite` is the exact rewrite in PyTorch (`torch` is the plain model, as published); `fp16` and `bf16`
are an fp32 bundle typed as `vtn-export trt` types it and run as its float32 rounding copy.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import onnx

from vtn_export.backends import BACKENDS, Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.errors import UsageError
from vtn_export.onnx.check import FP32_TOLERANCE
from vtn_export.onnx.precision import rounding_copy, to_precision
from vtn_export.runtime.session import OrtSession, Session
from vtn_export.spec import Part, Precision
from vtn_export.trt import typed

REWRITE = "rewrite"
TYPED: tuple[Precision, ...] = ("fp16", "bf16")
_CHOOSERS = ("auto",)  # a backend that picks another: no form of its own
FORMS: tuple[str, ...] = (*(b for b in BACKENDS if b not in _CHOOSERS), REWRITE, *TYPED)
TORCH_FORMS = ("torch", REWRITE)


@dataclass(frozen=True)
class Bound:
    """How far a form's outputs may be from the float64 model's. relative: of max(1, max|b|); else absolute."""

    relative: bool
    tolerance: float

    def absolute(self, max_expected: float) -> float:
        return self.tolerance * max(1.0, max_expected) if self.relative else self.tolerance


class Form:
    """The sessions of one form of a bundle, opened when asked for, closed together.

    Raises, when a part is asked for, what the backend raises: MissingDependencyError, CheckpointError,
    BundleError, EngineError, GpuError.
    """

    def __init__(
        self, bundle: Bundle, name: str, *, checkpoint: Path | None = None, threads: int | None = None
    ) -> None:
        if name not in FORMS:
            raise UsageError(f"form: got {name!r}, expected one of {', '.join(FORMS)}")
        if name in TYPED and bundle.manifest.precision != "fp32":
            raise UsageError(
                f"{name}: got a bundle of {bundle.manifest.precision}, whose weights are rounded already; "
                f"expected an fp32 bundle, or `ort` for this one"
            )
        self.bundle, self.name = bundle, name
        self._checkpoint, self._threads = checkpoint, threads
        self._own: dict[Part, Session] = {}
        backend = "torch" if name == REWRITE else "ort" if name in TYPED else name
        self._sessions = Sessions(
            bundle, cast(Backend, backend), checkpoint=checkpoint, threads=threads, exact=backend == "ort"
        )

    @property
    def emulated(self) -> bool:
        """Whether the numbers come from a rounding copy."""
        return self.name in TYPED or self._sessions.emulated

    @property
    def is_torch(self) -> bool:
        return self.name in TORCH_FORMS

    @property
    def has_graph(self) -> bool:
        """Whether ONNX Runtime runs a graph here, so that every tensor can be looked at."""
        return self.name == "ort" or self.name in TYPED

    def precision(self, part: Part) -> Precision:
        """The type of a part's graph or engine; PyTorch computes in float32 whatever the bundle is."""
        if self.is_torch:
            return "fp32"
        if self.name == "trt":
            from vtn_export.trt.session import TrtSession

            session = self[part]
            assert isinstance(session, TrtSession)
            return session.precision
        return self.name if self.name in TYPED else self.bundle.manifest.precision

    def __getitem__(self, part: Part) -> Session:
        if self.is_torch or self.name in TYPED:
            if part not in self._own:
                self._own[part] = self._make(part)
            return self._own[part]
        return self._sessions[part]

    def _make(self, part: Part) -> Session:
        entry = self.bundle.graph(part)
        if self.is_torch:
            require("torch")
            from vtn_export.model.torch_session import TorchSession

            return TorchSession(self.model(), self.bundle.manifest, part)
        return OrtSession(self.graph(part).SerializeToString(), entry.spec, threads=self._threads)

    def model(self) -> Any:
        """The PyTorch model of a torch form: plain, or its rewrite. Raises CheckpointError."""
        require("torch")
        from vtn_export.model.torch_session import model_of

        if not hasattr(self, "_model"):
            model = model_of(self.bundle.manifest, self._checkpoint)
            self._model: Any = model.rewrite() if self.name == REWRITE else model
        return self._model

    def graph(self, part: Part) -> onnx.ModelProto:
        """The float32 graph that ONNX Runtime runs for this form (a rounding copy for 16-bit types)."""
        model = typed.load(self.bundle.graph_path(part))
        if self.name in TYPED:
            model = typed_model(self.bundle, part, self.precision(part))
        return rounding_copy(model)

    def bound(self, part: Part) -> Bound:
        """What this form is held against over the golden samples."""
        entry = self.bundle.graph(part)
        if self.is_torch:
            return Bound(True, FP32_TOLERANCE)
        if self.name == "trt":
            from vtn_export.trt.session import TrtSession

            session = self[part]
            assert isinstance(session, TrtSession)
            return Bound(session.precision == "fp32" and not session.record.tf32, session.tolerance)
        if self.name in TYPED:
            return Bound(False, typed.tolerance(self.bundle, part, self.precision(part)))
        return Bound(self.precision(part) == "fp32", entry.tolerance)

    def close(self) -> None:
        for session in self._own.values():
            session.close()
        self._own.clear()
        self._sessions.close()

    def __enter__(self) -> Form:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def typed_model(bundle: Bundle, part: Part, precision: Precision, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """An fp32 bundle's graph typed as `vtn-export trt` does it: near the type's end float32, and `keep_fp32`."""
    near = typed.near_limit(bundle, part, precision, None) if precision == "fp16" else {}
    model = typed.load(bundle.graph_path(part))
    names = {node.name for node in model.graph.node}
    return to_precision(model, precision, names & {*keep_fp32, *near})[0]


assert set(TYPED) < set(get_args(Precision))
