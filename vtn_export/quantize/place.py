"""Explicit Q/DQ in a float32 graph: weights stored quantized per channel, activations per tensor, zero points 0.

A Q/DQ pair stands directly before the product that uses it, on the branch to it alone: the residual beside it
and the bias, GELU or BatchNorm behind it keep the type around them, and TensorRT fuses DQ, product, bias and
activation into one kernel. Typing the rest (onnx/precision.py) comes after this pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vtn_export.onnx.op import attach_function
from vtn_export.quantize.layers import Layer
from vtn_export.spec import Array, QuantizedPrecision

# float8_e4m3fn ends at 448; int8 is used from -127, so that both signs have the same steps
LARGEST: dict[QuantizedPrecision, float] = {"int8": 127.0, "fp8": 448.0}
_ONNX_TYPE: dict[QuantizedPrecision, int] = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}
_NUMPY_TYPE: dict[QuantizedPrecision, np.dtype[np.generic]] = {
    "int8": np.dtype(np.int8),
    "fp8": np.dtype(ml_dtypes.float8_e4m3fn),
}
# Scales are fp16 in the graph. An activation is divided by its scale: below 2^-14 the reciprocal would leave fp16.
# A weight is only multiplied: a subnormal scale does, as long as it keeps digits.
_SMALLEST_SCALE, _SMALLEST_WEIGHT_SCALE = 2.0**-14, 2.0**-20


def scales(largest: Array, precision: QuantizedPrecision, smallest: float = _SMALLEST_SCALE) -> Array:
    """float32 scales for values up to `largest`: fp16 numbers, rounded up so that nothing is clipped."""
    exact = np.maximum(np.asarray(largest, np.float64) / LARGEST[precision], smallest)
    rounded = exact.astype(np.float16)
    above = np.nextafter(rounded, np.float16(np.inf))
    return np.where(rounded.astype(np.float64) < exact, above, rounded).astype(np.float32)


def quantized(values: Array, scale: Array, precision: QuantizedPrecision) -> Array:
    """values / scale in the type, to nearest even, saturating. `scale` is broadcast."""
    steps = np.clip(values / scale, -LARGEST[precision], LARGEST[precision])
    return (np.rint(steps) if precision == "int8" else steps).astype(_NUMPY_TYPE[precision])


Ranges = Mapping[tuple[str, int], float]  # (node, place among its inputs) -> magnitude; inputs of a tensor agree
SWITCHES = "quantized"  # input of a switched graph: bool [layers]


def place(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    largest: Ranges,
    precision: QuantizedPrecision,
    *,
    switched: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A copy of `model` with the layers quantized. largest: what the scale of each input has to hold.

    switched: layer -> its place in one more input, `quantized`, that says at run time which layers are: a graph
    to measure layers with, not to deploy.
    """
    return _Placer(model, layers, largest, precision, switched).run()


class _Placer:
    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        largest: Ranges,
        precision: QuantizedPrecision,
        switched: Mapping[str, int] | None,
    ) -> None:
        self.model, self.largest, self.precision = model, largest, precision
        self.switched = switched
        self.layer_of = {node: layer.name for layer in layers for node, _ in layer.activations}
        self.type = _ONNX_TYPE[precision]
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.activations = {place for layer in layers for place in layer.activations}
        self.constant = {layer.name: layer.weight for layer in layers if layer.weight is not None}
        self.made: dict[str, TensorProto] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.quantized: set[str] = set()  # tensors that have their Q node

    def run(self) -> onnx.ModelProto:
        graph = self.model.graph
        for node in graph.node:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for position, name in enumerate(node.input):
                if (node.name, position) in self.activations:
                    copy.input[position] = self._activation(node.name, position, name)
            weight = self.constant.get(node.name)
            if weight is not None:
                copy.input[weight.position] = self._weight(node.name, weight.tensor, weight.axis)
            self.nodes.append(copy)
        inputs = list(graph.input)
        if self.switched is not None:
            inputs.append(helper.make_tensor_value_info(SWITCHES, TensorProto.BOOL, [len(self.switched)]))
        used = {name for node in self.nodes for name in node.input}
        initializers = [tensor for tensor in graph.initializer if tensor.name in used]
        result = helper.make_model(
            helper.make_graph(
                self.nodes,
                graph.name,
                inputs,
                list(graph.output),
                initializer=[*initializers, *self.made.values()],
            ),
            opset_imports=list(self.model.opset_import),
            ir_version=self.model.ir_version,
            producer_name=self.model.producer_name,
        )
        return attach_function(result)

    def _activation(self, node: str, position: int, name: str) -> str:
        """Q once a tensor, DQ once a reader: each product then has a pair of its own to fuse."""
        low, scale, zero = f"{name}.{self.precision}", f"{name}.scale", f"{name}.zero"
        if name not in self.quantized:
            self.quantized.add(name)
            self._constant(scale, scales(np.array(self.largest[node, position]), self.precision), TensorProto.FLOAT)
            self._constant(zero, np.zeros((), _NUMPY_TYPE[self.precision]), self.type)
            self.nodes.append(
                helper.make_node("QuantizeLinear", [name, scale, zero], [low], name=f"{name}/QuantizeLinear")
            )
        out = f"{node}/DequantizeLinear_{position}.output"
        self.nodes.append(
            helper.make_node("DequantizeLinear", [low, scale, zero], [out], name=f"{node}/DequantizeLinear_{position}")
        )
        return self._switch(node, f"{position}", out, name)

    def _weight(self, node: str, name: str, axis: int) -> str:
        low, scale, zero = f"{name}.{self.precision}", f"{name}.scale", f"{name}.zero"
        if low not in self.made:
            values = numpy_helper.to_array(self.weights[name])
            others = tuple(i for i in range(values.ndim) if i != axis)
            step = scales(np.abs(values).max(others), self.precision, _SMALLEST_WEIGHT_SCALE)
            shape = [-1 if i == axis else 1 for i in range(values.ndim)]
            self._constant(low, quantized(values, step.reshape(shape), self.precision), self.type)
            self._constant(scale, step, TensorProto.FLOAT)
            self._constant(zero, np.zeros(len(step), _NUMPY_TYPE[self.precision]), self.type)
        out = f"{node}/DequantizeLinear_weight.output"
        self.nodes.append(
            helper.make_node(
                "DequantizeLinear", [low, scale, zero], [out], name=f"{node}/DequantizeLinear_weight", axis=axis
            )
        )
        return self._switch(node, "weight", out, name)

    def _switch(self, node: str, place: str, quantized: str, plain: str) -> str:
        if self.switched is None:
            return quantized
        layer = self.layer_of[node]
        at, flag, out = f"{layer}/switch", f"{node}/switch_{place}", f"{node}/Where_{place}.output"
        if at not in self.made:
            self._constant(at, np.array(self.switched[layer], np.int64), TensorProto.INT64)
        self.nodes.append(helper.make_node("Gather", [SWITCHES, at], [flag], name=f"{node}/Gather_{place}"))
        self.nodes.append(helper.make_node("Where", [flag, quantized, plain], [out], name=f"{node}/Where_{place}"))
        return out

    def _constant(self, name: str, values: Array, kind: int) -> None:
        tensor = TensorProto(name=name, data_type=kind, raw_data=np.ascontiguousarray(values).tobytes())
        tensor.dims.extend(values.shape)
        self.made[name] = tensor
