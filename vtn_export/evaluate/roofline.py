"""How close a measured time is to what this machine could do at best: measured ceilings, and a graph's work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vtn_export.onnx.cost import GraphCost
from vtn_export.runtime.session import available_cpus

GEMM_SIZE = 1024
COPY_BYTES = 128 << 20  # a thread; far beyond any cache


@dataclass(frozen=True)
class Ceilings:
    """What was measured here: FLOP/s of a float32 product in ONNX Runtime, bytes/s read and written by copies."""

    flops_per_second: float
    bytes_per_second: float
    threads: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(threads: int | None = None, seconds: float = 0.5) -> Ceilings:
    """The best of the runs of `seconds` each: a ceiling is what the machine gives when nothing disturbs it."""
    count = threads or available_cpus()
    return Ceilings(_gemm(count, seconds), _copies(count, seconds), count)


def share(cost: GraphCost, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    """The work of one call and its place under the roofline.

    `roofline_share`: the least time that the ceilings allow for the graph's FLOPs and compulsory bytes over the time
    it took. `bound`: which of the two the least time is.
    """
    compute = cost.flops / ceilings.flops_per_second
    memory = cost.compulsory_bytes / ceilings.bytes_per_second
    return {
        "flops": cost.flops,
        "compulsory_bytes": cost.compulsory_bytes,
        "traffic_bytes": cost.traffic_bytes,
        "flops_per_second": cost.flops / seconds,
        "flops_per_byte": cost.flops / cost.compulsory_bytes,
        "bound": "compute" if compute >= memory else "memory",
        "roofline_share": max(compute, memory) / seconds,
    }


def _gemm(threads: int, seconds: float) -> float:
    """FLOP/s of the kernels that run the graphs: a product of two square matrices, the right one constant."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((GEMM_SIZE, GEMM_SIZE), dtype=np.float32) for _ in range(2))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, left.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, left.shape)],
        [numpy_helper.from_array(right, "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * GEMM_SIZE**3 / _best(lambda: session.run(None, {"x": left}), seconds)


def _copies(threads: int, seconds: float) -> float:
    """Bytes read and written a second, one copy a thread side by side (numpy frees the interpreter meanwhile)."""
    buffers = [(np.ones(COPY_BYTES, np.uint8), np.empty(COPY_BYTES, np.uint8)) for _ in range(threads)]

    def copy_all() -> None:
        workers = [threading.Thread(target=np.copyto, args=(target, source)) for source, target in buffers]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2 * COPY_BYTES * threads / _best(copy_all, seconds)


def _best(call: Callable[[], object], seconds: float) -> float:
    call()
    best = float("inf")
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or best == float("inf"):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best
