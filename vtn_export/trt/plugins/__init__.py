"""The TensorRT plugin library: compilers for it, its build, its description, and where it is found."""

from __future__ import annotations

from vtn_export.trt.plugins.build import BuildRequest, build
from vtn_export.trt.plugins.find import find_library
from vtn_export.trt.plugins.info import LibraryInfo, inspect_library
from vtn_export.trt.plugins.sidecar import Sidecar, read_sidecar
from vtn_export.trt.plugins.toolchain import COMPUTE_CAPABILITIES, Headers, Toolkit, find_headers, find_toolkit

__all__ = [
    "COMPUTE_CAPABILITIES",
    "BuildRequest",
    "Headers",
    "LibraryInfo",
    "Sidecar",
    "Toolkit",
    "build",
    "find_headers",
    "find_library",
    "find_toolkit",
    "inspect_library",
    "read_sidecar",
]
