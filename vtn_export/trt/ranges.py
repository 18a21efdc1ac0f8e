"""What values a graph really takes: the largest magnitude of every float tensor over real runs.

A node whose inputs or outputs come near the end of a 16-bit type stays float32. The graph itself
computes the magnitudes (two reductions a tensor), so no activation leaves the runtime.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vtn_export.errors import OutputError, UsageError
from vtn_export.onnx.precision import ASKED_FOR, max_of, tensor_types
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import Array, GraphSpec, Precision, TensorSpec
from vtn_export.untrusted import reason_of

# Frames that were not looked at may go further than those that were: two bits are kept free.
HEADROOM = 4.0

_EXTERNAL_BYTES = 1_000_000_000

Ranges = dict[str, float]  # tensor -> largest |value| seen


def observe(model: onnx.ModelProto, spec: GraphSpec, calls: Iterable[Mapping[str, Array]]) -> Ranges:
    """Largest |value| of every float32 tensor (inputs included) over these calls. `model` is float32."""
    tensors = _float_tensors(model)
    watched = _watched(model, tensors)
    del model  # the caller's to keep
    outputs = tuple(TensorSpec(_name(i), "float32", (2,)) for i in range(len(tensors)))
    seen = np.zeros(len(tensors))
    with session_of(watched, GraphSpec(spec.inputs, outputs)) as session:
        for inputs in calls:
            values = session.run(inputs)
            latest = np.array([np.abs(values[output.name]).max() for output in outputs])
            seen = np.where(np.isnan(latest), np.inf, np.maximum(seen, latest))
    return dict(zip(tensors, seen.tolist(), strict=True))


@contextmanager
def session_of(model: onnx.ModelProto, spec: GraphSpec) -> Iterator[OrtSession]:
    """ONNX Runtime on a graph in memory, by way of a file: bytes would be held twice while it loads.

    Takes the graph's content: `model` is empty afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="vtn-trt-") as folder:
        path = Path(folder) / "graph.onnx"
        large = model.ByteSize() > _EXTERNAL_BYTES
        try:
            onnx.save(model, path, save_as_external_data=large, location="graph.onnx.data")
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; the graph does not fit there") from None
        model.Clear()
        with OrtSession(path, spec) as session:
            yield session


def near_limit(model: onnx.ModelProto, ranges: Ranges, precision: Precision) -> dict[str, str]:
    """Nodes that read or write a tensor within `HEADROOM` of the type's end → why, with the range.

    Nodes that a typing keeps for a constant of their own (the masks' -1e30) are not named again.
    """
    limit = max_of(precision)
    constants = {tensor.name for tensor in model.graph.initializer if _beyond(tensor, limit)}
    found = {}
    for node in model.graph.node:
        if constants & set(node.input):
            continue
        largest = max((ranges.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if largest > limit / HEADROOM:
            found[node.name] = f"values reach {largest:.4g}, near the end of {precision} ({limit:.4g})"
    return found


def with_reasons(kept: Iterable[tuple[str, str]], found: Mapping[str, str]) -> list[tuple[str, str]]:
    """The typing pass's list, with the range as the reason of what was kept for its range alone."""
    return [(node, found.get(node, reason) if reason == ASKED_FOR else reason) for node, reason in kept]


def read_keep_list(path: Path | None) -> list[str]:
    """Node names, one a line; blank lines and # comments are skipped. Raises UsageError."""
    if path is None:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--keep-fp32 {path}: cannot be read ({reason_of(error)})") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _beyond(tensor: TensorProto, limit: float) -> bool:
    if tensor.data_type != TensorProto.FLOAT:
        return False
    values = numpy_helper.to_array(tensor)
    return bool(values.size and np.abs(values).max() > limit)


def _float_tensors(model: onnx.ModelProto) -> list[str]:
    types = tensor_types(model)
    made = [value.name for value in model.graph.input]
    made += [name for node in model.graph.node for name in node.output]
    return [name for name in made if types.get(name) == TensorProto.FLOAT]


def _name(index: int) -> str:
    return f"range.{index}"


def _watched(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """The graph with [min, max] of every tensor as its outputs.

    The reductions stand right behind the node that makes a tensor, so that a runtime that goes by
    the order of the nodes frees it as soon as ever.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    del graph.output[:], graph.node[:]
    graph.initializer.append(helper.make_tensor("range.shape", TensorProto.INT64, [1], [1]))
    places = {tensor: index for index, tensor in enumerate(tensors)}

    def watch(name: str) -> None:
        index = places.get(name)
        if index is None:
            return
        low, high, both = f"range.{index}.min", f"range.{index}.max", _name(index)
        for op, out in (("ReduceMin", low), ("ReduceMax", high)):
            graph.node.append(helper.make_node(op, [name], [f"{out}.0d"], name=out, keepdims=0))
            graph.node.append(helper.make_node("Reshape", [f"{out}.0d", "range.shape"], [out], name=f"{out}.1d"))
        graph.node.append(helper.make_node("Concat", [low, high], [both], name=both, axis=0))
        graph.output.append(helper.make_tensor_value_info(both, TensorProto.FLOAT, [2]))

    for value in model.graph.input:
        watch(value.name)
    for node in model.graph.node:
        graph.node.append(node)
        for name in node.output:
            watch(name)
    return watched
