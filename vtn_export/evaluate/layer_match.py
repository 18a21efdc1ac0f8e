"""Tensors that a graph and PyTorch both have: module outputs by hooks, and the nodes that are named after them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from vtn_export.onnx.precision import tensor_types
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, OP_TYPE, Array, Part, Precision


@dataclass(frozen=True)
class Match:
    """A module (or call of the op), the node that makes its output, and that tensor."""

    layer: str
    node: str
    tensor: str


class Outputs:
    """A PyTorch model that remembers the output of every module and of every call of the op."""

    def __init__(self, model: Any, precision: Precision = "fp32") -> None:
        self.model, self.precision = model, precision
        self.calls: dict[str, int] = {}
        self.input_of: dict[str, str] = {}  # module -> the one that made its input
        self.batch_norms: set[str] = set()

    def of(self, inputs: Mapping[str, Array], part: Part) -> dict[str, Array]:
        """float64 arrays by module name; calls of the op as `MODULE/SlidingWindowAttention`."""
        import torch

        from vtn_export.model.attention import op_observer

        outputs: dict[str, Array] = {}
        made_by: dict[int, str] = {}
        alive: list[Any] = []  # ids are only good while their tensors live
        self.calls, self.input_of = {}, {}
        stack: list[str] = []

        def enter(name: str) -> Any:
            return lambda _module, _inputs: stack.append(name)

        def leave(name: str, leaf: bool, batch_norm: bool) -> Any:
            def look(_module: Any, arguments: Any, output: Any) -> None:
                stack.pop()
                self.calls[name] = self.calls.get(name, 0) + 1
                if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
                    return
                outputs[name] = output.detach().to(torch.float64, copy=True).numpy()  # activations may work in place
                if (leaf or batch_norm) and arguments and id(arguments[0]) in made_by:
                    self.input_of[name] = made_by[id(arguments[0])]
                if leaf:
                    alive.append(output)
                    made_by[id(output)] = name

            return look

        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            batch_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            if batch_norm:
                self.batch_norms.add(name)
            handles.append(module.register_forward_hook(leave(name, not list(module.children()), batch_norm)))
        outer = op_observer.get()

        def observe(op: Any) -> Any:
            result = op() if outer is None else outer(op)
            name = f"{stack[-1] if stack else part}/{OP_TYPE}"
            count = self.calls[name] = self.calls.get(name, 0) + 1
            outputs[name if count == 1 else f"{name}_{count - 1}"] = (
                result.detach().to(torch.float64, copy=True).numpy()
            )
            return result

        mode: Any = nullcontext()
        if self.precision != "fp32":
            from vtn_export.model.rounding import rounding

            mode = rounding(self.model, self.precision)
        try:
            with mode:
                outer = op_observer.get()
                token = op_observer.set(observe)
                try:
                    with torch.no_grad():
                        _call(self.model, inputs, part)
                finally:
                    op_observer.reset(token)
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def match(
    graph: onnx.ModelProto, reference: Mapping[str, Array], torch_side: Outputs
) -> tuple[list[Match], list[tuple[str, str]]]:
    """What both sides have, in the order of the graph, and the modules that have no tensor of their own.

    A module without children, or whose last node is its own, has its output in the graph. A module that
    left no node was folded into the one before it (BatchNorm into a convolution): that node's
    tensor is then the folded module's output.
    """
    types = tensor_types(graph)
    last: dict[str, onnx.NodeProto] = {}
    ops: dict[str, onnx.NodeProto] = {}
    for node in graph.graph.node:
        if node.op_type == OP_TYPE:
            ops[node.name] = node
        # casts of the typing pass and of a rounding copy are named after tensors, whose names have a slash too
        if node.name.count("/") != 1 or not any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output):
            continue
        module = node.name.rpartition("/")[0]
        while module:
            last[module] = node
            module = module.rpartition(".")[0]
    found: dict[str, Match] = {}
    unmatched: list[tuple[str, str]] = []
    for name in reference:
        if "/" in name:
            if name in ops:
                found[name] = Match(name, name, _tensor(ops[name]))
            else:
                unmatched.append((name, "the graph has no such node"))
            continue
        calls = torch_side.calls.get(name, 1)
        if not name or calls != 1:
            if name:
                unmatched.append((name, f"called {calls} times"))
            continue
        into = torch_side.input_of.get(name)
        if name in torch_side.batch_norms and into in found and name in last and not _has(graph, name):
            del found[into]
            unmatched.append((into, f"{name} is folded into it"))
        if name not in last:
            # the graph's tensor is this module's output now (unless it passed its input on, as dropout does)
            if into in found and not np.array_equal(reference[name], reference[into]):
                found[name] = Match(name, found[into].node, found.pop(into).tensor)
            continue
        node = last[name]
        if node.name.rpartition("/")[0] == name:
            found[name] = Match(name, node.name, _tensor(node))
    order = {node.name: place for place, node in enumerate(graph.graph.node)}
    return sorted(found.values(), key=lambda one: order[one.node]), unmatched


def _call(model: Any, inputs: Mapping[str, Array], part: Part) -> None:
    import torch

    dtype = next(model.parameters()).dtype
    tensors = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    if part == "backbone":
        model.frame_features(tensors[FRAMES])
    elif part == "temporal":
        model.classify(tensors[FEATURES], tensors[FRAME_INDEX], tensors[LENGTHS])
    else:
        model(tensors[FRAMES], tensors[FRAME_INDEX], tensors[LENGTHS])


def _has(graph: onnx.ModelProto, batch_norm: str) -> bool:
    return any(
        node.op_type == "BatchNormalization" and node.name.startswith(f"{batch_norm}/") for node in graph.graph.node
    )


def _tensor(node: onnx.NodeProto) -> str:
    """The tensor that a node makes, by its name after a rounding copy's casts."""
    return str(node.output[0]).removesuffix(".unrounded")
