"""The plugin library an engine is built or run with: named on the command line, or found (trt/plugins/find.py)."""

from __future__ import annotations

from pathlib import Path

from vtn_export.bundle import Bundle
from vtn_export.errors import PluginError
from vtn_export.trt.plugins import find


def find_library(given: Path | None, compute_capability: str | None, bundle: Bundle) -> Path | None:
    """The library for this GPU, or None. Raises PluginError when a named one is missing, broken or lacks the GPU."""
    if given is not None:
        if not given.is_file():
            raise PluginError(f"--plugin {given}: no such file; expected the plugin library")
        return given.resolve()
    return find.find_library(compute_capability, bundle.path)
