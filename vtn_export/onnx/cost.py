"""How much work a graph is at given sizes: FLOPs and bytes, counted node by node. Nothing is run.

Shapes are resolved forwards from the sizes of the free axes: what the graph computes about shapes is
evaluated, everything else goes through ONNX's own shape inference a node at a time. FLOPs are those of
products, two a multiply-add, as the field counts them (torch's FlopCounterMode gives the same); element-wise
work shows in the bytes. The custom op is counted by its contract (docs/op.md): every row against the columns
that it sees, whatever blocks an implementation works in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from vtn_export.errors import ExportError
from vtn_export.onnx.op import OP_DOMAIN, OP_TYPE
from vtn_export.spec import Array, GraphSpec

# Arrays up to this size are followed by value: they are shapes, positions and masks of one sample.
_MAX_FOLDED = 1 << 16
# Another name for the same memory: no bytes move.
_VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size", "Constant"})

Shape = tuple[int, ...]


@dataclass(frozen=True)
class NodeCost:
    """One node: products' FLOPs, and bytes of its inputs and outputs, each moved once."""

    name: str
    op: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class GraphCost:
    """One call of a graph.

    compulsory_bytes: weights, inputs and outputs, each moved once; no implementation moves fewer.
    traffic_bytes: every node's inputs and outputs, as if nothing were fused or kept in a cache.
    """

    flops: int
    weight_bytes: int
    compulsory_bytes: int
    traffic_bytes: int
    nodes: tuple[NodeCost, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "flops": self.flops,
            "weight_bytes": self.weight_bytes,
            "compulsory_bytes": self.compulsory_bytes,
            "traffic_bytes": self.traffic_bytes,
            "flops_by_op": self.flops_by_op(),
        }

    def flops_by_op(self) -> dict[str, int]:
        """Operations with products, the most expensive first."""
        totals: dict[str, int] = {}
        for node in self.nodes:
            if node.flops:
                totals[node.op] = totals.get(node.op, 0) + node.flops
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def graph_cost(model: onnx.ModelProto | Path, spec: GraphSpec, sizes: Mapping[str, int]) -> GraphCost:
    """Cost of one call. sizes: free axis → size (`{"batch": 1, "frames": 250}`, `{"chunk": 16}`).

    Raises ExportError where a node's shape cannot be resolved.
    """
    if isinstance(model, Path):
        model = onnx.load(model, load_external_data=False)
    walk = _Walk(model)
    feeds = 0
    for tensor in spec.inputs:
        shape = tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
        walk.types[tensor.name] = helper.make_tensor_type_proto(kind, shape)
        feeds += _bytes(walk.types[tensor.name])
    nodes = tuple(cost for node in model.graph.node if (cost := walk.visit(node)) is not None)
    results = sum(_bytes(walk.types[output.name]) for output in model.graph.output)
    weights = sum(
        _bytes(walk.types[initializer.name])
        for initializer in model.graph.initializer
        if math.prod(initializer.dims) > 1
    )
    return GraphCost(
        flops=sum(node.flops for node in nodes),
        weight_bytes=weights,
        compulsory_bytes=weights + feeds + results,
        traffic_bytes=sum(node.bytes for node in nodes),
        nodes=nodes,
    )


def seen_columns(
    tokens: int, length: int, *, one_sided_window: int, dilation: int, num_global_tokens: int, causal: bool
) -> int:
    """Σ |C(i)| over the valid rows of one sample: how many keys all queries see together (docs/op.md)."""
    length = max(min(tokens, length), 0)
    rows = np.arange(length, dtype=np.int64)
    columns = length * min(num_global_tokens, length)
    for k in range(-one_sided_window, 1 if causal else one_sided_window + 1):
        key = rows + k * dilation
        columns += int(((key >= num_global_tokens) & (key < length)).sum())
    return columns


