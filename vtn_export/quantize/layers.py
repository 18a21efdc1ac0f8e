"""Which nodes of a graph are quantized, and why the others stay 16 bits.

The matrix products and convolutions of the backbone and of the temporal encoder that have constant weights; in
FP8 also the two products of a backbone's attention. The custom op, the global rows' attention, the head,
residuals, normalisations and softmax are left alone. Sizes that TensorRT has no fast kernel for are those that
NVIDIA's own quantizer leaves out (ModelOpt 0.47, onnx/quantization/graph_utils.py).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from vtn_export.errors import UsageError
from vtn_export.onnx.precision import Kept
from vtn_export.spec import QuantizedPrecision

EXCLUDED = "excluded by --exclude"

_MIN_SIZE = 16  # of a product's inner and outer size, and of an FP8 convolution's channels
_MAX_FP8_TAPS = 32  # weights of one filter and channel
_SCOPES = ("backbone.", "backbone/", "temporal_encoder.")
_GLOBAL_ROWS = re.compile(r"temporal_encoder\.layer\.\d+\.attention/")
_BETWEEN = frozenset({"Mul", "Div", "Add", "Cast"})  # what may stand between attention's product and its softmax


@dataclass(frozen=True)
class Weight:
    """A constant input: its place among the node's inputs, its tensor, and the axis of its output channels."""

    position: int
    tensor: str
    axis: int


@dataclass(frozen=True)
class Layer:
    """What is quantized or left at 16 bits as one: a node with its weight, or attention's two products.

    activations: (node, place among its inputs) of what gets Q/DQ at run time.
    """

    name: str
    op: str
    activations: tuple[tuple[str, int], ...]
    weight: Weight | None


def find_layers(
    model: onnx.ModelProto, precision: QuantizedPrecision, exclude: Sequence[str] = ()
) -> tuple[list[Layer], list[Kept]]:
    """The layers to quantize, in graph order, and the products and convolutions that are not, each with its reason.

    exclude: names of nodes or modules, shell patterns allowed.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    layers: list[Layer] = []
    kept: list[Kept] = []
    attention = _attention(model) if precision == "fp8" else {}
    taken = {node for layer in attention.values() for node, _ in layer.activations}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv") or node.domain not in ("", "ai.onnx"):
            continue
        weight = _weight(node, weights)
        if node.name in attention:
            layer, reason = attention[node.name], ""
        elif node.name in taken:
            continue  # attention's second product: its layer stands at the first
        else:
            layer = Layer(node.name, node.op_type, ((node.name, 0),), weight)
            reason = _reason_against(node, weight, weights, precision)
        if not reason and any(_matches(name, layer, pattern) for pattern in exclude for name in (layer.name,)):
            reason = EXCLUDED
        if reason:
            kept.append(Kept(layer.name, reason))
        else:
            layers.append(layer)
    return layers, kept


def check_excluded(models: Sequence[onnx.ModelProto], exclude: Sequence[str]) -> None:
    """Raises UsageError for a pattern that no product or convolution of any graph answers to."""
    for pattern in exclude:
        nodes = [n for model in models for n in model.graph.node if n.op_type in ("MatMul", "Gemm", "Conv")]
        if not any(_matches(n.name, Layer(n.name, n.op_type, ((n.name, 0),), None), pattern) for n in nodes):
            raise UsageError(f"--exclude: no matrix product or convolution is named {pattern!r}; names: inspect --json")


def _matches(name: str, layer: Layer, pattern: str) -> bool:
    names = {name, *(node for node, _ in layer.activations)}
    return any(
        fnmatch.fnmatchcase(one, pattern) or one.startswith((f"{pattern}.", f"{pattern}/")) for one in sorted(names)
    )


def _weight(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> Weight | None:
    name = node.input[1] if len(node.input) > 1 else ""
    if name not in weights:
        return None
    if node.op_type == "Conv":
        return Weight(1, name, 0)
    if node.op_type == "Gemm":
        return Weight(1, name, 0 if _attribute(node, "transB", 0) else 1)
    return Weight(1, name, 1) if len(weights[name].dims) == 2 else None


def _reason_against(
    node: onnx.NodeProto, weight: Weight | None, weights: dict[str, onnx.TensorProto], precision: QuantizedPrecision
) -> str:
    if not node.name.startswith(_SCOPES):
        return "outside the backbone and the temporal encoder"
    if _GLOBAL_ROWS.match(node.name):
        return "attention of the global rows"
    if weight is None:
        return "no constant weight: attention"
    shape = list(weights[weight.tensor].dims)
    if node.op_type == "Conv":
        return _reason_against_conv(node, shape, precision)
    return f"smaller than {_MIN_SIZE}: {shape}" if min(shape) < _MIN_SIZE else ""


def _reason_against_conv(node: onnx.NodeProto, shape: list[int], precision: QuantizedPrecision) -> str:
    out, into, kernel = shape[0], shape[1], shape[2:]
    groups = _attribute(node, "group", 1)
    if precision == "fp8":
        if groups > 1 or out <= _MIN_SIZE or into <= _MIN_SIZE:
            return f"no FP8 kernel for {out} x {into} channels in {groups} groups"
        return f"no FP8 kernel for filters of {math.prod(kernel)}" if math.prod(kernel) > _MAX_FP8_TAPS else ""
    if out >= _MIN_SIZE and into >= _MIN_SIZE:
        return ""
    if groups == 1 and (out % 8 == 0 or into % 8 == 0) and out >= _MIN_SIZE and len(set(kernel)) == 1:
        return ""
    if groups > 1 and out % 8 == 0 and min(kernel) >= 3:
        return ""
    return f"no INT8 kernel for {out} x {into} channels in {groups} groups, filters of {kernel}"


def _attention(model: onnx.ModelProto) -> dict[str, Layer]:
    """First product of each attention of the backbone -> the layer: scores = MatMul, Softmax, MatMul.

    NVIDIA's recipe for FP8 attention: all four inputs of the two products, the softmax's output among them.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = {}
    for softmax in model.graph.node:
        if softmax.op_type != "Softmax" or not softmax.name.startswith(_SCOPES[:2]):
            continue
        first = makers.get(softmax.input[0])
        while first is not None and first.op_type in _BETWEEN:
            first = makers.get(next((name for name in first.input if name not in constants), ""))
        second = [node for node in readers.get(softmax.output[0], []) if node.op_type == "MatMul"]
        if first is None or first.op_type != "MatMul" or len(second) != 1 or len(readers[softmax.output[0]]) != 1:
            continue
        products = (first, second[0])
        if any(name in constants for node in products for name in node.input):
            continue
        places = tuple((node.name, position) for node in products for position in (0, 1))
        found[first.name] = Layer(first.name, "attention", places, None)
    return found


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
