"""What a run takes beside time: peak memory of this process and of the GPU, and the copies between them."""

from __future__ import annotations

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from vtn_export.spec import Array

_TRANSFERS = 10


def held() -> int:
    """Bytes that this process holds now, what was freed given back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    return _status("VmRSS") or _largest_ever()


def forget_peak() -> None:
    """The peak starts anew at what is held now. Where the kernel has no such switch, peaks are the process's."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak() -> int:
    """The most bytes that this process held since `forget_peak`."""
    return _status("VmHWM") or _largest_ever()


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that this process holds at most while `run` runs."""
    held()
    forget_peak()
    run()
    return peak()


class Device:
    """The GPU's memory, and what it costs to bring tensors there and back. `cuda`: vtn_export.trt.cuda.Cuda.

    Of an integrated GPU the memory is the machine's, with everything else that runs.
    """

    def __init__(self, cuda: Any, *, mapped: bool) -> None:
        self._cuda, self._mapped = cuda, mapped
        self.most = 0
        self.before = self.used()

    def used(self) -> int:
        """Bytes taken, by whomever. Raises BackendError."""
        free, total = self._cuda.check("cudaMemGetInfo")
        used = int(total) - int(free)
        self.most = max(self.most, used)
        return used

    def transfer_seconds(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> float:
        """Median of ten times: into page-locked memory, to the device, and the outputs back, as a session does it."""
        from vtn_export.trt.cuda import Buffer

        cuda, tensors = self._cuda, [*inputs.values(), *outputs.values()]
        buffers: list[Buffer] = []
        stream = cuda.stream()
        try:
            buffers += [Buffer(cuda, array.nbytes, self._mapped) for array in tensors]
            seconds = []
            for _ in range(_TRANSFERS):
                start = time.perf_counter()
                for array, buffer in zip(inputs.values(), buffers, strict=False):
                    np.copyto(buffer.view(array.shape, array.dtype), array)
                    cuda.copy_in(buffer, array.nbytes, stream)
                for array, buffer in zip(outputs.values(), buffers[len(inputs) :], strict=True):
                    cuda.copy_out(buffer, array.nbytes, stream)
                cuda.check("cudaStreamSynchronize", stream)
                for array, buffer in zip(outputs.values(), buffers[len(inputs) :], strict=True):
                    buffer.view(array.shape, array.dtype).copy()
                seconds.append(time.perf_counter() - start)
            return median(seconds)
        finally:
            for buffer in buffers:
                buffer.free()
            cuda.check("cudaStreamDestroy", stream)


def device_of(backend: str) -> Device | None:
    """The GPU that `backend` computes on; None for those on the CPU, where nothing is copied."""
    if backend != "trt":
        return None
    from vtn_export.trt.cuda import Cuda
    from vtn_export.trt.gpu import require_gpu

    return Device(Cuda(), mapped=require_gpu().integrated)


def _status(field: str) -> int | None:
    """A figure of /proc/self/status, in bytes."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _largest_ever() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
