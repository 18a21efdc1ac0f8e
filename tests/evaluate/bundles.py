"""Bundles with something wrong in them: a graph changed after the export, its hash made right again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from vtn_export.bundle import MANIFEST
from vtn_export.spec import Array, Part
from vtn_export.untrusted import sha256


def changed(bundle: Path, out: Path, part: Part, change: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of a bundle with one graph changed."""
    shutil.copytree(bundle, out)
    path = out / f"{part}.onnx"
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    manifest = json.loads((out / MANIFEST).read_text())
    manifest["files"][path.name] = sha256(path)
    (out / MANIFEST).write_text(json.dumps(manifest))
    return out


def scale_weight(node: str, factor: float) -> Callable[[onnx.ModelProto], None]:
    """Multiplies a node's first constant (NaN makes it all NaN)."""

    def change(model: onnx.ModelProto) -> None:
        inputs = next(n.input for n in model.graph.node if n.name == node)
        weight = next(tensor for tensor in model.graph.initializer if tensor.name in inputs)
        values: Array = numpy_helper.to_array(weight) * np.float32(factor)
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))

    return change


def set_attribute(node: str, name: str, value: float) -> Callable[[onnx.ModelProto], None]:
    """Sets a float attribute of a node."""

    def change(model: onnx.ModelProto) -> None:
        found = next(n for n in model.graph.node if n.name == node)
        next(a for a in found.attribute if a.name == name).f = value

    return change
