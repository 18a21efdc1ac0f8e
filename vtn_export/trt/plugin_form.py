"""The plugin form of a graph, and the registry checks that come before a parser sees it.

A bundle holds the portable form (docs/op.md): the op's node and a function body of standard ops.
The plugin form has no body and says on the node which plugin makes it. TensorRT up to 10.6 takes a
body before a plugin, from 10.15 on too unless the node carries a namespace; without a body and with
the namespace every version does the same (docs/engines.md).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from vtn_export.errors import PluginError
from vtn_export.onnx.op import OP_DOMAIN, OP_TYPE, OP_VERSION
from vtn_export.untrusted import sha256

NAMESPACE = OP_DOMAIN
VERSION = str(OP_VERSION)
RTX_REFUSAL = (
    "--attention plugin: TensorRT-RTX takes no plugins (its parser aborts the process on one); "
    "use --attention portable, or TensorRT on the device"
)


@dataclass(frozen=True)
class PluginRecord:
    """The library that an engine needs: what the sidecar says of it."""

    name: str
    version: str
    namespace: str
    file: str
    sha256: str


def record(library: Path) -> PluginRecord:
    """Raises PluginError when the file cannot be read."""
    try:
        return PluginRecord(OP_TYPE, VERSION, NAMESPACE, library.name, sha256(library))
    except OSError as error:
        raise PluginError(f"plugin {library}: {error.strerror or error}") from None


def op_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of our op."""
    return [node for node in model.graph.node if node.op_type == OP_TYPE and node.domain == OP_DOMAIN]


def plugin_form(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without the function body, whose nodes name their plugin."""
    derived = onnx.ModelProto()
    derived.CopyFrom(model)
    del derived.functions[:]
    for node in op_nodes(derived):
        node.attribute.append(helper.make_attribute("plugin_version", VERSION))
        node.attribute.append(helper.make_attribute("plugin_namespace", NAMESPACE))
    return derived


def fields_of(node: onnx.NodeProto) -> dict[str, int | float]:
    """The op's attributes as they go into the plugin."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def preflight(trt: Any, registry: Any, library: str, instances: Sequence[Mapping[str, int | float]]) -> None:
    """Load the library and really create every instance's plugin. Raises PluginError naming what is wrong.

    trt: the module; registry: an IPluginRegistry. Works without a GPU, and in TensorRT-RTX too.
    """
    load_library(registry, library)
    check_creator(trt, registry, instances)


def load_library(registry: Any, library: str) -> None:
    """Register a library's creators. Raises PluginError with the loader's own reason."""
    if registry.get_creator(OP_TYPE, VERSION, NAMESPACE) is not None:
        return  # loaded before; a second time gives None and an error in the log
    if registry.load_library(library) is None:
        try:
            ctypes.CDLL(library)
            reason = "it exports no getCreators, or its plugins are registered already"
        except OSError as error:
            reason = str(error)
        raise PluginError(f"plugin {library}: cannot be loaded: {reason}")


def check_creator(trt: Any, registry: Any, instances: Sequence[Mapping[str, int | float]]) -> None:
    """Our creator is there, and it really makes every instance. Raises PluginError."""
    creator = registry.get_creator(OP_TYPE, VERSION, NAMESPACE)
    if creator is None:
        raise PluginError(_missing(registry))
    accepted = {field.name: field.type for field in creator.field_names}
    for instance in instances:
        _create(trt, creator, accepted, instance)


def _create(trt: Any, creator: Any, accepted: Mapping[str, Any], fields: Mapping[str, int | float]) -> None:
    unknown, absent = sorted(set(fields) - set(accepted)), sorted(set(accepted) - set(fields))
    if unknown or absent:
        got, expected = ", ".join(sorted(accepted)), ", ".join(sorted(fields))
        raise PluginError(f"plugin {OP_TYPE}: takes the fields {got}, the graph has {expected}; rebuild the plugin")
    types = {
        trt.PluginFieldType.INT32: np.int32,
        trt.PluginFieldType.INT64: np.int64,
        trt.PluginFieldType.FLOAT32: np.float32,
    }
    data = []
    for name, value in fields.items():
        dtype = types.get(accepted[name])
        if dtype is None:
            raise PluginError(f"plugin {OP_TYPE}: field {name} is {accepted[name]}, expected an integer or a float")
        data.append(trt.PluginField(name, np.array([value], dtype=dtype), accepted[name]))
    collection = trt.PluginFieldCollection(data)
    plugin = creator.create_plugin(OP_TYPE, collection, trt.TensorRTPhase.BUILD)
    if plugin is None:
        told = ", ".join(f"{name} {value}" for name, value in fields.items())
        raise PluginError(f"plugin {OP_TYPE}: its creator refused the fields ({told})")


def _missing(registry: Any) -> str:
    have = [(str(c.name), f"{c.plugin_namespace}::{c.name} version {c.plugin_version}") for c in registry.all_creators]
    wanted = f"{NAMESPACE}::{OP_TYPE} version {VERSION}"
    alike = set(get_close_matches(OP_TYPE, [name for name, _ in have], n=3, cutoff=0.6))
    near = [title for name, title in have if name in alike]
    hint = f"; near: {', '.join(near)}" if near else f"; it has {len(have)} others, none alike"
    return f"plugin registry: no {wanted}{hint}"
