"""Where NaN and infinities come from: the first layer that makes one, in a graph or in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vtn_export.onnx.precision import tensor_types
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import Array, GraphSpec, Part, TensorSpec
from vtn_export.trt.ranges import session_of

_ROUNDING = (".unrounded", ".rounded")


@dataclass(frozen=True)
class NotFinite:
    """The first layer whose values are not finite. value: NaN or Inf; layer: module; node: ONNX node, "" in PyTorch."""

    part: str
    sample: str
    layer: str
    node: str
    value: str

    def describe(self) -> str:
        where = f" (node {self.node})" if self.node else ""
        return f"{self.part}: {self.value} first at layer {self.layer}{where} in {self.sample}"

    def to_json(self) -> dict[str, str]:
        return dict(vars(self))


class FiniteProbe:
    """A graph that also says, for every float tensor, whether it holds a NaN or an infinity."""

    def __init__(self, session: OrtSession, tensors: list[tuple[str, str, bool]]) -> None:
        self._session, self._tensors = session, tensors

    def first(self, part: str, sample: str, inputs: Mapping[str, Array]) -> NotFinite | None:
        """The first in the order of the graph; infinities that come from a constant mask do not count."""
        values = self._session.run(inputs)
        for index, (tensor, node, masked) in enumerate(self._tensors):
            has_nan, has_inf = (bool(flag) for flag in values[_name(index)])
            if has_nan or (has_inf and not masked):
                layer = node.rpartition("/")[0] if node else tensor
                return NotFinite(part, sample, layer, node, "NaN" if has_nan else "Inf")
        return None


@contextmanager
def finite_probe(model: onnx.ModelProto, spec: GraphSpec) -> Iterator[FiniteProbe]:
    """A probe of a float32 graph (rounding copies too). Takes the graph's content."""
    tensors = _tensors(model)
    outputs = tuple(TensorSpec(_name(index), "float32", (2,)) for index in range(len(tensors)))
    _watch(model, tensors)
    with session_of(model, GraphSpec(spec.inputs, outputs)) as session:
        yield FiniteProbe(session, tensors)


def first_in_torch(model: Any, run: Any, part: Part, sample: str) -> NotFinite | None:
    """Run with a hook on every module without children; the first whose output is not finite."""
    import torch

    found: list[NotFinite] = []
    handles = []

    def hook(name: str) -> Any:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            if not found and isinstance(output, torch.Tensor) and output.is_floating_point():
                finite = bool(torch.isfinite(output).all())
                if not finite:
                    value = "NaN" if bool(torch.isnan(output).any()) else "Inf"
                    found.append(NotFinite(part, sample, name, "", value))

        return look

    for name, module in model.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(hook(name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _name(index: int) -> str:
    return f"finite.{index}"


def _tensors(model: onnx.ModelProto) -> list[tuple[str, str, bool]]:
    """(tensor, node that makes it, whether a mask's infinities pass through it) in the order of the graph."""
    types = tensor_types(model)
    masks = {tensor.name for tensor in model.graph.initializer if _holds_infinity(tensor)}
    made: list[tuple[str, str, bool]] = [
        (value.name, "", False) for value in model.graph.input if types.get(value.name) == TensorProto.FLOAT
    ]
    origin: dict[str, str] = {}
    for node in model.graph.node:
        # the casts of a rounding copy belong to the node that they round
        own = next((origin[name] for name in node.input if name.endswith(_ROUNDING) and name in origin), node.name)
        masked = node.op_type != "Softmax" and any(name in masks for name in node.input)
        for name in node.output:
            origin[name] = own
            if masked:
                masks.add(name)
            # what overflows in rounding shows after the cast back; before it, the value is float32's own
            if types.get(name) == TensorProto.FLOAT and not name.endswith(_ROUNDING):
                made.append((name, own, masked))
    return made


def _holds_infinity(tensor: TensorProto) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size and np.isinf(values).any())


def _watch(model: onnx.ModelProto, tensors: list[tuple[str, str, bool]]) -> None:
    """Two flags of every tensor as the graph's outputs, each right behind the node that makes it, in place."""
    graph = model.graph
    nodes = list(graph.node)
    del graph.node[:], graph.output[:]
    graph.initializer.append(helper.make_tensor("finite.shape", TensorProto.INT64, [1], [1]))
    places = {tensor: index for index, (tensor, _, _) in enumerate(tensors)}

    def watch(tensor: str) -> None:
        index = places.get(tensor)
        if index is None:
            return
        flags = []
        for op in ("IsNaN", "IsInf"):
            stem = f"{_name(index)}.{op}"
            graph.node.append(helper.make_node(op, [tensor], [f"{stem}.each"], name=f"{stem}.each"))
            cast = helper.make_node("Cast", [f"{stem}.each"], [f"{stem}.float"], name=stem, to=TensorProto.FLOAT)
            graph.node.append(cast)
            most = helper.make_node("ReduceMax", [f"{stem}.float"], [f"{stem}.0d"], name=f"{stem}.most", keepdims=0)
            graph.node.append(most)
            graph.node.append(helper.make_node("Reshape", [f"{stem}.0d", "finite.shape"], [stem], name=f"{stem}.1d"))
            flags.append(stem)
        graph.node.append(helper.make_node("Concat", flags, [_name(index)], name=_name(index), axis=0))
        graph.output.append(helper.make_tensor_value_info(_name(index), TensorProto.FLOAT, [2]))

    for value in graph.input:
        watch(value.name)
    for node in nodes:
        graph.node.append(node)
        for name in node.output:
            watch(name)
