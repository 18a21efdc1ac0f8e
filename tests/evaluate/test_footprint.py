"""Peak memory of a run, and the GPU's side on a made-up runtime."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from tests.trt.test_session import FakeRuntime, Status
from vtn_export.errors import BackendError
from vtn_export.evaluate.footprint import Device, device_of, held, peak_of
from vtn_export.trt.cuda import Cuda


@pytest.mark.parametrize("megabytes", [20, 90])
def test_peak_of_a_run(megabytes: int) -> None:
    def run() -> None:
        np.ones(megabytes << 17)

    base = held()
    added = peak_of(run) - base
    assert megabytes << 20 <= added + (4 << 20) <= (megabytes + 12) << 20
    assert peak_of(lambda: None) - base < 8 << 20  # the peak before is forgotten


class Runtime(FakeRuntime):
    """Counts what is allocated as the device's memory."""

    def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
        taken = sum(ctypes.sizeof(block) for block in self.memory.values())
        return Status.OK, (1 << 30) - taken, 1 << 30


@pytest.mark.parametrize("mapped", [False, True])
def test_transfers_are_those_of_a_session(mapped: bool) -> None:
    """Into page-locked memory, over, back and out; on an integrated GPU nothing goes over; nothing is left."""
    runtime = Runtime()
    device = Device(Cuda(runtime), mapped=mapped)
    inputs = {"frames": np.ones((2, 8, 8, 3), np.uint8), "lengths": np.ones(2, np.int32)}
    assert device.transfer_seconds(inputs, {"features": np.ones((2, 16), np.float32)}) > 0
    assert runtime.calls.count("copy") == (0 if mapped else 30)
    assert not runtime.memory


def test_the_most_that_was_taken_is_kept() -> None:
    runtime = Runtime()
    device = Device(Cuda(runtime), mapped=False)
    assert device.before == device.most == 0
    _, address = runtime.cudaMalloc(1 << 20)
    assert device.used() == 1 << 20
    runtime.cudaFree(address)
    assert device.used() == 0 and device.most == 1 << 20


def test_a_gpu_that_answers_with_an_error_is_one_line() -> None:
    class Broken(FakeRuntime):
        def cudaMemGetInfo(self) -> tuple[Any, ...]:  # noqa: N802
            return (Status.BROKEN,)

    with pytest.raises(BackendError, match="cudaMemGetInfo failed"):
        Device(Cuda(Broken()), mapped=False)


def test_the_runtime_has_the_call() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    assert hasattr(runtime, "cudaMemGetInfo")


@pytest.mark.parametrize("backend", ["ort", "openvino", "torch"])
def test_on_the_cpu_nothing_is_copied(backend: str) -> None:
    assert device_of(backend) is None
