"""Typed graphs: fp32 → fp16 or bf16 by rule, and the float32 copy that shows what rounding does to them.

`to_precision` types a whole float32 graph. LayerNormalization, Softmax, pixel normalisation and
what makes a graph's output stay float32, and so does any node with a constant the type cannot hold.

`rounding_copy` is the witness: ONNX Runtime's CPU kernels compute fp16 in float32, so a graph that
overflows passes there, and they have no bf16. The copy computes in float32 and casts to the type
and back after every typed node: it rounds and overflows as the type does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vtn_export.errors import ExportError
from vtn_export.onnx.op import OP_DOMAIN, OPSET, attach_function
from vtn_export.spec import Array, Precision

_ONNX_TYPE: dict[Precision, int] = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
NUMPY_TYPE: dict[Precision, np.dtype[np.generic]] = {
    "fp32": np.dtype(np.float32),
    "fp16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
_TYPED = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

# Opset 22 is the first whose Conv and pooling take bfloat16; nothing else in our graphs changed since 20.
_BF16_OPSET = 22

# Computed in float32 in every precision: sums of squares and exponentials leave 16-bit ranges first.
FLOAT32_OPS = frozenset({"LayerNormalization", "Softmax", "ReduceMean", "ReduceSum", "ReduceL2", "Exp", "Pow"})
FLOAT32_SCOPES = ("preprocess/",)

ASKED_FOR = "asked for"  # the reason of a node that the caller keeps

# Move values without changing them: rounding them again would say nothing.
_EXACT_OPS = frozenset(
    {
        "Reshape", "Transpose", "Slice", "Gather", "Concat", "Split", "Squeeze", "Unsqueeze", "Expand",
        "Flatten", "Identity", "Where", "MaxPool", "Relu", "Neg", "Abs", "Pad", "Tile", "GatherND",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Kept:
    """A node that stays float32 in a typed graph, and why."""

    node: str
    reason: str


def max_of(precision: Precision) -> float:
    """The largest finite value of the type."""
    dtype = NUMPY_TYPE[precision]
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def ulp(value: float, precision: Precision) -> float:
    """The distance between neighbours of the type at |value|."""
    bits = {"fp32": 23, "fp16": 10, "bf16": 7}[precision]
    smallest = {"fp32": -126, "fp16": -14, "bf16": -126}[precision]
    exponent = max(int(np.floor(np.log2(abs(value)))) if value else smallest, smallest)
    return float(2.0 ** (exponent - bits))


def round_to(array: Array, precision: Precision) -> Array:
    """float32 values rounded to the type, as float32 (beyond its range: infinity)."""
    with np.errstate(over="ignore"):
        return array.astype(NUMPY_TYPE[precision]).astype(np.float32)


def to_precision(
    model: onnx.ModelProto, precision: Precision, keep_fp32: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[Kept]]:
    """A typed copy of a float32 graph, and the nodes that stayed float32 with the reason.

    keep_fp32: node names that stay float32 besides. Inputs and outputs keep their types; a Cast
    stands wherever two types meet. Raises ExportError for a name in keep_fp32 that no node has.
    """
    if precision == "fp32":
        return model, []
    unknown = set(keep_fp32) - {node.name for node in model.graph.node}
    if unknown:
        raise ExportError(f"keep-fp32: no node {sorted(unknown)[0]!r} in graph {model.graph.name}")
    return _Typer(model, precision, frozenset(keep_fp32)).run()


class _Typer:
    """One pass over the nodes in order; every float tensor has a home type, casts are made on demand."""

    def __init__(self, model: onnx.ModelProto, precision: Precision, keep: frozenset[str]) -> None:
        self.source, self.precision, self.keep = model, precision, keep
        self.target = _ONNX_TYPE[precision]
        self.types = tensor_types(model)
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.outputs = {value.name for value in model.graph.output}
        self.nodes: list[onnx.NodeProto] = []
        self.made: dict[tuple[str, int], str] = {}  # (tensor, type) -> name of its cast or converted weight
        self.new_weights: dict[str, TensorProto] = {}
        self.home: dict[str, int] = {}

    def run(self) -> tuple[onnx.ModelProto, list[Kept]]:
        kept: list[Kept] = []
        for node in self.source.graph.node:
            reason = self._reason_for_float32(node)
            if reason:
                kept.append(Kept(node.name, reason))
            self._place(node, TensorProto.FLOAT if reason else self.target)
        graph = helper.make_graph(
            self.nodes,
            self.source.graph.name,
            list(self.source.graph.input),
            list(self.source.graph.output),
            initializer=list(self.new_weights.values()),
        )
        opset = _BF16_OPSET if self.precision == "bf16" else OPSET
        opsets = [
            helper.make_opsetid(o.domain, opset if o.domain == "" else o.version) for o in self.source.opset_import
        ]
        typed = helper.make_model(
            graph, opset_imports=opsets, ir_version=self.source.ir_version, producer_name=self.source.producer_name
        )
        return attach_function(typed), kept

    def _reason_for_float32(self, node: onnx.NodeProto) -> str:
        if not any(self._is_float(name) for name in node.output):
            return ""
        if node.op_type in FLOAT32_OPS:
            return f"{node.op_type} is computed in float32"
        if node.name.startswith(FLOAT32_SCOPES):
            return "pixel normalisation"
        if any(name in self.outputs for name in node.output):
            return "makes an output of the graph"
        if node.name in self.keep:
            return ASKED_FOR
        limit = max_of(self.precision)
        for name in node.input:
            tensor = self.weights.get(name)
            if tensor is not None and tensor.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(tensor)
                largest = float(np.abs(values).max()) if values.size else 0.0
                if largest > limit:
                    return f"constant of magnitude {largest:.3g} is beyond {self.precision}"
        return ""

    def _is_float(self, name: str) -> bool:
        return self.types.get(name) == TensorProto.FLOAT

    def _place(self, node: onnx.NodeProto, dtype: int) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        floats = any(self._is_float(name) for name in node.output)
        is_cast = node.op_type == "Cast"
        if is_cast and floats and dtype != TensorProto.FLOAT:
            for attribute in copy.attribute:
                if attribute.name == "to":
                    attribute.i = dtype
        for position, name in enumerate(node.input):
            if not name:
                continue
            if not self._is_float(name):
                if name in self.weights:
                    self.new_weights[name] = self.weights[name]
                continue
            # a node without float outputs (Shape, Less) reads its input as it stands
            wanted = dtype if floats and not is_cast else self.home.get(name, TensorProto.FLOAT)
            if node.op_type == "QuantizeLinear":  # its scale has the type of what it divides
                wanted = self.home.get(node.input[0], TensorProto.FLOAT)
            copy.input[position] = self._as(name, wanted)
        self.nodes.append(copy)
        for name in node.output:
            if self._is_float(name):
                self.home[name] = dtype

    def _as(self, name: str, dtype: int) -> str:
        if name in self.weights:
            return self._weight(name, dtype)
        home = self.home.get(name, TensorProto.FLOAT)
        if home == dtype:
            return name
        key = (name, dtype)
        if key not in self.made:
            suffix = "fp32" if dtype == TensorProto.FLOAT else self.precision
            self.made[key] = f"{name}.{suffix}"
            self.nodes.append(
                helper.make_node("Cast", [name], [self.made[key]], name=f"{name}/Cast.{suffix}", to=dtype)
            )
        return self.made[key]

    def _weight(self, name: str, dtype: int) -> str:
        if dtype == TensorProto.FLOAT:
            self.new_weights[name] = self.weights[name]
            return name
        typed = f"{name}.{self.precision}"
        if typed not in self.new_weights:
            values = numpy_helper.to_array(self.weights[name]).astype(NUMPY_TYPE[self.precision])
            tensor = TensorProto(name=typed, data_type=dtype, raw_data=values.tobytes())
            tensor.dims.extend(values.shape)
            self.new_weights[typed] = tensor
        return typed


def rounding_copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 copy of a typed graph that casts to the type and back after every typed node.

    Runs on any runtime that has float32 and Cast. A float32 graph comes back as it is.
    """
    types = tensor_types(model)
    if not any(t in _TYPED for t in types.values()):
        return model
    weights = []
    for tensor in model.graph.initializer:
        if tensor.data_type in _TYPED:
            values = _typed_array(tensor).astype(np.float32)
            weights.append(numpy_helper.from_array(values, tensor.name))
        else:
            weights.append(tensor)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        is_cast = node.op_type == "Cast"
        rounded = [name for name in node.output if types.get(name) in _TYPED]
        if is_cast and rounded:
            for attribute in copy.attribute:
                if attribute.name == "to":
                    attribute.i = TensorProto.FLOAT
        if node.op_type in _EXACT_OPS and node.domain == "":
            rounded = []
        nodes.append(copy)
        for name in rounded:
            position = list(copy.output).index(name)
            raw, low = f"{name}.unrounded", f"{name}.rounded"
            copy.output[position] = raw
            to = types[name]
            nodes.append(helper.make_node("Cast", [raw], [low], name=f"{name}/round", to=to))
            nodes.append(helper.make_node("Cast", [low], [name], name=f"{name}/back", to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes, model.graph.name, list(model.graph.input), list(model.graph.output), initializer=weights
    )
    copy_model = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    copy_model.functions.extend(model.functions)
    return copy_model


def precision_of(model: onnx.ModelProto) -> Precision:
    """The type most of a graph's weights have: fp32, fp16 or bf16; int8 or fp8 where any are quantized."""
    found = {tensor.data_type for tensor in model.graph.initializer}
    if TensorProto.FLOAT8E4M3FN in found:
        return "fp8"
    if TensorProto.INT8 in found:
        return "int8"
    if TensorProto.FLOAT16 in found:
        return "fp16"
    return "bf16" if TensorProto.BFLOAT16 in found else "fp32"


def tensor_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by ONNX's own inference (weights left out of it for speed)."""
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(_without_weights(model))
    inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=False)
    values: Iterable[onnx.ValueInfoProto] = (
        *inferred.graph.value_info,
        *inferred.graph.input,
        *inferred.graph.output,
    )
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types.update({tensor.name: tensor.data_type for tensor in model.graph.initializer})
    for node in model.graph.node:
        if node.domain == OP_DOMAIN:  # one data input, one output of its type
            types.setdefault(node.output[0], types.get(node.input[0], TensorProto.FLOAT))
        missing = [name for name in node.output if name and not types.get(name)]
        if missing:
            raise ExportError(f"graph {model.graph.name}: the type of {missing[0]} cannot be inferred")
    return types


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with large weights turned into inputs: inference needs their types alone."""
    graph = onnx.GraphProto()
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 1024:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        else:
            graph.initializer.append(tensor)
    skeleton = helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    skeleton.functions.extend(model.functions)
    return skeleton


def _typed_array(tensor: TensorProto) -> Array:
    precision: Precision = "fp16" if tensor.data_type == TensorProto.FLOAT16 else "bf16"
    return np.frombuffer(tensor.raw_data, dtype=NUMPY_TYPE[precision]).reshape(tuple(tensor.dims))