class _Walk:
    """Types of all tensors and values of the small ones, filled in the order of the nodes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.opsets = {entry.domain or "": entry.version for entry in model.opset_import}
        self.imports = list(model.opset_import)
        self.ir_version = model.ir_version
        self.types: dict[str, onnx.TypeProto] = {}
        self.values: dict[str, Array] = {}
        for initializer in model.graph.initializer:
            self.types[initializer.name] = helper.make_tensor_type_proto(initializer.data_type, initializer.dims)
            small = math.prod(initializer.dims) <= _MAX_FOLDED
            if small and initializer.data_location != TensorProto.EXTERNAL:
                self.values[initializer.name] = numpy_helper.to_array(initializer)

    def visit(self, node: onnx.NodeProto) -> NodeCost | None:
        """Give the outputs their types; the node's cost, None for what only computes shapes."""
        if node.op_type == OP_TYPE and node.domain == OP_DOMAIN:
            batch, tokens, width = self.shape(node.input[0])
            kind = self.types[node.input[0]].tensor_type.elem_type
            self.types[node.output[0]] = helper.make_tensor_type_proto(kind, (batch, tokens, width // 3))
        elif self._fold(node):
            return None
        else:
            self._infer(node)
        flops = _FLOPS[node.op_type](self, node) if node.op_type in _FLOPS else 0
        moved = 0 if node.op_type in _VIEWS else sum(self._size(name) for name in (*node.input, *node.output))
        return NodeCost(node.name, node.op_type, flops, moved)

    def shape(self, name: str) -> Shape:
        return tuple(int(dim.dim_value) for dim in self.types[name].tensor_type.shape.dim)

    def _size(self, name: str) -> int:
        return _bytes(self.types[name]) if name in self.types else 0

    def _fold(self, node: onnx.NodeProto) -> bool:
        """Compute the outputs where every input is known by value (or the node asks for a shape)."""
        if node.op_type == "Shape":
            slicing = {attribute.name: attribute.i for attribute in node.attribute}
            value = np.array(self.shape(node.input[0]), dtype=np.int64)
            self._know(node.output[0], value[slicing.get("start", 0) : slicing.get("end", len(value))])
            return True
        if node.op_type == "Size":
            self._know(node.output[0], np.array(math.prod(self.shape(node.input[0])), dtype=np.int64))
            return True
        if not all(name in self.values for name in node.input if name) or node.domain not in ("", "ai.onnx"):
            return False
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            return False
        if self._outgrows(node):
            return False
        feeds = {name: self.values[name] for name in node.input if name}
        try:
            graph = helper.make_graph(
                [node],
                "fold",
                [
                    helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                    for n, v in feeds.items()
                ],
                [onnx.ValueInfoProto(name=name) for name in node.output if name],
            )
            imports = [entry for entry in self.imports if entry.domain in ("", "ai.onnx")]
            single = helper.make_model(graph, opset_imports=imports, ir_version=self.ir_version)
            outputs = ReferenceEvaluator(single).run(None, feeds)
        except Exception:  # an op without a reference: its shape is still inferred
            return False
        for name, value in zip([name for name in node.output if name], outputs, strict=True):
            self._know(name, np.asarray(value))
        return True

    def _outgrows(self, node: onnx.NodeProto) -> bool:
        """Whether the outputs would be large: weights that are only cast or laid out anew, masks of long videos."""
        sizes = [self.values[name].size for name in node.input if name]
        if node.op_type in ("Expand", "ConstantOfShape", "Tile"):
            wanted = self.values[node.input[-1]]
            return int(np.prod(np.maximum(wanted.astype(np.float64), 1))) * max(sizes[0], 1) > _MAX_FOLDED
        if node.op_type == "Range":
            start, limit, delta = (float(self.values[name]) for name in node.input)
            return (limit - start) / delta > _MAX_FOLDED
        return sum(sizes) > _MAX_FOLDED

    def _know(self, name: str, value: Array) -> None:
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        if value.size <= _MAX_FOLDED:
            self.values[name] = value

    def _infer(self, node: onnx.NodeProto) -> None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets.get(domain, 1), domain)
            found = shape_inference.infer_node_outputs(
                schema,
                node,
                {name: self.types[name] for name in node.input if name},
                {name: numpy_helper.from_array(self.values[name]) for name in node.input if name in self.values},
                opset_imports=self.imports,
                ir_version=self.ir_version,
            )
        except (KeyError, RuntimeError, shape_inference.InferenceError, onnx.defs.SchemaError) as error:
            raise ExportError(f"{_label(node)}: its shape cannot be told ({_first_line(error)})") from None
        for name in node.output:
            if name:
                tensor = found[name].tensor_type if name in found else None
                if (
                    tensor is None
                    or not tensor.HasField("shape")
                    or not all(d.HasField("dim_value") for d in tensor.shape.dim)
                ):
                    raise ExportError(f"{_label(node)}: its shape cannot be told from its inputs' shapes")
                self.types[name] = found[name]


def _matmul(walk: _Walk, node: onnx.NodeProto) -> int:
    return 2 * math.prod(walk.shape(node.output[0])) * walk.shape(node.input[0])[-1]


def _gemm(walk: _Walk, node: onnx.NodeProto) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    inner = walk.shape(node.input[0])[0 if transposed else 1]
    return 2 * math.prod(walk.shape(node.output[0])) * inner


def _conv(walk: _Walk, node: onnx.NodeProto, weight: int = 1) -> int:
    # the weight is [out, in / groups, *kernel]: one product a tap for every output element
    return 2 * math.prod(walk.shape(node.output[0])) * math.prod(walk.shape(node.input[weight])[1:])


def _conv_transpose(walk: _Walk, node: onnx.NodeProto) -> int:
    return 2 * math.prod(walk.shape(node.input[0])) * math.prod(walk.shape(node.input[1])[1:])


def _einsum(walk: _Walk, node: onnx.NodeProto) -> int:
    (equation,) = [a.s.decode() for a in node.attribute if a.name == "equation"]
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        raise ExportError(f"{_label(node)}: an Einsum of {equation} is not counted")
    sizes = {
        letter: size
        for term, name in zip(terms, node.input, strict=True)
        for letter, size in zip(term, walk.shape(name), strict=True)
    }
    return 2 * math.prod(sizes.values())


def _band(walk: _Walk, node: onnx.NodeProto) -> int:
    """q·k and p·v of every row with the columns that it sees; all samples at their full length."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    batch, tokens, width = walk.shape(node.output[0])
    columns = seen_columns(
        tokens,
        tokens,
        one_sided_window=attributes["one_sided_window"],
        dilation=attributes["dilation"],
        num_global_tokens=attributes["num_global_tokens"],
        causal=bool(attributes["causal"]),
    )
    return 2 * 2 * batch * columns * width


_FLOPS: dict[str, Callable[[_Walk, onnx.NodeProto], int]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "ConvInteger": _conv,
    "QLinearConv": lambda walk, node: _conv(walk, node, 3),
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    OP_TYPE: _band,
}


def _bytes(kind: onnx.TypeProto) -> int:
    tensor = kind.tensor_type
    packed = tensor.elem_type in (TensorProto.INT4, TensorProto.UINT4)
    bits = 4 if packed else 8 * int(helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
    return -(-math.prod(int(dim.dim_value) for dim in tensor.shape.dim) * bits // 8)


def _label(node: onnx.NodeProto) -> str:
    return f"node {node.name or '?'} ({node.op_type})"


def _first_line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
