"""Tensors of a TensorRT engine, by Polygraphy's marked outputs. Needs an NVIDIA GPU; has never run on one.

The engine is built for the looking alone: the typed graph with every matched tensor marked as an output,
which also keeps TensorRT from fusing across it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx

from vtn_export.deps import is_installed, require
from vtn_export.evaluate.forms import Form, typed_model
from vtn_export.runtime.golden import bundle_samples
from vtn_export.spec import Array, Part
from vtn_export.trt import typed
from vtn_export.trt.gpu import require_gpu


def _choose_flavor() -> None:
    """Polygraphy takes TensorRT-RTX only if it is told before its first import."""
    if is_installed("tensorrt_rtx") and not is_installed("tensorrt"):
        os.environ.setdefault("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    require("polygraphy")


def marked_network(model: onnx.ModelProto, outputs: Sequence[str]) -> Any:
    """A Polygraphy loader of the network with these tensors as its outputs."""
    _choose_flavor()
    from polygraphy.backend.trt import ModifyNetworkOutputs, NetworkFromOnnxBytes

    return ModifyNetworkOutputs(
        NetworkFromOnnxBytes(model.SerializeToString(), strongly_typed=True), outputs=list(outputs)
    )


def marked_engine(
    model: onnx.ModelProto, outputs: Sequence[str], shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]]
) -> Any:
    """A Polygraphy loader of the engine's bytes, built when it is called. shapes: input → (smallest, largest)."""
    _choose_flavor()
    from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, Profile

    profile = Profile()
    for name, (low, high) in shapes.items():
        profile.add(name, min=tuple(low), opt=tuple(high), max=tuple(high))
    return EngineBytesFromNetwork(marked_network(model, outputs), config=CreateConfig(profiles=[profile]))


@contextmanager
def engine_tensors(
    form: Form, part: Part, _graph: onnx.ModelProto, tensors: Sequence[str]
) -> Iterator[Callable[[Mapping[str, Array]], dict[str, Array]]]:
    """Runs the marked engine. Raises GpuError, MissingDependencyError."""
    require_gpu()
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    model = engine_graph(form, part)
    engine = EngineFromBytes(marked_engine(model, tensors, golden_shapes(form, part)))
    with TrtRunner(engine) as runner:

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            outputs = runner.infer(dict(inputs))
            return {name: np.asarray(outputs[name]).astype(np.float32) for name in tensors}

        yield run


def engine_graph(form: Form, part: Part) -> onnx.ModelProto:
    """The typed graph that the engine of this form is built from (the portable form)."""
    if form.precision(part) == form.bundle.manifest.precision:
        return typed.load(form.bundle.graph_path(part))
    return typed_model(form.bundle, part, form.precision(part))


def golden_shapes(form: Form, part: Part) -> dict[str, tuple[list[int], list[int]]]:
    """input → (smallest, largest shape) over the golden samples, frames one at a time included."""
    shapes: dict[str, tuple[list[int], list[int]]] = {}
    for sample in bundle_samples(form.bundle, part):
        for name, value in sample.inputs.items():
            shape = list(value.shape)
            if part == "backbone":
                shape[0] = 1
            low, high = shapes.get(name, (shape, shape))
            shapes[name] = (np.minimum(low, shape).tolist(), np.maximum(high, value.shape).tolist())
    return shapes
