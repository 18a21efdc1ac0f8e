"""cp.async: copies from global to shared memory whose data arrives when the thread waits for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .access import Traffic
from .decoder import Decoder, operation, unsupported
from .findings import IN_FLIGHT, MISALIGNED
from .group import Group
from .races import WRITE
from .spaces import GlobalSpace, generic_offset
from .syntax import Imm, Instruction, Reg
from .types import Array, Read, Registers, Step


@dataclass
class _Copy:
    """Data on its way. `groups`: number of the commit group of each lane's copy."""

    pc: int
    size: int
    lanes: Array
    offsets: Array
    values: Array
    groups: Array


class AsyncCopies:
    """The copies in flight of all running blocks."""

    def __init__(self, traffic: Traffic, lanes: int) -> None:
        self.traffic = traffic
        self.committed = np.zeros(lanes, np.int64)
        self.flying: list[_Copy] = []

    def issue(self, g: Group, to: Array, source: Array, mask: Array | None, size: int, valid: Array | None) -> None:
        """Starts copies of `size` bytes. `valid`: bytes to read of each lane's source, the rest is zeros."""
        traffic, pc = self.traffic, g.pc
        shared, races = traffic.spaces["shared"], traffic.races
        traffic.counts.add_shared("cp_async", pc, to, mask, size)
        lanes = g.lanes.ravel() if mask is None else g.lanes[mask]
        into = to.ravel() if mask is None else to[mask]
        values = self._source(g, source, mask, size, valid)
        offsets, good = traffic.check(shared, pc, into, lanes, size, "cp.async writing")
        if good is not None:
            lanes, offsets, values = lanes[good], offsets[good], values[good]
        if not len(lanes):
            return
        granules = races.granules_of(offsets, size)
        flying = (races.in_flight[granules] > 0).any(axis=1)
        if flying.any():
            bad = np.flatnonzero(flying)
            detail = f"an earlier cp.async to these bytes has not been waited for, {traffic.who(lanes[bad[0]])}"
            traffic.complain(IN_FLIGHT, pc, detail, len(bad))
        races.access(pc, WRITE, offsets, size, lanes)
        races.in_flight[granules] += 1  # copies of one instruction to one place count once, and are a race
        races.pending += 1
        self.flying.append(_Copy(pc, size, lanes, offsets, values, self.committed[lanes]))

    def _source(self, g: Group, source: Array, mask: Array | None, size: int, valid: Array | None) -> Array:
        """(active lanes, size / 4) uint32 of what arrives."""
        traffic = self.traffic
        space = traffic.spaces["global"]
        assert isinstance(space, GlobalSpace)
        wanted = np.full(source.shape, size) if valid is None else np.clip(valid, 0, size)
        reading = wanted > 0 if mask is None else (wanted > 0) & mask
        result = np.zeros((*source.shape, size), np.uint8)
        if reading.any():
            traffic.counts.add_global("load", source, None if reading.all() else reading, size)
        for amount in np.unique(wanted[reading]):
            chosen = reading & (wanted == amount)
            addresses, lanes = source[chosen], g.lanes[chosen]
            position = np.flatnonzero(chosen.ravel())
            unit = size if amount == size else 1
            if unit < size:  # the whole place must be aligned, also when only a part of it is read
                skewed = addresses & (size - 1) != 0
                if skewed.any():
                    where = space.describe(int(addresses[skewed][0]))
                    detail = f"cp.async of {size} bytes, {traffic.who(lanes[skewed][0])}, {where}"
                    traffic.complain(MISALIGNED, g.pc, detail, int(skewed.sum()))
            for start in range(0, int(amount), unit):
                places, good = traffic.check(space, g.pc, addresses + start, lanes, unit, "cp.async reading")
                seen, at, rows = addresses + start, lanes, position
                if good is not None:
                    seen, places, at, rows = seen[good], places[good], at[good], rows[good]
                traffic.check_initialised(space, g.pc, places, at, seen, unit)
                width = min(unit, 4)
                data = space.store.gather(places, width, unit // width).reshape(len(rows), unit // width)
                result.reshape(-1, size)[rows, start : start + unit] = np.ascontiguousarray(data).view(np.uint8)
        flat = result.reshape(-1, size) if mask is None else result[mask]
        return np.ascontiguousarray(flat).view(np.uint32)

    def commit(self, g: Group, mask: Array | None) -> None:
        """Closes the group of copies that each lane has started."""
        self.committed[g.lanes.ravel() if mask is None else g.lanes[mask]] += 1

    def wait(self, g: Group, mask: Array | None, pending: int | None) -> None:
        """Lets all but the newest `pending` groups of each lane arrive; None: everything, committed or not."""
        lanes = g.lanes.ravel() if mask is None else g.lanes[mask]
        limit = np.full(len(self.committed), -1, np.int64)
        limit[lanes] = self.committed[lanes] + (1 if pending is None else -pending)
        still: list[_Copy] = []
        races = self.traffic.races
        for copy in self.flying:
            done = copy.groups < limit[copy.lanes]
            if not done.any():
                still.append(copy)
                continue
            offsets, values, whose = copy.offsets, copy.values, copy.lanes
            if done.all():
                races.pending -= 1
            else:
                keep = ~done
                still.append(_Copy(copy.pc, copy.size, whose[keep], offsets[keep], values[keep], copy.groups[keep]))
                offsets, values, whose = offsets[done], values[done], whose[done]
            races.in_flight[races.granules_of(offsets, copy.size)] -= 1
            words = copy.size // 4
            store = self.traffic.spaces["shared"].store
            store.scatter(offsets, values if words > 1 else values[:, 0], 4, words)
            races.access(copy.pc, WRITE, offsets, copy.size, whose)
        self.flying = still


@operation("cp")
def copy_async(d: Decoder, i: Instruction) -> Step:
    """cp.async.{ca,cg}.shared.global, cp.async.commit_group, cp.async.wait_group N, cp.async.wait_all."""
    active = d.active(i)
    if i.parts[:2] != ("cp", "async") or "bulk" in i.parts or "mbarrier" in i.parts:
        raise unsupported(i)
    if i.parts[2] == "commit_group":
        return lambda r, g: g.machine.copies.commit(g, active(r, g))
    if i.parts[2] in ("wait_group", "wait_all"):
        pending: int | None = None
        if i.parts[2] == "wait_group":
            operand = i.operands[0]
            if not isinstance(operand, Imm):
                raise unsupported(i, "the number of groups must be a literal")
            pending = int(operand.value)
        return lambda r, g: g.machine.copies.wait(g, active(r, g), pending)
    return _copy(d, i, active)


def _copy(d: Decoder, i: Instruction, active: Callable[[Registers, Group], Array | None]) -> Step:
    size_operand = i.operands[2]
    if not isinstance(size_operand, Imm) or size_operand.value not in (4, 8, 16):
        raise unsupported(i, "the size must be 4, 8 or 16")
    size = int(size_operand.value)
    to, source = d.address(i, i.operands[0]), d.address(i, i.operands[1])
    valid = _valid_bytes(d, i, size)
    delta = 0 if any(part.startswith("shared") for part in i.parts) else generic_offset("shared")

    def step(r: Registers, g: Group) -> None:
        amount = None if valid is None else np.broadcast_to(valid(r), r[0].shape)
        g.machine.copies.issue(g, to(r) - delta, source(r), active(r, g), size, amount)

    return step


def _valid_bytes(d: Decoder, i: Instruction, size: int) -> Read | None:
    """The src-size or ignore-src operand as bytes to read; a 64-bit operand is a cache policy."""
    for operand in i.operands[3:]:
        if isinstance(operand, Imm):
            amount = np.int64(operand.value)
            return lambda r: np.full(r[0].shape, amount)
        if isinstance(operand, Reg) and d.widths[operand.index] == 4:
            read = d.read(operand, "u32")
            return lambda r: read(r).astype(np.int64)
        if isinstance(operand, Reg) and d.widths[operand.index] == 0:
            ignore = d.read(operand, "pred")
            return lambda r: np.where(ignore(r), 0, size)
    return None


@operation("createpolicy")
def create_policy(d: Decoder, i: Instruction) -> Step:
    """Cache policies change nothing here."""
    write = d.write(i, i.operands[0])
    return lambda r, g: write(r, np.zeros(r[0].shape, np.uint64))
