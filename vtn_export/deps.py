"""Lazy imports that name the pip extra when a package is not there."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from vtn_export.errors import MissingDependencyError

# import name -> pip extra of vtn-export that brings it
EXTRA_OF: dict[str, str] = {
    "torch": "export",
    "torchvision": "export",
    "timm": "export",
    "onnxscript": "export",
    "safetensors": "export",
    "yaml": "export",
    "openvino": "openvino",
    "tensorrt_rtx": "rtx",
    "cuda": "trt",
    "pyarrow": "batch",
    "ray": "ray",
    "plotly": "report",
    "playwright": "report",
}


def is_installed(module: str) -> bool:
    """Whether `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None


def require(module: str) -> ModuleType:
    """Import `module` or raise MissingDependencyError naming the extra that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise  # the package is there and one of its own imports is missing: not ours to explain
        extra = EXTRA_OF.get(module.split(".")[0])
        remedy = f"pip install 'vtn-export[{extra}]'" if extra else f"pip install {module}"
        raise MissingDependencyError(f"{module} is not installed; {remedy}") from None
