"""Video Transformer Networks: PyTorch checkpoint -> ONNX -> TensorRT, proven right at any length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from vtn_export.model.checkpoint import load as load

__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: only the names that need it pay for it.
    if name == "load":
        from vtn_export.model.checkpoint import load

        return load
    raise AttributeError(f"module 'vtn_export' has no attribute {name!r}")
