"""Every call into TensorRT against the real bindings: RTX by import, 10.0 to 11.4 by what their binaries say.

The wheels of TensorRT proper cannot be imported without its libraries. Their extension modules hold
each Python name and docstring; RTX's docstring of the same method is looked for in them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest

from tests.trt.bindings import BELOW, SUPPORTED, wheel
from tests.trt.signatures import BY_FEATURE, Bindings, Use, argument_counts, description, uses

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vtn-export[rtx]'")

# RTX's sentence of these is not in that version's text; the name is, and the class has it since 10.0
OTHER_WORDS = {("10.3.0", "IPluginRegistry", "all_creators"), ("10.0.1", "IPluginRegistry", "all_creators")}
ALL = sorted(uses(), key=lambda use: (use.owner, use.name, use.arguments or 0))


def _class(owner: str) -> Any:
    return getattr(trt.ILogger, owner) if owner == "Severity" else getattr(trt, owner)


@lru_cache(maxsize=8)
def _bindings(requirement: str) -> Bindings:
    path = wheel(requirement)
    if path is None:
        pytest.skip(f"{requirement} is not in the cache and cannot be downloaded (python -m tests.trt.bindings)")
    return Bindings(path)


def _lacks(bindings: Bindings, use: Use) -> bool:
    if (use.owner, use.name) in BY_FEATURE or use.name.startswith("__"):
        return False
    if not bindings.has_name(use.name):
        return True
    if use.owner == "trt" or (bindings.version, use.owner, use.name) in OTHER_WORDS:
        return False
    text = description(_class(use.owner), use.name)
    return not text or not bindings.has_text(text)


def test_finds_what_the_sources_use() -> None:
    """The reader of sources sees calls of every class that matters."""
    owners = {use.owner for use in ALL}
    expected = {"Builder", "INetworkDefinition", "OnnxParser", "IBuilderConfig", "IPluginRegistry", "Runtime"}
    assert expected | {"ICudaEngine", "IExecutionContext", "EngineInspector", "IPluginCreatorV3One"} <= owners
    assert Use("IExecutionContext", "execute_async_v3", 1) in ALL
    assert Use("IBuilderConfig", "clear_flag", 1) in ALL


@pytest.mark.parametrize("use", ALL, ids=lambda use: f"{use.owner}.{use.name}/{use.arguments}")
def test_rtx_has_it(use: Use) -> None:
    if use.owner == "trt":
        assert hasattr(trt, use.name)
        target = getattr(trt, use.name).__init__ if use.arguments and isinstance(getattr(trt, use.name), type) else None
        target = target or (getattr(trt, use.name) if use.arguments is not None else None)
    else:
        assert hasattr(_class(use.owner), use.name) or (use.owner, use.name) in BY_FEATURE
        target = getattr(_class(use.owner), use.name, None) if use.arguments is not None else None
    counts = argument_counts(target) if target is not None else []
    if use.name != "__init__" and counts:
        assert any(low <= (use.arguments or 0) <= high for low, high in counts), f"{use}: takes {counts}"


@pytest.mark.parametrize("requirement", SUPPORTED)
def test_supported_versions_have_it(requirement: str) -> None:
    bindings = _bindings(requirement)
    missing = [f"{use.owner}.{use.name}" for use in ALL if _lacks(bindings, use)]
    assert not missing, f"{requirement} lacks {missing}"


def test_the_check_can_fail() -> None:
    """10.0 is below the floor: it lacks what 10.3 brought, and the check says so."""
    missing = {use.name for use in ALL if _lacks(_bindings(BELOW), use)}
    assert missing == {"get_device_memory_size_for_profile_v2"}


def test_names_that_11_dropped_are_not_used() -> None:
    gone = {
        "create_execution_context_without_device_memory",
        "device_memory_size",
        "get_device_memory_size",
        "get_plugin_creator",
        "plugin_creator_list",
        "supports_model",
        "EXPLICIT_BATCH",
        "FP16",
        "BF16",
        "INT8",
    }
    assert not gone & {use.name for use in ALL}
    newest = _bindings(SUPPORTED[-1])
    assert not newest.has_name("supports_model") and _bindings(SUPPORTED[0]).has_name("supports_model")
