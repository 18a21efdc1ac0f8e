"""Errors a user can fix. Each class has its own exit code; the command line prints one line and exits with it.

A message says what was got, what was expected and what to do. Anything that is not a VtnError is a
bug and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class VtnError(Exception):
    """Base of all errors that the user can fix."""

    exit_code: ClassVar[int] = 1


class AccuracyError(VtnError):
    """Numbers are beyond their tolerance (exit 1: what a CI job tests for)."""

    exit_code = 1


class UsageError(VtnError):
    """Options that do not fit together, or a value outside its range (exit 2, as for a bad option)."""

    exit_code = 2


class MissingDependencyError(VtnError):
    """A package that this command needs is not installed; the message names the pip extra."""

    exit_code = 3


class CheckpointError(VtnError):
    """A checkpoint that is missing, truncated, not weights only, or of another model."""

    exit_code = 4


class ConfigError(VtnError):
    """A model configuration that is unknown, malformed or contradicts itself."""

    exit_code = 5


class VideoError(VtnError):
    """A video that is missing, empty, truncated or has no frames."""

    exit_code = 6


class ShapeError(VtnError):
    """An array of another shape, dtype or range than the graph takes."""

    exit_code = 7


class BundleError(VtnError):
    """A bundle that is missing, incomplete, of a newer schema, or whose files are not the manifest's."""

    exit_code = 8


class ExportError(VtnError):
    """The model cannot be exported as asked."""

    exit_code = 9


class OutputError(VtnError):
    """The result could not be written, or a path not be reached: disk full, no permission, something in the way."""

    exit_code = 10


class MemoryForecastError(VtnError):
    """The run would need more memory than the machine has."""

    exit_code = 11


class BackendError(VtnError):
    """The backend asked for cannot run here (no GPU, no kernels for the type, no engine)."""

    exit_code = 12


class EngineError(VtnError):
    """An engine that is missing, stale, of another GPU or version, or whose build failed."""

    exit_code = 13


class PluginError(VtnError):
    """A plugin library that is missing, of another build or contract, or could not be built."""

    exit_code = 14


class GpuError(BackendError):
    """No NVIDIA GPU answers on this machine (no driver, no device, or not one that CUDA can use)."""

    exit_code = 15


class SourceError(VtnError):
    """A live source that broke off after some of its frames were seen; what was seen has been reported."""

    exit_code = 16


class CalibrationError(VtnError):
    """Calibration clips that are missing, unreadable, or too few."""

    exit_code = 17


class DatasetError(VtnError):
    """A labelled set of videos that is empty or malformed, or whose labels are not the bundle's."""

    exit_code = 18


class QuantizeError(VtnError):
    """A bundle that cannot be quantized: quantized or typed already, or with nothing in it to quantize."""

    exit_code = 19


INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells report it
TERMINATED_EXIT_CODE = 143  # 128 + SIGTERM, likewise
