"""Global memory: registered allocations in one arena, with a state for every byte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .types import RAW, Array

GLOBAL_BASE = 4 << 44
"""Address of the arena. Shared and local windows of the generic address space lie below (spaces.py)."""

WRITABLE, INITIALISED, ALLOCATED = 1, 2, 4  # bits of a byte's state
GAP = 512  # bytes around every allocation that belong to nobody

_PATTERN = {bit: {size: int.from_bytes(bytes([bit] * size), "little") for size in (1, 2, 4, 8)} for bit in (1, 2, 4)}


class Bytes:
    """Bytes with a state each, read and written in elements of 1, 2, 4 or 8 bytes, `count` side by side.

    Offsets are int64 arrays, multiples of width × count and in range: the caller has checked.
    """

    def __init__(self, size: int, fill: int, state: int) -> None:
        size = -(-max(size, 16) // 16) * 16
        self.data = np.full(size, fill, np.uint8)
        self.state = np.full(size, state, np.uint8)

    def gather(self, offsets: Array, width: int, count: int) -> Array:
        """(n,) raw elements, or (n, count) when count > 1."""
        return self._gather(self.data, offsets, width, count)

    def scatter(self, offsets: Array, values: Array, width: int, count: int) -> None:
        """Writes raw elements, shaped as gather gives them, and marks them initialised."""
        if not len(offsets):
            return
        view: Array = self.data.view(RAW[width])
        state: Array = self.state.view(RAW[width])
        flag = RAW[width].type(_PATTERN[INITIALISED][width])
        if count == 1:
            index = offsets // width
        else:
            view, state = view.reshape(-1, count), state.reshape(-1, count)
            index = offsets // (width * count)
        view[index] = values
        state[index] |= flag

    def has(self, bit: int, offsets: Array, size: int) -> Array:
        """(n,) bool: all `size` bytes at each offset have the state bit."""
        width = min(size, 8)
        pattern = RAW[width].type(_PATTERN[bit][width])
        have: Array = (self._gather(self.state, offsets, width, size // width) & pattern) == pattern
        if have.ndim > 1:
            have = np.logical_and.reduce(have, axis=1)
        return have

    @staticmethod
    def _gather(source: Array, offsets: Array, width: int, count: int) -> Array:
        view: Array = source.view(RAW[width])
        if count == 1:
            return view.take(offsets // width)
        return view.reshape(-1, count).take(offsets // (width * count), axis=0)


@dataclass
class Allocation:
    """`offset`: of the first byte in the arena."""

    offset: int
    size: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Memory:
    """Device memory. Pointers are ints; they may be moved by bytes before they are given to a kernel."""

    def __init__(self) -> None:
        self.arena = Bytes(1 << 16, 0xFF, 0)
        self.allocations: dict[int, Allocation] = {}
        self._used = GAP

    def alloc(self, array: npt.ArrayLike, read_only: bool = False) -> int:
        """Copies an array to the device; returns its address, a multiple of 256. Stores to it are findings
        when `read_only`."""
        source = np.asarray(array)
        pointer = self._reserve(source.nbytes, source.shape, source.dtype)
        start = pointer - GLOBAL_BASE
        raw = np.frombuffer(source.tobytes(), np.uint8)
        self.arena.data[start : start + source.nbytes] = raw
        self.arena.state[start : start + source.nbytes] = ALLOCATED | INITIALISED | (0 if read_only else WRITABLE)
        return pointer

    def empty(self, shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> int:
        """Uninitialised device memory: every byte is 0xFF (NaN in every float type), reading it a finding."""
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        size = int(np.prod(dims, dtype=np.int64)) * kind.itemsize
        pointer = self._reserve(size, dims, kind)
        start = pointer - GLOBAL_BASE
        self.arena.data[start : start + size] = 0xFF
        self.arena.state[start : start + size] = ALLOCATED | WRITABLE
        return pointer

    def get(self, pointer: int) -> Array:
        """A copy of what lies at an address that `alloc` or `empty` returned, with its shape and dtype."""
        found = self.allocations[pointer]
        raw = self.arena.data[found.offset : found.offset + found.size].tobytes()
        return np.frombuffer(raw, found.dtype).reshape(found.shape).copy()

    def written(self, pointer: int) -> Array:
        """Bool, shaped as the allocation: elements whose bytes have all been initialised or written."""
        found = self.allocations[pointer]
        state = self.arena.state[found.offset : found.offset + found.size] & INITIALISED != 0
        whole: Array = state.reshape(*found.shape, found.dtype.itemsize).all(axis=-1)
        return whole

    def _reserve(self, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
        offset = -(-self._used // 256) * 256
        self._used = offset + size + GAP
        if self._used > len(self.arena.data):
            larger = Bytes(max(2 * len(self.arena.data), self._used), 0xFF, 0)
            larger.data[: len(self.arena.data)] = self.arena.data
            larger.state[: len(self.arena.state)] = self.arena.state
            self.arena = larger
        self.allocations[GLOBAL_BASE + offset] = Allocation(offset, size, shape, dtype)
        return GLOBAL_BASE + offset
