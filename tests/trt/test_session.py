"""Sessions on engines. No GPU here: what is tested is what refuses, and the lane's own logic.

`FakeRuntime` and `FakeContext` stand in for CUDA and TensorRT to show the order of calls (a graph
after warm-up, dropped with its buffers; a refused enqueue raises). They prove nothing about the
libraries; test_signatures.py holds the calls against the real bindings.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.trt.conftest import Cli
from tests.trt.test_sidecar import make_record
from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.errors import BackendError, EngineError, GpuError, ShapeError
from vtn_export.spec import GraphSpec, TensorSpec
from vtn_export.trt import gpu, lane
from vtn_export.trt.cuda import Buffer, Cuda
from vtn_export.trt.lane import MAX_GRAPHS, WARM_UP_RUNS, Lane
from vtn_export.trt.profile import Range
from vtn_export.trt.session import TrtSession, deserialize, installed_version

SPEC = GraphSpec((TensorSpec("x", "float32", ("chunk", 2)),), (TensorSpec("y", "float32", ("chunk", 2)),))
PROFILES = [{"chunk": Range(1, 2, 16)}, {"chunk": Range(17, 32, 64)}]
NO_GPU = pytest.mark.skipif(gpu.find_gpu() is not None, reason="this machine has a GPU")


@NO_GPU
@pytest.mark.parametrize("command", [("run", "clip"), ("validate",), ("features", "clip", "--out", "f.npz")])
def test_without_a_gpu_one_line_and_its_own_exit_code(bundle: Path, cli: Cli, command: tuple[str, ...]) -> None:
    from vtn_export.video import shipped_clip

    verb, *rest = (str(shipped_clip()) if word == "clip" else word for word in command)
    result = cli(verb, bundle, *rest, "--backend", "trt")
    assert result.code == 15
    assert "no NVIDIA GPU answers" in result.err and result.err.count("error:") == 1


@NO_GPU
def test_the_real_runtime_says_why() -> None:
    if not is_installed("cuda"):
        pytest.skip("cuda-python is not installed")
    with pytest.raises(GpuError, match=r"cudaGetDeviceCount: cudaError"):
        gpu.require_gpu()
    with pytest.raises(BackendError, match=r"cudaHostAlloc failed: cudaError"):
        Buffer(Cuda(), 64, mapped=False)


def test_every_cuda_call_is_there() -> None:
    """The names that cuda.py uses, in the real bindings."""
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    for name in (
        "cudaSetDevice", "cudaStreamCreateWithFlags", "cudaStreamNonBlocking", "cudaStreamSynchronize",
        "cudaStreamDestroy", "cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaStreamCaptureMode",
        "cudaGraphInstantiate", "cudaGraphLaunch", "cudaGraphDestroy", "cudaGraphExecDestroy", "cudaHostAlloc",
        "cudaHostAllocMapped", "cudaHostAllocDefault", "cudaHostGetDevicePointer", "cudaMalloc", "cudaFree",
        "cudaFreeHost", "cudaMemcpyAsync", "cudaMemcpyKind", "cudaGetLastError",
    ):  # fmt: skip
        assert hasattr(runtime, name), name
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")


def test_a_real_engine_on_a_machine_without_gpu(bundle: Path, cli: Cli, rtx: Any) -> None:
    """RTX's runtime gives None: one line with the library's reason and the command that rebuilds."""
    if gpu.find_gpu() is not None:
        pytest.skip("this machine has a GPU")
    assert cli("trt", bundle, "--part", "backbone", "--fp16").code == 0
    from vtn_export.trt import api, sidecar

    opened = Bundle.open(bundle)
    record = sidecar.find(opened, "backbone", lambda _record: [])
    errors: deque[str] = deque(maxlen=4)
    library = api.load("rtx")
    logger = library.logger(lambda severity, message: errors.append(message) if severity == "error" else None)
    with pytest.raises(EngineError, match=r"not taken by rtx: .*; rebuild it: vtn-export trt"):
        deserialize(rtx.Runtime(logger), opened, record, errors)
    assert installed_version("rtx") == record.version and installed_version("other") is None


def test_changed_between_check_and_load(bundle: Path) -> None:
    """The bytes that are deserialised are the ones that were hashed."""
    opened = Bundle.open(bundle)
    record = make_record(opened)
    (bundle / "engines" / f"{record.name}.engine").write_bytes(b"swapped")
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda _data: pytest.fail("deserialised"))
    with pytest.raises(EngineError, match=r"got SHA-256 .*, expected"):
        deserialize(runtime, opened, record, deque())


class Status(IntEnum):
    OK = 0
    BROKEN = 35


class FakeRuntime:
    """Host memory plays the device; a captured graph is a list of what was asked meanwhile."""

    cudaHostAllocMapped, cudaHostAllocDefault, cudaStreamNonBlocking = 2, 0, 1  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)  # noqa: N815
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.captured: list[Any] | None = None
        self.graphs = 0
        self.can_capture = True

    def do(self, work: Any) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def _allocate(self, size: int, *_: Any) -> tuple[Any, ...]:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return Status.OK, ctypes.addressof(block)

    cudaHostAlloc = cudaMalloc = _allocate  # noqa: N815

    def cudaHostGetDevicePointer(self, host: int, _: int) -> tuple[Any, ...]:  # noqa: N802
        return Status.OK, host

    def _free(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return (Status.OK,)

    cudaFree = cudaFreeHost = _free  # noqa: N815

    def cudaMemcpyAsync(self, target: int, source: int, count: int, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("copy")
        self.do(lambda: ctypes.memmove(target, source, count))
        return (Status.OK,)

    def cudaStreamBeginCapture(self, *_: Any) -> tuple[Any, ...]:  # noqa: N802
        self.captured = []
        return (Status.OK,)

    def cudaStreamEndCapture(self, _: Any) -> tuple[Any, ...]:  # noqa: N802
        work, self.captured = self.captured, None
        return (Status.OK, work) if self.can_capture else (Status.BROKEN, None)

    def cudaGraphInstantiate(self, graph: Any, _: int) -> tuple[Any, ...]:  # noqa: N802
        self.graphs += 1
        return Status.OK, graph

    def cudaGraphLaunch(self, graph: Any, _: Any) -> tuple[Any, ...]:  # noqa: N802
        self.calls.append("graph")
        for work in graph:
            work()
        return (Status.OK,)

    def cudaGraphExecDestroy(self, _: Any) -> tuple[Any, ...]:  # noqa: N802
        self.graphs -= 1
        return (Status.OK,)

    def cudaStreamCreateWithFlags(self, _: int) -> tuple[Any, ...]:  # noqa: N802
        return Status.OK, 7

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *_: (Status.OK,)


class FakeContext:
    """y = 2 x, from addresses and shapes that were set."""

    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime, self.shape, self.addresses, self.profile = runtime, (), {}, 0
        self.refuses = False

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        limits = PROFILES[self.profile]["chunk"]
        self.shape = shape
        return bool(limits.min <= shape[0] <= limits.max)

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, _: str) -> tuple[int, ...]:
        return tuple(self.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_optimization_profile_async(self, index: int, _: int) -> bool:
        self.profile = index
        return True

    def execute_async_v3(self, _: int) -> bool:
        if self.refuses:
            return False
        self.runtime.calls.append("enqueue")
        count, x, y = int(np.prod(self.shape)), self.addresses["x"], self.addresses["y"]

        def work() -> None:
            source = (ctypes.c_float * count).from_address(x)
            target = (ctypes.c_float * count).from_address(y)
            target[:] = [2 * value for value in source]

        self.runtime.do(work)
        return True


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


def make_lane(runtime: FakeRuntime, mapped: bool = False) -> tuple[Lane, FakeContext]:
    context = FakeContext(runtime)
    engine = SimpleNamespace(create_execution_context=lambda: context)
    return Lane(engine, SPEC, PROFILES, Cuda(runtime), mapped), context


def call(one: Lane, chunk: int, seed: int = 0) -> None:
    x = np.random.default_rng(seed).standard_normal((chunk, 2)).astype(np.float32)
    got = one.run({"x": x})["y"]
    np.testing.assert_array_equal(got, 2 * x)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_graph_after_warm_up_gives_fresh_outputs(runtime: FakeRuntime, mapped: bool) -> None:
    one, _ = make_lane(runtime, mapped)
    for run in range(WARM_UP_RUNS + 3):
        call(one, 2, seed=run)  # other values every time: a replay reads what was copied in
    assert runtime.calls.count("graph") == 3
    assert runtime.calls.count("enqueue") == WARM_UP_RUNS + 1  # the last one was recorded
    assert ("copy" in runtime.calls) != mapped
    one.close()
    assert runtime.graphs == 0 and runtime.memory == {}


def test_a_grown_buffer_drops_the_graphs(runtime: FakeRuntime) -> None:
    one, _ = make_lane(runtime)
    for run in range(WARM_UP_RUNS + 1):
        call(one, 2, run)
    assert runtime.graphs == 1
    call(one, 8)  # new addresses
    assert runtime.graphs == 0
    for run in range(WARM_UP_RUNS + 1):
        call(one, 2, run)
    assert runtime.graphs == 1
    one.close()


def test_another_profile_and_back(runtime: FakeRuntime) -> None:
    one, context = make_lane(runtime)
    for chunk, profile in ((4, 0), (40, 1), (64, 1), (3, 0)):
        for run in range(WARM_UP_RUNS + 2):
            call(one, chunk, run)
        assert context.profile == profile
    one.close()


def test_graphs_are_limited(runtime: FakeRuntime) -> None:
    one, _ = make_lane(runtime)
    call(one, 16)
    for chunk in range(1, 16):
        for run in range(WARM_UP_RUNS + 1):
            call(one, chunk, run)
    assert runtime.graphs == MAX_GRAPHS
    one.close()
    assert runtime.graphs == 0


def test_what_cannot_be_captured_runs_plainly(runtime: FakeRuntime) -> None:
    runtime.can_capture = False
    one, _ = make_lane(runtime)
    for run in range(WARM_UP_RUNS + 3):
        call(one, 2, run)
    assert "graph" not in runtime.calls
    one.close()


def test_asked_whether_the_stream_can_be_captured(runtime: FakeRuntime) -> None:
    one, context = make_lane(runtime)
    context.is_stream_capturable = lambda _stream: False  # type: ignore[attr-defined]
    for run in range(WARM_UP_RUNS + 3):
        call(one, 2, run)
    assert runtime.graphs == 0
    one.close()


def test_a_refused_enqueue_is_an_error_not_old_output(runtime: FakeRuntime) -> None:
    one, context = make_lane(runtime)
    call(one, 2)
    context.refuses = True
    with pytest.raises(BackendError, match="could not be enqueued"):
        one.run({"x": np.zeros((2, 2), np.float32)})
    context.refuses = False
    call(one, 2)
    one.close()


def test_shape_outside_every_profile(runtime: FakeRuntime) -> None:
    one, _ = make_lane(runtime)
    with pytest.raises(ShapeError, match=r"chunk: got 65, the engine takes 1\.\.16 or 17\.\.64"):
        one.run({"x": np.zeros((65, 2), np.float32)})
    call(one, 2)
    one.close()


def test_cuda_error_names_the_call(runtime: FakeRuntime) -> None:
    runtime.cudaStreamSynchronize = lambda *_: (Status.BROKEN,)  # type: ignore[attr-defined]
    one, _ = make_lane(runtime)
    with pytest.raises(BackendError, match="cudaStreamSynchronize failed: BROKEN"):
        one.run({"x": np.zeros((1, 2), np.float32)})


def test_a_context_that_finds_no_memory(runtime: FakeRuntime) -> None:
    with pytest.raises(BackendError, match="memory is full"):
        Lane(SimpleNamespace(create_execution_context=lambda: None), SPEC, PROFILES, Cuda(runtime), False)


def test_one_lane_a_thread(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads share the engine and nothing else; close ends every lane."""
    made: list[threading.Thread] = []

    class Recorded:
        def __init__(self, *_: Any) -> None:
            made.append(threading.current_thread())
            self.closed = False

        def run(self, _inputs: Any) -> dict[str, Any]:
            assert threading.current_thread() is made[LANES.index(self)]
            return {}

        def close(self) -> None:
            self.closed = True

    LANES: list[Recorded] = []  # noqa: N806

    def make(*arguments: Any) -> Recorded:
        LANES.append(Recorded(*arguments))
        return LANES[-1]

    opened = Bundle.open(bundle)
    record = make_record(opened)
    monkeypatch.setattr("vtn_export.trt.session.Lane", make)
    monkeypatch.setattr("vtn_export.trt.session.Cuda", lambda: None)
    monkeypatch.setattr("vtn_export.trt.session.require_gpu", lambda: gpu.Gpu("Orin", "8.7", 0, 0, True))
    monkeypatch.setattr("vtn_export.trt.session.find_engine", lambda *_: record)
    monkeypatch.setattr("vtn_export.trt.session.deserialize", lambda *_: object())
    library = SimpleNamespace(logger=lambda _listener: None, trt=SimpleNamespace(Runtime=lambda _logger: object()))
    monkeypatch.setattr("vtn_export.trt.api.load", lambda _flavor: library)
    session = TrtSession(opened, "temporal")
    inputs = {
        "features": np.zeros((1, 8, 64), np.float32),
        "frame_index": np.zeros((1, 8), np.int32),
        "lengths": np.array([8], np.int32),
    }
    threads = [threading.Thread(target=lambda: [session.run(inputs) for _ in range(3)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(LANES) == 4 and len(set(made)) == 4
    assert session.covers(inputs)
    longer = {"features": np.zeros((1, 500, 64), np.float32), "frame_index": np.zeros((1, 500), np.int32)}
    assert not session.covers({**inputs, **longer})
    assert session.tolerance == opened.graph("temporal").typed_bounds["fp16"]
    session.close()
    assert all(one.closed for one in LANES)
    with pytest.raises(BackendError, match="closed"):
        session.run(inputs)


def test_limits_are_sane() -> None:
    assert lane.WARM_UP_RUNS >= 1 and lane.MAX_GRAPHS >= 1
