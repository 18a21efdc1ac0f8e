"""Loads and stores of many lanes at once, every one of them checked and counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .counts import Counts
from .findings import IN_FLIGHT, MISALIGNED, OUT_OF_BOUNDS, RACE, READ_ONLY, UNINITIALISED, Findings
from .group import Group
from .memory import INITIALISED
from .races import READ, WRITE, RaceDetector
from .spaces import WINDOW_BITS, GlobalSpace, ParamSpace, SharedSpace, Space, generic_offset
from .syntax import Instruction
from .types import RAW, Array

_WINDOW_NAMES = {1: "shared", 2: "local", 3: "param"}


class Traffic:
    """The memories of the running blocks, with their detectors and counts."""

    def __init__(
        self,
        code: Sequence[Instruction],
        spaces: dict[str, Space],
        races: RaceDetector,
        counts: Counts,
        findings: Findings,
        block_ids: Array,
        lanes_of_block: int,
    ) -> None:
        self.code = code
        self.spaces = spaces
        self.races = races
        self.counts = counts
        self.findings = findings
        self.block_ids = block_ids
        self.lanes_of_block = lanes_of_block
        races.report = self._race

    # -- findings ------------------------------------------------------------------------------------

    def who(self, lane: int) -> str:
        """A lane in words."""
        block, thread = divmod(int(lane), self.lanes_of_block)
        x, y, z = (int(i) for i in self.block_ids[block])
        return f"block ({x}, {y}, {z}) thread {thread}"

    def complain(self, kind: str, pc: int, detail: str, count: int = 1, other: int = 0) -> None:
        """Adds a finding at an instruction."""
        self.findings.add(kind, self.code[pc].line, self.code[pc].text, detail, count, other)

    def _race(self, first: int, second: int, granule: int, count: int) -> None:
        shared = self.spaces["shared"]
        assert isinstance(shared, SharedSpace)
        block, byte = divmod(granule * self.races.granule, shared.stride)
        x, y, z = (int(i) for i in self.block_ids[block])
        other = self.code[second]
        detail = f"no barrier between this and line {other.line} ({other.text}); block ({x}, {y}, {z}) byte {byte}"
        self.complain(RACE, first, detail, count, other.line)

    def check(
        self, space: Space, pc: int, addresses: Array, lanes: Array, size: int, verb: str
    ) -> tuple[Array, Array | None]:
        """(offsets, which lanes may go on; None for all) for accesses of `size` bytes; reports the others."""
        offsets, inside = space.locate(addresses, lanes, size)
        aligned = addresses & (size - 1) == 0
        good = inside & aligned
        if good.all():
            return offsets, None
        for kind, wrong in ((OUT_OF_BOUNDS, ~inside), (MISALIGNED, ~aligned)):
            bad = np.flatnonzero(wrong)
            if len(bad):
                where = space.describe(int(addresses[bad[0]]))
                detail = f"{verb} {size} bytes, {self.who(lanes[bad[0]])}, {where}"
                self.complain(kind, pc, detail, len(bad))
        return offsets, good

    def check_initialised(
        self, space: Space, pc: int, offsets: Array, lanes: Array, addresses: Array, size: int
    ) -> None:
        """Reports reads of bytes that nobody wrote."""
        known = space.store.has(INITIALISED, offsets, size)
        if not known.all():
            bad = np.flatnonzero(~known)
            where = space.describe(int(addresses[bad[0]]))
            self.complain(UNINITIALISED, pc, f"reading {size} bytes, {self.who(lanes[bad[0]])}, {where}", len(bad))

    def check_in_flight(self, pc: int, offsets: Array, size: int, lanes: Array) -> None:
        """Reports accesses to shared memory that a cp.async has not finished writing."""
        races = self.races
        if not races.pending:
            return
        flying = (races.in_flight[races.granules_of(offsets, size)] > 0).any(axis=1)
        if flying.any():
            bad = np.flatnonzero(flying)
            detail = f"a cp.async to these bytes has not been waited for, {self.who(lanes[bad[0]])}"
            self.complain(IN_FLIGHT, pc, detail, len(bad))

    # -- moving --------------------------------------------------------------------------------------

    def load(self, name: str, g: Group, addresses: Array, mask: Array | None, width: int, count: int) -> Array:
        """(warps, 32[, count]) raw elements; zeros where nothing may be read. `name`: a space, or generic."""
        if name == "generic":
            return self._generic_load(g, addresses, mask, width, count)
        space, size = self.spaces[name], width * count
        flat, lanes = _picked(addresses, mask), _picked(g.lanes, mask)
        if not len(flat):
            return np.zeros(addresses.shape if count == 1 else (*addresses.shape, count), RAW[width])
        offsets, good = self.check(space, g.pc, flat, lanes, size, "reading")
        if good is not None:
            flat, lanes, offsets = flat[good], lanes[good], offsets[good]
        self.check_initialised(space, g.pc, offsets, lanes, flat, size)
        if isinstance(space, SharedSpace):
            self.check_in_flight(g.pc, offsets, size, lanes)
            self.races.access(g.pc, READ, offsets, size, lanes)
            self.counts.add_shared("shared_load", g.pc, addresses, mask, size)
        elif isinstance(space, GlobalSpace):
            self.counts.add_global("load", addresses, mask, size)
        elif not isinstance(space, ParamSpace):
            self.counts.local_requests += g.count
        values = space.store.gather(offsets, width, count)
        return _placed(values, addresses.shape, mask, good)

    def store(
        self, name: str, g: Group, addresses: Array, mask: Array | None, values: Array, width: int, count: int
    ) -> None:
        """Stores (warps, 32[, count]) raw elements."""
        if name == "generic":
            for window, part in self.windows(addresses, mask):
                inner = addresses - generic_offset(window)
                self.store(window, g, inner, part, values, width, count)
            return
        space, size = self.spaces[name], width * count
        flat, lanes, moved = _picked(addresses, mask), _picked(g.lanes, mask), _picked(values, mask)
        if not len(flat):
            return
        offsets, good = self.check(space, g.pc, flat, lanes, size, "writing")
        if good is not None:
            flat, lanes, offsets, moved = flat[good], lanes[good], offsets[good], moved[good]
        if isinstance(space, SharedSpace):
            self.check_in_flight(g.pc, offsets, size, lanes)
            self.races.access(g.pc, WRITE, offsets, size, lanes)
            self.counts.add_shared("shared_store", g.pc, addresses, mask, size)
        elif isinstance(space, GlobalSpace):
            self.counts.add_global("store", addresses, mask, size)
            allowed = self.check_writable(space, g.pc, offsets, lanes, flat, size)
            if allowed is not None:
                offsets, moved = offsets[allowed], moved[allowed]
        else:
            self.counts.local_requests += g.count
        space.store.scatter(offsets, moved, width, count)

    def check_writable(
        self, space: GlobalSpace, pc: int, offsets: Array, lanes: Array, addresses: Array, size: int
    ) -> Array | None:
        """Which stores may happen; None for all. Reports those to read-only allocations."""
        allowed = space.writable(offsets, size)
        if allowed.all():
            return None
        bad = np.flatnonzero(~allowed)
        where = space.describe(int(addresses[bad[0]]))
        self.complain(READ_ONLY, pc, f"writing {size} bytes, {self.who(lanes[bad[0]])}, {where}", len(bad))
        return allowed

    def windows(self, addresses: Array, mask: Array | None) -> list[tuple[str, Array | None]]:
        """Generic addresses by space: (space, its lanes)."""
        window = addresses >> WINDOW_BITS
        present = np.unique(_picked(window, mask))
        if len(present) == 1:
            return [(_WINDOW_NAMES.get(int(present[0]), "global"), mask)]
        parts: dict[str, Array] = {}
        for number in present:
            name = _WINDOW_NAMES.get(int(number), "global")
            lanes = window == number if mask is None else (window == number) & mask
            parts[name] = parts[name] | lanes if name in parts else lanes
        return list(parts.items())

    def _generic_load(self, g: Group, addresses: Array, mask: Array | None, width: int, count: int) -> Array:
        parts = self.windows(addresses, mask)
        result: Array | None = None
        for window, lanes in parts:
            values = self.load(window, g, addresses - generic_offset(window), lanes, width, count)
            result = values if result is None else result | values
        if result is None:
            return np.zeros(addresses.shape if count == 1 else (*addresses.shape, count), RAW[width])
        return result


def _picked(array: Array, mask: Array | None) -> Array:
    """Active lanes of a (warps, 32[, count]) array in one row."""
    return array.reshape(-1, *array.shape[2:]) if mask is None else array[mask]


def _placed(values: Array, shape: tuple[int, ...], mask: Array | None, good: Array | None) -> Array:
    """The opposite of _picked; zeros in lanes that were not picked."""
    tail = values.shape[1:]
    if good is not None:
        picked = np.zeros((len(good), *tail), values.dtype)
        picked[good] = values
        values = picked
    if mask is None:
        return values.reshape(*shape, *tail)
    result = np.zeros((*shape, *tail), values.dtype)
    result[mask] = values
    return result
