"""How much memory a graph's activations take, from two real runs and the lifetimes of its tensors.

ONNX Runtime's profile gives the size of every node's output in its optimised graph; a tensor lives
from its node to its last reader. The peak is linear in batch · frames, so two sizes give a model.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from vtn_export.runtime.session import OrtSession
from vtn_export.spec import Array, GraphSpec


def activation_bytes(model: Path | bytes, spec: GraphSpec, *runs: Mapping[str, Array]) -> list[int]:
    """Peak bytes of activations (weights not counted) of each run, from one profiled session."""
    with tempfile.TemporaryDirectory() as folder:
        session = OrtSession(model, spec, profile_to=Path(folder))
        for inputs in runs:
            session.run(inputs)
        events = json.loads(session.end_profiling().read_text())
        session.close()
        graph = onnx.load(Path(folder) / "optimized.onnx", load_external_data=False).graph
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    each = len(kernels) // len(runs)  # every run executes the same nodes, in order
    return [_peak(graph, kernels[i * each : (i + 1) * each], inputs) for i, inputs in enumerate(runs)]


def _peak(graph: onnx.GraphProto, kernels: list[dict[str, Any]], inputs: Mapping[str, Array]) -> int:
    nodes = {node.name: node for node in graph.node}
    kept = {value.name for value in graph.output}
    readers = Counter(name for node in graph.node for name in set(node.input))
    live = sum(array.nbytes for array in inputs.values())
    peak = live
    sizes: dict[str, int] = {}
    for event in kernels:
        node = nodes.get(event["name"].removesuffix("_kernel_time"))
        if node is None:
            continue
        outputs = [name for name in node.output if name]
        size = int(event["args"].get("output_size", 0)) // max(len(outputs), 1)
        for name in outputs:
            sizes[name] = size
            live += size
        peak = max(peak, live)
        for name in set(node.input):
            readers[name] -= 1
            if readers[name] == 0 and name not in kept:
                live -= sizes.pop(name, 0)
    return peak


def linear_model(small: tuple[int, int], large: tuple[int, int]) -> tuple[int, int]:
    """(fixed bytes, bytes a frame) from two (frames, bytes) measurements; neither is below 0."""
    per_frame = max((large[1] - small[1]) // (large[0] - small[0]), 0)
    return max(small[1] - per_frame * small[0], 0), per_frame
