"""CUDA memory, streams and graphs through cuda-python, every status checked. No torch.

A `Buffer` has a host side (a numpy view of page-locked memory) and a device side. On an integrated
GPU both are the same memory (mapped), and nothing is copied; on a discrete one mapped memory would
be read over the bus at every access, so the device has its own.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from vtn_export.deps import require
from vtn_export.errors import BackendError
from vtn_export.spec import Array


class Cuda:
    """The runtime API with errors as exceptions. `runtime` is cuda.bindings.runtime (another one in tests)."""

    def __init__(self, runtime: Any = None) -> None:
        if runtime is None:
            require("cuda")
            from cuda.bindings import runtime as cuda_runtime

            runtime = cuda_runtime
        self.runtime: Any = runtime

    def check(self, name: str, *arguments: Any) -> Any:
        """Call and return what is behind the status: nothing, one value or a tuple. Raises BackendError."""
        status, *values = getattr(self.runtime, name)(*arguments)
        if int(status) != 0:
            raise BackendError(f"CUDA: {name} failed: {status.name}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def stream(self) -> Any:
        """A stream of its own, not synchronised with the default stream."""
        return self.check("cudaStreamCreateWithFlags", self.runtime.cudaStreamNonBlocking)

    def copy_in(self, buffer: Buffer, count: int, stream: Any) -> None:
        """Host to device, asynchronously; nothing to do for mapped memory."""
        if not buffer.mapped:
            kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
            self.check("cudaMemcpyAsync", buffer.device, buffer.host, count, kind, stream)

    def copy_out(self, buffer: Buffer, count: int, stream: Any) -> None:
        """Device to host, asynchronously; nothing to do for mapped memory."""
        if not buffer.mapped:
            kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self.check("cudaMemcpyAsync", buffer.host, buffer.device, count, kind, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """`work` recorded into an executable graph; None where it cannot be captured."""
        mode = self.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.check("cudaStreamBeginCapture", stream, mode)
        try:
            work()
        except BackendError:
            self.runtime.cudaStreamEndCapture(stream)  # leaves capture mode; its error is known
            self.runtime.cudaGetLastError()
            return None
        status, graph = self.runtime.cudaStreamEndCapture(stream)
        if int(status) != 0 or graph is None:
            self.runtime.cudaGetLastError()
            return None
        try:
            return self.check("cudaGraphInstantiate", graph, 0)
        finally:
            self.check("cudaGraphDestroy", graph)


class Buffer:
    """Page-locked host memory and its device side, at least `size` bytes."""

    def __init__(self, cuda: Cuda, size: int, mapped: bool) -> None:
        self._cuda, self.size, self.mapped = cuda, max(size, 1), mapped
        runtime = cuda.runtime
        flags = runtime.cudaHostAllocMapped if mapped else runtime.cudaHostAllocDefault
        self.host = int(cuda.check("cudaHostAlloc", self.size, flags))
        try:
            self.device = int(
                cuda.check("cudaHostGetDevicePointer", self.host, 0) if mapped else cuda.check("cudaMalloc", self.size)
            )
        except BackendError:
            cuda.runtime.cudaFreeHost(self.host)
            raise

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The host side as an array; valid until `free`."""
        count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = (ctypes.c_ubyte * count).from_address(self.host)
        array: Array = np.frombuffer(memoryview(memory), dtype=dtype).reshape(shape)
        return array

    def free(self) -> None:
        if self.host:
            if not self.mapped:
                self._cuda.check("cudaFree", self.device)
            self._cuda.check("cudaFreeHost", self.host)
            self.host = self.device = 0
