"""Where the plugin library is: given, named by the environment, or built by this package."""

from __future__ import annotations

import importlib
import importlib.util
import os
from pathlib import Path

from vtn_export.errors import PluginError

VARIABLE = "VTN_PLUGIN"
_BUILT = "vtn_export.trt.plugins"


def find_library(given: Path | None, compute_capability: str | None) -> Path | None:
    """The library for this GPU, or None. Raises PluginError when one is named that is no file."""
    named = given or (Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            source = "--plugin" if given else VARIABLE
            raise PluginError(f"{source} {named}: no such file; expected the plugin library")
        return named.resolve()
    if importlib.util.find_spec(_BUILT) is None:
        return None
    found = importlib.import_module(_BUILT).find_library(compute_capability)
    return None if found is None else Path(found)
