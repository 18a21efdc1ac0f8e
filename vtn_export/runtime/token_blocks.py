"""Long videos, block by block: the parts of a temporal graph that treat every token alike, cut along the tokens.

A matrix product on 16,384 tokens writes activations of 200 MB, which ONNX Runtime's kernels walk through once
for every 256 columns of the weight. In blocks they stay in the caches. The arithmetic of a row
does not change. The graph in the bundle stays whole: this form is made in memory, for CPUs, and for long videos only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from vtn_export.spec import OP_DOMAIN, OP_TYPE

# The encoder of vit_b_vtn on 16,384 frames, two cores with 512 KB of L2 each: 251 us a frame whole, 228-248 in blocks
# of 1,024 tokens, 208 in blocks of 512.
BLOCK = 512

_PREFIX = "token_blocks"
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Cast", "Identity"}


def cut_tokens(model: onnx.ModelProto, block: int = BLOCK) -> None:
    """Rewrite a temporal graph in place: its row-wise parts run `block` tokens at a time (Loop nodes).

    `model`: its attention is `vtn::SlidingWindowAttention` nodes on `[B, S, 3·H·D]`. Nodes between two attentions
    that treat every token alike (matrix products with weights, biases, Gelu, LayerNormalization, residuals)
    become one Loop over the tokens. Inputs, outputs and values stay the same.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    tokenwise = _tokenwise(graph, constants)
    levels = _levels(graph, tokenwise, constants)
    groups: dict[int, _Group] = {}
    for node, level in zip(graph.node, levels, strict=True):
        if level is not None:
            groups.setdefault(level, _Group(level)).nodes.append(node)
    groups = {level: group for level, group in groups.items() if any(n.op_type == "MatMul" for n in group.nodes)}
    last = {level: group.nodes[-1].output[0] for level, group in groups.items()}
    nodes: list[NodeProto] = []
    for node, level in zip(graph.node, levels, strict=True):
        if level not in groups:
            nodes.append(node)
        elif node.output[0] == last[level]:
            nodes.extend(groups[level].loop(graph, tokenwise, block))
    nodes = _sorted(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(_constants(block))


def _tokenwise(graph: onnx.GraphProto, constants: set[str]) -> set[str]:
    """Names of the tensors `[B, S, ·]`: known at the attention, carried on by what treats every token alike."""
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == OP_TYPE and node.domain == OP_DOMAIN:
            found |= {node.input[0], node.output[0]}
        elif node.op_type == "Concat" and any(_attends(makers.get(name), makers) for name in node.input):
            found.add(node.output[0])  # the global rows, and the others again
    for _ in graph.node:
        before = len(found)
        for node in graph.node:
            if _row_wise(node, constants):
                data = {name for name in node.input if name not in constants} | {node.output[0]}
                others = data - {node.output[0]}
                if (len(data) == 2 and data & found) or (len(data) > 2 and others <= found):
                    found |= data
        if len(found) == before:
            break
    return found


def _attends(node: NodeProto | None, makers: dict[str, NodeProto]) -> bool:
    """Whether the node is an attention, or a part of one's output."""
    if node is not None and node.op_type in {"Slice", "Concat"}:
        return _attends(makers.get(node.input[-1 if node.op_type == "Concat" else 0]), makers)
    return node is not None and node.op_type == OP_TYPE and node.domain == OP_DOMAIN


def _row_wise(node: NodeProto, constants: set[str]) -> bool:
    """Whether row i of the output depends on row i of the inputs alone. Constants are weights and biases."""
    if node.op_type == "MatMul":
        return node.input[0] not in constants and node.input[1] in constants
    if node.op_type == "LayerNormalization":
        return all(attribute.name != "axis" or attribute.i == -1 for attribute in node.attribute)
    return node.op_type in _ELEMENTWISE


def _levels(graph: onnx.GraphProto, tokenwise: set[str], constants: set[str]) -> list[int | None]:
    """For a row-wise node, how many other kinds of nodes lie before it at most in a row; None for the others.

    Nodes of one level can run together: whatever leads from one to another of them is of that level too.
    """
    depth: dict[str, int] = {}
    levels: list[int | None] = []
    for node in graph.node:
        before = max((depth.get(name, 0) for name in node.input), default=0)
        tensors = {name for name in (*node.input, *node.output) if name not in constants}
        inside = _row_wise(node, constants) and tensors <= tokenwise
        levels.append(before if inside else None)
        depth.update((name, before if inside else before + 1) for name in node.output)
    return levels


def _sorted(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    needs = {index: {makers[name] for name in node.input if name in makers} for index, node in enumerate(nodes)}
    return [nodes[index] for index in TopologicalSorter(needs).static_order()]


@dataclass
class _Group:
    """Row-wise nodes between the same two attentions."""

    level: int
    nodes: list[NodeProto] = field(default_factory=list)

    def loop(self, graph: onnx.GraphProto, tokenwise: set[str], block: int) -> Iterator[NodeProto]:
        """The nodes that replace the group: how many blocks, the Loop, and a Concat for each output."""
        made = {name for node in self.nodes for name in node.output}
        feeds = list(dict.fromkeys(i for node in self.nodes for i in node.input if i in tokenwise and i not in made))
        inside = {id(node) for node in self.nodes}
        wanted = {name for node in graph.node if id(node) not in inside for name in node.input}
        wanted |= {output.name for output in graph.output}
        results = [name for name in (n.output[0] for n in self.nodes) if name in wanted]
        name = f"{_PREFIX}.{self.level}"
        yield helper.make_node("Shape", [feeds[0]], [f"{name}.shape"], f"{name}/Shape", start=1, end=2)
        yield helper.make_node("Squeeze", [f"{name}.shape"], [f"{name}.tokens"], f"{name}/Squeeze")
        yield helper.make_node("Add", [f"{name}.tokens", f"{_PREFIX}.block-1"], [f"{name}.up"], f"{name}/Add")
        yield helper.make_node("Div", [f"{name}.up", f"{_PREFIX}.block"], [f"{name}.trips"], f"{name}/Div")
        for output in results:
            yield helper.make_node("SequenceEmpty", [], [f"{output}.none"], f"{output}/SequenceEmpty")
        body = self._body(name, feeds, results)
        carried = [f"{output}.none" for output in results]
        yield helper.make_node(
            "Loop",
            [f"{name}.trips", f"{_PREFIX}.true", *carried],
            [f"{output}.blocks" for output in results],
            f"{name}/Loop",
            body=body,
        )
        for output in results:
            yield helper.make_node(
                "ConcatFromSequence", [f"{output}.blocks"], [output], f"{output}/ConcatFromSequence", axis=1
            )

    def _body(self, name: str, feeds: list[str], results: list[str]) -> onnx.GraphProto:
        i, go = f"{name}.i", f"{name}.go"
        nodes = [
            helper.make_node("Mul", [i, f"{_PREFIX}.blocks"], [f"{name}.from"], f"{name}/From"),
            helper.make_node("Add", [f"{name}.from", f"{_PREFIX}.blocks"], [f"{name}.to"], f"{name}/To"),
        ]
        for feed in feeds:
            nodes.append(
                helper.make_node(
                    "Slice",
                    [feed, f"{name}.from", f"{name}.to", f"{_PREFIX}.axis"],
                    [f"{name}.{feed}"],
                    f"{name}/{feed}",
                )
            )
        made = {output for node in self.nodes for output in node.output}
        inner = {value: f"{name}.{value}" for value in [*feeds, *made]}
        for node in self.nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [inner.get(value, value) for value in node.input]
            copy.output[:] = [inner[value] for value in node.output]
            nodes.append(copy)
        for output in results:
            nodes.append(
                helper.make_node(
                    "SequenceInsert",
                    [f"{name}.{output}.before", inner[output]],
                    [f"{name}.{output}.after"],
                    f"{name}/{output}/Insert",
                )
            )
        nodes.append(helper.make_node("Identity", [go], [f"{go}.on"], f"{name}/Go"))

        def sequence(value: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_sequence_value_info(value, TensorProto.FLOAT, None)

        inputs = [
            helper.make_tensor_value_info(i, TensorProto.INT64, []),
            helper.make_tensor_value_info(go, TensorProto.BOOL, []),
            *(sequence(f"{name}.{output}.before") for output in results),
        ]
        outputs = [
            helper.make_tensor_value_info(f"{go}.on", TensorProto.BOOL, []),
            *(sequence(f"{name}.{output}.after") for output in results),
        ]
        return helper.make_graph(nodes, f"{name}.body", inputs, outputs)


def _constants(block: int) -> list[TensorProto]:
    values = {
        "block": np.array(block),
        "block-1": np.array(block - 1),
        "blocks": np.array([block]),
        "axis": np.array([1]),
        "true": np.array(True),
    }
    return [numpy_helper.from_array(value, f"{_PREFIX}.{name}") for name, value in values.items()]
