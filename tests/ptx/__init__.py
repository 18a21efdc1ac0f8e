"""An interpreter for the PTX that nvcc emits: runs kernels on the CPU, checks every access, counts the work."""

from .counts import Counts
from .findings import Finding
from .memory import Memory
from .module import Module, Report
from .syntax import PtxError

__all__ = ["Counts", "Finding", "Memory", "Module", "PtxError", "Report"]
