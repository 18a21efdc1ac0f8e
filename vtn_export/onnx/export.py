"""PyTorch → ONNX: the backbone and the temporal part as torch exports them, and their composition.

`full` is put together from the two parts' graphs, so its nodes, names and weights are theirs and
the three ways to infer compute the same.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.export import Dim

from vtn_export.errors import ExportError
from vtn_export.model.attention import exporting
from vtn_export.model.vtn import RewrittenVTN
from vtn_export.onnx.names import name_by_module
from vtn_export.onnx.op import IR_VERSION, OP_DOMAIN, OP_TYPE, OP_VERSION, OPSET, attach_function
from vtn_export.spec import (
    FEATURES,
    FRAME_INDEX,
    FRAMES,
    LENGTHS,
    LOGITS,
    GraphSpec,
    InputType,
    Part,
    TensorSpec,
    graph_spec,
)

# Traced shapes: every dimension differs from every other and from 0 and 1, so none is taken for another.
_TRACE_BATCH, _TRACE_FRAMES, _TRACE_CHUNK = 2, 41, 3

_ONNX_TYPE = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


class _Backbone(nn.Module):
    def __init__(self, model: RewrittenVTN) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        return self.model.frame_features(frames)


class _Temporal(nn.Module):
    def __init__(self, model: RewrittenVTN) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        return self.model.classify(features, frame_index, lengths)


def spec_of(model: RewrittenVTN, part: Part, input_type: InputType) -> GraphSpec:
    """The interface that `model`'s graph of this part has."""
    config = model.config
    assert config.hidden_dim is not None
    return graph_spec(
        part,
        crop_size=config.preprocessing.crop_size,
        feature_dim=config.hidden_dim,
        num_classes=config.num_classes,
        input_type=input_type,
    )


def export_backbone(model: RewrittenVTN, input_type: InputType) -> onnx.ModelProto:
    """frames → features, float32, chunk dynamic. Raises ExportError when torch cannot export the backbone."""
    size = model.config.preprocessing.crop_size
    frames = (
        torch.zeros(_TRACE_CHUNK, size, size, 3, dtype=torch.uint8)
        if input_type == "uint8"
        else torch.zeros(_TRACE_CHUNK, 3, size, size)
    )
    program = _export(_Backbone(model), {FRAMES: frames}, {FRAMES: {0: Dim("chunk")}})
    return _finish(program, "backbone", spec_of(model, "backbone", input_type))


def export_temporal(model: RewrittenVTN) -> onnx.ModelProto:
    """features, frame_index, lengths → logits, float32, batch and frames dynamic."""
    width = model.config.hidden_dim
    batch, frames = Dim("batch"), Dim("frames")
    inputs = {
        FEATURES: torch.zeros(_TRACE_BATCH, _TRACE_FRAMES, width or 0),
        FRAME_INDEX: torch.zeros(_TRACE_BATCH, _TRACE_FRAMES, dtype=torch.int32),
        LENGTHS: torch.ones(_TRACE_BATCH, dtype=torch.int32),
    }
    axes = {FEATURES: {0: batch, 1: frames}, FRAME_INDEX: {0: batch, 1: frames}, LENGTHS: {0: batch}}
    program = _export(_Temporal(model), inputs, axes)
    return _finish(program, "temporal", spec_of(model, "temporal", "uint8"))


