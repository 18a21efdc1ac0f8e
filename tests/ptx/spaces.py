"""Address spaces of a launch: where an address leads, and whether it may go there."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .memory import ALLOCATED, GLOBAL_BASE, INITIALISED, WRITABLE, Bytes, Memory
from .program import SHARED_BASE
from .types import Array

_WINDOWS = {"shared": 1 << 44, "local": 2 << 44, "param": 3 << 44, "global": 0, "const": 0}
WINDOW_BITS = 44


def generic_offset(space: str) -> int:
    """What is added to an address of a space to make it generic."""
    return _WINDOWS[space.split("::")[0]]


class Space(Protocol):
    """Bytes that lanes reach by address."""

    name: str

    @property
    def store(self) -> Bytes:
        """The bytes and their states."""

    def locate(self, addresses: Array, lanes: Array, size: int) -> tuple[Array, Array]:
        """Offsets into the store for `size` bytes at each address, and which of them exist."""

    def describe(self, address: int) -> str:
        """An address in words."""


class GlobalSpace:
    """All allocations of a Memory."""

    name = "global"

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    @property
    def store(self) -> Bytes:
        return self.memory.arena

    def locate(self, addresses: Array, lanes: Array, size: int) -> tuple[Array, Array]:
        offsets = addresses - GLOBAL_BASE
        store = self.memory.arena
        inside = (offsets >= 0) & (offsets <= len(store.data) - size)
        if not inside.all():
            offsets = np.where(inside, offsets, 0)
        aligned = offsets - offsets % size
        inside &= store.has(ALLOCATED, aligned, size) | (offsets != aligned)
        return offsets, inside

    def writable(self, offsets: Array, size: int) -> Array:
        """Which of the located places may be written."""
        return self.memory.arena.has(WRITABLE, offsets, size)

    def describe(self, address: int) -> str:
        nearest = min(
            self.memory.allocations, key=lambda p: _distance(address, p, self.memory.allocations[p].size), default=0
        )
        if nearest == 0:
            return f"global address {address:#x}, with nothing allocated"
        found = self.memory.allocations[nearest]
        return (
            f"global address {address:#x}: byte {address - nearest} of the allocation at {nearest:#x} "
            f"of {found.size} bytes"
        )


def _distance(address: int, start: int, size: int) -> int:
    return max(start - address, address - start - size + 1, 0)


class SharedSpace:
    """One piece of shared memory for each running block. It starts as NaN, uninitialised."""

    name = "shared"

    def __init__(self, blocks: int, lanes_of_block: int, size: int) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // 16) * 16
        self.lanes_of_block = lanes_of_block
        self._store = Bytes(blocks * self.stride, 0xFF, ALLOCATED | WRITABLE)

    @property
    def store(self) -> Bytes:
        return self._store

    def locate(self, addresses: Array, lanes: Array, size: int) -> tuple[Array, Array]:
        offsets = addresses - SHARED_BASE
        inside = (offsets >= 0) & (offsets <= self.size - size)
        if not inside.all():
            offsets = np.where(inside, offsets, 0)
        return offsets + (lanes // self.lanes_of_block) * self.stride, inside

    def describe(self, address: int) -> str:
        return f"shared byte {address - SHARED_BASE} of {self.size}"


class LocalSpace:
    """A frame of local memory for each lane."""

    name = "local"

    def __init__(self, lanes: int, size: int) -> None:
        self.size = size
        self.stride = -(-max(size, 1) // 16) * 16
        self._store = Bytes(lanes * self.stride, 0xFF, ALLOCATED | WRITABLE)

    @property
    def store(self) -> Bytes:
        return self._store

    def locate(self, addresses: Array, lanes: Array, size: int) -> tuple[Array, Array]:
        inside = (addresses >= 0) & (addresses <= self.size - size)
        offsets = addresses if inside.all() else np.where(inside, addresses, 0)
        return offsets + lanes * self.stride, inside

    def describe(self, address: int) -> str:
        return f"local byte {address} of {self.size}"


class ParamSpace:
    """The kernel's parameters, the same for every lane."""

    name = "param"

    def __init__(self, data: bytes) -> None:
        self._store = Bytes(len(data), 0, ALLOCATED | INITIALISED)
        self._store.data[: len(data)] = np.frombuffer(data, np.uint8)
        self.size = len(data)

    @property
    def store(self) -> Bytes:
        return self._store

    def locate(self, addresses: Array, lanes: Array, size: int) -> tuple[Array, Array]:
        inside = (addresses >= 0) & (addresses <= self.size - size)
        return (addresses if inside.all() else np.where(inside, addresses, 0)), inside

    def describe(self, address: int) -> str:
        return f"parameter byte {address} of {self.size}"
