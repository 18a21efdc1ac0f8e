"""The library in the real plugin registry of TensorRT-RTX, which needs no GPU for this."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from tests.plugins.library import build_library

trt = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx-cu13")

GOOD: dict[str, Any] = {
    "num_heads": np.array([12], np.int32),
    "one_sided_window": np.array([9], np.int32),
    "dilation": np.array([1], np.int32),
    "num_global_tokens": np.array([1], np.int32),
    "causal": np.array([0], np.int32),
    "scale": np.array([0.125], np.float32),
}
TYPES = {np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64", np.dtype(np.float32): "FLOAT32"}


def collection(values: dict[str, Any]) -> Any:
    fields = [
        trt.PluginField(name, value, getattr(trt.PluginFieldType, TYPES[value.dtype])) for name, value in values.items()
    ]
    return trt.PluginFieldCollection(fields)


@pytest.fixture(scope="module")
def creator() -> Any:
    logger = trt.Logger(trt.Logger.ERROR)
    registry = trt.Builder(logger).get_plugin_registry() if not hasattr(trt, "get_plugin_registry") else None
    registry = registry or trt.get_plugin_registry()
    assert registry.load_library(str(build_library("8.0"))) is not None
    found = registry.get_creator("SlidingWindowAttention", "1", "vtn")
    assert found is not None, [(c.name, c.plugin_namespace) for c in registry.all_creators]
    return found


def test_creator(creator: Any) -> None:
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("SlidingWindowAttention", "1", "vtn")
    assert [field.name for field in creator.field_names] == list(GOOD)


def test_create_with_the_parser_s_fields(creator: Any) -> None:
    plugin = creator.create_plugin("node", collection(GOOD), trt.TensorRTPhase.BUILD)
    assert plugin is not None
    core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    assert core.plugin_name == "SlidingWindowAttention"


@pytest.mark.parametrize("broken", ["missing", "window", "type"])
def test_bad_fields_are_refused(creator: Any, broken: str) -> None:
    values = dict(GOOD)
    if broken == "missing":
        del values["scale"]
    elif broken == "window":
        values["one_sided_window"] = np.array([0], np.int32)
    else:
        values["dilation"] = np.array([1], np.float32)
    try:
        plugin = creator.create_plugin("node", collection(values), trt.TensorRTPhase.BUILD)
    except Exception:  # the bindings of some versions raise where the creator returned null
        plugin = None
    assert plugin is None


# A process of its own, because TensorRT keeps the first logger that a process gives it
REFUSED = """
import sys
import numpy as np
import tensorrt_rtx as trt

class Logger(trt.ILogger):
    def log(self, severity, message):
        print(severity.name, message)

def field(name, value):
    return trt.PluginField(name, np.array([value], np.int32), trt.PluginFieldType.INT32)

logger = Logger()
builder = trt.Builder(logger)
registry = trt.get_plugin_registry()
registry.load_library(sys.argv[1])
creator = registry.get_creator("SlidingWindowAttention", "1", "vtn")
for fields in ([field("num_heads", 12)], [field("num_heads", 12), field("one_sided_window", 9), field("dilation", 1),
               field("num_global_tokens", 1), field("causal", 0), field("scale", 1)]):
    try:
        creator.create_plugin("node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    except Exception:
        pass
"""


def test_refusals_reach_tensorrt_s_logger() -> None:
    """RTX 1.7 has TensorRT 11's interface of loggers, which the headers here (10.14) do not know."""
    command = [sys.executable, "-c", REFUSED, str(build_library("8.0"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout
    assert "ERROR SlidingWindowAttention createPlugin: field one_sided_window: missing" in said, said
    assert "ERROR SlidingWindowAttention createPlugin: field scale: got type 5 of length 1, expected one float" in said