def compose_full(backbone: onnx.ModelProto, temporal: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """frames, frame_index, lengths → logits: the two parts joined; frames are folded into the chunk axis.

    uint8 frames are cast before they are folded: TensorRT takes uint8 only as the input of a Cast.
    """
    frames = spec.inputs[0]
    width = _dims(temporal.graph.input[0])[-1]
    per_frame, features = "full/Reshape.output", "full/backbone.output"

    def ints(name: str, values: list[int]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, dtype=np.int64), name)

    constants = [
        ints("full/fold.shape", [-1, *(axis for axis in frames.shape[2:] if isinstance(axis, int))]),
        ints("full/width", [int(width)]),
    ]
    casts = [node for node in backbone.graph.node if node.op_type == "Cast" and node.input[0] == FRAMES]
    pixels = casts[0].output[0] if casts else FRAMES
    fold = helper.make_node("Reshape", [pixels, "full/fold.shape"], [per_frame], name="full/Reshape")
    per_frame_names = {FRAMES: per_frame, FEATURES: features, **{cast.output[0]: per_frame for cast in casts}}
    unfold = [
        helper.make_node("Shape", [FRAMES], ["full/Shape.output"], name="full/Shape", start=0, end=2),
        helper.make_node(
            "Concat", ["full/Shape.output", "full/width"], ["full/Concat.output"], name="full/Concat", axis=0
        ),
        helper.make_node("Reshape", [features, "full/Concat.output"], [FEATURES], name="full/Reshape_1"),
    ]
    nodes = [
        *casts[:1],
        fold,
        *_renamed([node for node in backbone.graph.node if node not in casts], per_frame_names),
        *unfold,
        *temporal.graph.node,
    ]
    weights = [*constants, *backbone.graph.initializer, *temporal.graph.initializer]
    graph = helper.make_graph(nodes, "full", _values(spec.inputs), _values(spec.outputs), initializer=weights)
    model = helper.make_model(graph, opset_imports=list(temporal.opset_import), ir_version=IR_VERSION)
    return attach_function(model)


def _renamed(nodes: list[onnx.NodeProto], names: dict[str, str]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        if any(name in names for name in (*node.input, *node.output)):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [names.get(name, name) for name in node.input]
            copy.output[:] = [names.get(name, name) for name in node.output]
            yield copy
        else:
            yield node


def _export(module: nn.Module, inputs: dict[str, Tensor], axes: dict[str, dict[int, Dim]]) -> onnx.ModelProto:
    try:
        with exporting(), torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                dynamic_shapes=tuple(axes.values()),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch raises many kinds here; what matters is the module that it names
        reason = " ".join(str(error).split())
        raise ExportError(f"torch cannot export {type(module).__name__.strip('_').lower()}: {reason[:400]}") from error
    assert program is not None
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its steps and warns about axis names that are shared on purpose."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _finish(model: onnx.ModelProto, part: Part, spec: GraphSpec) -> onnx.ModelProto:
    """Names, axes, versions; and proof that what the product relies on is in the graph."""
    graph = model.graph
    output = spec.outputs[0].name
    _rename_output(graph, output)
    name_by_module(model, part)
    _drop_unused(graph)
    del graph.input[:], graph.output[:]
    graph.input.extend(_values(spec.inputs))
    graph.output.extend(_values(spec.outputs))
    graph.name = part
    nested = [node.name for node in graph.node if any(a.HasField("g") for a in node.attribute)]
    if nested:
        raise ExportError(
            f"{part}: data-dependent control flow in the exported graph ({nested[0]}); remove it from the backbone"
        )
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("", OPSET))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "vtn-export", ""
    del model.functions[:]
    if any(node.op_type == OP_TYPE for node in graph.node):
        model.opset_import.append(helper.make_opsetid(OP_DOMAIN, OP_VERSION))
    return attach_function(model)


def _rename_output(graph: onnx.GraphProto, name: str) -> None:
    old = graph.output[0].name
    for node in graph.node:
        node.input[:] = [name if value == old else value for value in node.input]
        node.output[:] = [name if value == old else value for value in node.output]
    graph.output[0].name = name


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [initializer for initializer in graph.initializer if initializer.name in used]
    if len(kept) != len(graph.initializer):
        kept_copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept_copies)


def _values(tensors: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(t.name, _ONNX_TYPE[t.dtype], list(t.shape)) for t in tensors]


def _dims(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


__all__ = ["LOGITS", "compose_full", "export_backbone", "export_temporal", "spec_of"]
