"""One thread's way through an engine: context, stream, buffers, and a CUDA graph a shape.

A context is not for two threads, so each has a lane of its own on the shared engine.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vtn_export.errors import BackendError
from vtn_export.spec import Array, GraphSpec
from vtn_export.trt import profile as profiles_module
from vtn_export.trt.cuda import Buffer, Cuda
from vtn_export.trt.profile import Profile

WARM_UP_RUNS = 2  # of a shape, before its graph is captured: the first ones allocate and choose kernels
MAX_GRAPHS = 8  # the least used goes first

Key = tuple[tuple[str, int], ...]  # sizes of the free axes


class Lane:
    """Runs one call at a time. Not for several threads."""

    def __init__(self, engine: Any, spec: GraphSpec, profiles: Sequence[Profile], cuda: Cuda, mapped: bool) -> None:
        self._spec, self._profiles, self._cuda, self._mapped = spec, profiles, cuda, mapped
        cuda.check("cudaSetDevice", 0)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise BackendError("trt: no execution context could be made; most likely the GPU's memory is full")
        self._stream = cuda.stream()
        self._profile = 0
        self._buffers: dict[str, Buffer] = {}
        self._graphs: OrderedDict[Key, Any] = OrderedDict()  # None: this shape cannot be captured
        self._runs: dict[Key, int] = {}
        self._shape: Key | None = None
        self._sizes: dict[str, int] = {}
        self._outputs: dict[str, tuple[int, ...]] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Arrays of the spec's outputs. Raises ShapeError (no profile), BackendError (CUDA or TensorRT)."""
        self._use_profile(profiles_module.choose(self._spec, self._profiles, inputs, self._profile))
        key = tuple(profiles_module.axis_sizes(self._spec, inputs).items())
        if key != self._shape:
            self._set_shapes(inputs, key)
        for name, array in inputs.items():
            np.copyto(self._buffers[name].view(array.shape, array.dtype), array)
        graph = self._graph(key)
        if graph is not None:
            self._cuda.check("cudaGraphLaunch", graph, self._stream)
        else:
            self._enqueue()
        self._cuda.check("cudaStreamSynchronize", self._stream)
        self._runs[key] = self._runs.get(key, 0) + 1
        return {
            tensor.name: self._buffers[tensor.name].view(self._outputs[tensor.name], np.dtype(tensor.dtype)).copy()
            for tensor in self._spec.outputs
        }

    def _use_profile(self, index: int) -> None:
        if index != self._profile:
            if not self._context.set_optimization_profile_async(index, int(self._stream)):
                raise BackendError(f"trt: profile {index} could not be set")
            self._cuda.check("cudaStreamSynchronize", self._stream)
            self._profile, self._shape = index, None
            self._forget_graphs()

    def _set_shapes(self, inputs: Mapping[str, Array], key: Key) -> None:
        context = self._context
        self._shape = None  # stands again when all of it is set
        for name, array in inputs.items():
            if not context.set_input_shape(name, array.shape):
                raise BackendError(f"trt: {name}: the context refused the shape {array.shape}")
        missing = context.infer_shapes()
        if missing:
            raise BackendError(f"trt: shapes of {', '.join(missing)} are not known")
        axes = dict(key)
        self._sizes = {name: array.nbytes for name, array in inputs.items()}
        for tensor in self._spec.outputs:
            shape = tuple(int(size) for size in context.get_tensor_shape(tensor.name))
            expected = tuple(axes[axis] if isinstance(axis, str) else axis for axis in tensor.shape)
            if shape != expected:
                raise BackendError(f"trt: {tensor.name}: got the shape {shape}, expected {expected}")
            self._outputs[tensor.name] = shape
            self._sizes[tensor.name] = int(np.prod(shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        for name, size in self._sizes.items():
            self._ensure(name, size)
            if not context.set_tensor_address(name, self._buffers[name].device):
                raise BackendError(f"trt: {name}: the context refused its address")
        self._shape = key

    def _ensure(self, name: str, size: int) -> None:
        """A buffer of at least `size`; a new one has another address, which captured graphs do not know."""
        old = self._buffers.get(name)
        if old is None or old.size < size:
            self._forget_graphs()
            self._buffers[name] = Buffer(self._cuda, size, self._mapped)
            if old is not None:
                old.free()

    def _enqueue(self) -> None:
        for tensor in self._spec.inputs:
            self._cuda.copy_in(self._buffers[tensor.name], self._sizes[tensor.name], self._stream)
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError("trt: the engine could not be enqueued; its outputs would be those of the call before")
        for tensor in self._spec.outputs:
            self._cuda.copy_out(self._buffers[tensor.name], self._sizes[tensor.name], self._stream)

    def _graph(self, key: Key) -> Any:
        """The shape's graph, captured once it is warm; None before that, or where it cannot be captured."""
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if self._runs.get(key, 0) < WARM_UP_RUNS or not self._capturable():
            return None
        self._graphs[key] = self._cuda.capture(self._stream, self._enqueue)
        while len(self._graphs) > MAX_GRAPHS:
            self._destroy(self._graphs.popitem(last=False)[1])
        return self._graphs[key]

    def _capturable(self) -> bool:
        """RTX says so itself: with kernels still compiling, a stream is not; TensorRT is asked by trying."""
        ask = getattr(self._context, "is_stream_capturable", None)
        return ask is None or bool(ask(int(self._stream)))

    def _forget_graphs(self) -> None:
        for graph in self._graphs.values():
            self._destroy(graph)
        self._graphs.clear()
        self._runs.clear()

    def _destroy(self, graph: Any) -> None:
        if graph is not None:
            self._cuda.check("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free everything; the context goes before its engine."""
        if self._stream is None:
            return
        self._forget_graphs()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        self._context = None
        self._cuda.check("cudaStreamDestroy", self._stream)
        self._stream = None
