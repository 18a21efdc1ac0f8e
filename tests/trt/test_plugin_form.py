"""The plugin form, and the registry checks in RTX's real registry: it takes creators without a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.plugins.library import build_library
from vtn_export.bundle import Bundle
from vtn_export.errors import PluginError
from vtn_export.onnx.op import OP_DOMAIN, OP_TYPE
from vtn_export.trt.library import find_library
from vtn_export.trt.plugin_form import check_creator, fields_of, load_library, op_nodes, plugin_form, record

FIELDS: dict[str, int | float] = {
    "num_heads": 3,
    "one_sided_window": 9,
    "dilation": 1,
    "num_global_tokens": 1,
    "causal": 0,
    "scale": 0.125,
}


def test_body_goes_and_names_come(small_bundle: Path) -> None:
    model = onnx.load(small_bundle / "temporal.onnx")
    before = model.SerializeToString()
    derived = plugin_form(model)
    assert model.SerializeToString() == before  # derived, not changed
    assert not derived.functions and len(model.functions) == 1
    nodes = op_nodes(derived)
    assert len(nodes) == len(op_nodes(model)) > 0
    for node, source in zip(nodes, op_nodes(model), strict=True):
        fields = fields_of(node)
        assert fields.pop("plugin_version") == b"1" and fields.pop("plugin_namespace") == b"vtn"
        assert fields == fields_of(source) and set(fields) == set(FIELDS)
        assert (node.domain, node.op_type) == (OP_DOMAIN, OP_TYPE)


@pytest.fixture
def registry(rtx: Any) -> Iterator[Any]:
    yield rtx.get_plugin_registry()


@pytest.fixture
def register(rtx: Any, registry: Any) -> Iterator[Any]:
    """Register a creator of our name; what it is asked to make lands in its `asked`."""
    made: list[Any] = []

    def add(fields: dict[str, Any], name: str = OP_TYPE, version: str = "1", refuses: bool = False) -> Any:
        class Creator(rtx.IPluginCreatorV3One):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                rtx.IPluginCreatorV3One.__init__(self)
                self.name, self.plugin_version, self.plugin_namespace = name, version, OP_DOMAIN
                empty = np.array([], dtype=np.float32)
                self.field_names = rtx.PluginFieldCollection(
                    [rtx.PluginField(field, empty, kind) for field, kind in fields.items()]
                )
                self.asked: list[dict[str, Any]] = []

            def create_plugin(self, _name: str, collection: Any, _phase: Any) -> Any:
                self.asked.append({field.name: (field.type, field.data.tolist()) for field in collection})
                return None if refuses else Plugin()

        class Plugin(rtx.IPluginV3):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                rtx.IPluginV3.__init__(self)

        creator = Creator()
        made.append(creator)
        assert registry.register_creator(creator, OP_DOMAIN)
        return creator

    yield add
    for creator in made:
        registry.deregister_creator(creator)


def kinds(rtx: Any) -> dict[str, Any]:
    types = rtx.PluginFieldType
    return {name: types.FLOAT32 if name == "scale" else types.INT32 for name in FIELDS}


def test_fields_reach_the_creator(rtx: Any, registry: Any, register: Any) -> None:
    creator = register(kinds(rtx))
    check_creator(rtx, registry, [FIELDS])
    (asked,) = creator.asked
    assert {name: value for name, (_, value) in asked.items()} == {name: [value] for name, value in FIELDS.items()}
    assert asked["scale"][0] == rtx.PluginFieldType.FLOAT32


def test_creator_that_refuses(rtx: Any, registry: Any, register: Any) -> None:
    register(kinds(rtx), refuses=True)
    with pytest.raises(PluginError, match=r"refused the fields \(num_heads 3, one_sided_window 9"):
        check_creator(rtx, registry, [FIELDS])


def test_creator_of_other_fields(rtx: Any, registry: Any, register: Any) -> None:
    fields = kinds(rtx)
    fields["window"] = fields.pop("one_sided_window")
    register(fields)
    with pytest.raises(PluginError, match=r"takes the fields .*window.*, the graph has .*one_sided_window"):
        check_creator(rtx, registry, [FIELDS])


def test_no_creator_lists_near_names(rtx: Any, registry: Any, register: Any) -> None:
    with pytest.raises(PluginError, match=r"no vtn::SlidingWindowAttention version 1; it has \d+ others"):
        check_creator(rtx, registry, [FIELDS])
    register(kinds(rtx), version="2")
    with pytest.raises(PluginError, match=r"near: vtn::SlidingWindowAttention version 2"):
        check_creator(rtx, registry, [FIELDS])


def test_library_that_is_none(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"cannot be loaded: .*cannot open shared object file"):
        load_library(registry, str(tmp_path / "libnone.so"))
    text = tmp_path / "libtext.so"
    text.write_text("not a library")
    with pytest.raises(PluginError, match=r"cannot be loaded: .*(invalid ELF header|file too short)"):
        load_library(registry, str(text))


def test_where_the_library_is_looked_for(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, library = Bundle.open(bundle), tmp_path / "libvtn.so"
    with pytest.raises(PluginError, match=r"--plugin .*: no such file"):
        find_library(library, None, opened)
    library.write_bytes(b"x")
    assert find_library(library, "8.7", opened) == library
    monkeypatch.setenv("VTN_PLUGIN_LIB", str(tmp_path / "gone.so"))
    with pytest.raises(PluginError, match="no such file"):
        find_library(None, None, opened)
    assert record(library).file == "libvtn.so" and record(library).name == OP_TYPE


def test_the_real_library(rtx: Any, small_bundle: Path) -> None:
    """Its creator makes a plugin for every node of a graph, in a process of its own: registries keep what they load."""
    library = build_library("8.0")
    code = (
        "import sys, onnx, tensorrt_rtx as trt; from vtn_export.trt.plugin_form import *;"
        "nodes = op_nodes(onnx.load(sys.argv[2]));"
        "preflight(trt, trt.get_plugin_registry(), sys.argv[1], [fields_of(n) for n in nodes]); print(len(nodes))"
    )
    command = [sys.executable, "-c", code, str(library), str(small_bundle / "temporal.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0 and int(result.stdout) > 0, result.stderr
