"""Layers of a built engine, from its inspector: what the library made of the graph. Needs the GPU."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

from vtn_export.bundle import Bundle
from vtn_export.errors import VtnError
from vtn_export.trt import api
from vtn_export.trt.gpu import find_gpu
from vtn_export.trt.library import find_library
from vtn_export.trt.plugin_form import load_library
from vtn_export.trt.session import deserialize, installed_version
from vtn_export.trt.sidecar import Sidecar, machine_problems


def layers_if_possible(record: Sidecar, bundle: Bundle) -> list[Any] | None:
    """The engine's layers as the inspector gives them (name strings or objects); None where it cannot be loaded."""
    gpu = find_gpu()
    if gpu is None:
        return None
    plugin = find_library(None, gpu.compute_capability, bundle) if record.plugin is not None else None
    if machine_problems(record, gpu, installed_version, plugin):
        return None
    try:
        for flavor in api.FLAVORS:
            if flavor == record.flavor:
                return _layers(api.load(flavor), record, bundle, None if plugin is None else str(plugin))
    except VtnError:
        return None
    return None


def _layers(library: api.Api, record: Sidecar, bundle: Bundle, plugin: str | None) -> list[Any]:
    trt = library.trt
    errors: deque[str] = deque(maxlen=4)
    logger = library.logger(lambda severity, message: errors.append(message) if severity == "error" else None)
    if plugin is not None:
        load_library(trt.get_plugin_registry(), plugin)
    runtime = trt.Runtime(logger)
    engine = deserialize(runtime, bundle, record, errors)
    inspector = engine.create_engine_inspector()
    return parse_layers(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def parse_layers(text: str) -> list[Any]:
    """The layer list of the inspector's JSON; [] for what is not of that form."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError:
        return []
    layers = data.get("Layers", []) if isinstance(data, dict) else []
    return layers if isinstance(layers, list) else []
