"""Shared-memory races: accesses that no barrier orders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .types import Array

READ, WRITE, ATOMIC = 0, 1, 2
_LIMIT = 4_000_000  # granules kept before they are looked through
_REPORTED = 1000  # groups of racing accesses told apart in one look; the rest are not worth the time


@dataclass
class _Access:
    """`granules`: of all running blocks; `threads`: lane numbers, or -1 - warp for a read by a whole warp."""

    pc: int
    kind: int
    granules: Array
    threads: Array
    blocks: Array
    epochs: Array
    warp_epochs: Array


class RaceDetector:
    """Keeps every access of a block between barriers and looks for pairs of different threads, one a write.

    An epoch counts the barriers of a block, a warp epoch the bar.warp.sync of a lane. Two accesses of one
    granule in one epoch are ordered only if they are of one thread, or of one warp in different warp epochs.
    """

    def __init__(self, granule: int, granules: int, blocks: int, lanes: int, lanes_of_block: int) -> None:
        self.granule = granule
        self.epoch = np.zeros(blocks, np.int64)
        self.warp_epoch = np.zeros(lanes, np.int64)
        self.lanes_of_block = lanes_of_block
        self.pending = 0  # cp.async instructions whose data has not arrived
        self.in_flight = np.zeros(granules, np.int32)
        self._written = np.zeros(granules, np.bool_)
        self._log: list[_Access] = []
        self._size = 0
        self._limit = _LIMIT
        self.report: Callable[[int, int, int, int], None] = lambda first, second, granule, count: None

    def granules_of(self, offsets: Array, size: int) -> Array:
        """(n, k) granules of accesses of `size` bytes at offsets of the running blocks' shared memory."""
        first = offsets // self.granule
        count = size // self.granule
        if count == 1:
            return first[:, None]
        return first[:, None] + np.arange(count)

    def access(self, pc: int, kind: int, offsets: Array, size: int, lanes: Array, whole_warp: bool = False) -> None:
        """Logs an access by lanes. `whole_warp`: the data goes to several lanes of the warp."""
        if not len(offsets):
            return
        granules = self.granules_of(offsets, size)
        threads = -1 - lanes // 32 if whole_warp else lanes
        blocks = lanes // self.lanes_of_block
        self._log.append(
            _Access(
                pc,
                kind,
                granules,
                threads,
                blocks,
                self.epoch[blocks],
                self.warp_epoch[lanes],
            )
        )
        self._size += granules.size
        if kind != READ:
            self._written[granules.ravel()] = True
        if self._size > self._limit:
            self.look(again=True)
            self._limit = _LIMIT + 2 * self._size

    def barrier(self, blocks: Array | None) -> None:
        """A barrier of these blocks (None: all) has completed."""
        if blocks is None:
            self.look()
            self.epoch += 1
        else:
            self.epoch[blocks] += 1

    def look(self, again: bool = False) -> None:
        """Looks through the log and empties it; with `again`, accesses of running epochs stay in it."""
        log, self._log, self._size = self._log, [], 0
        written = self._written
        self._written = np.zeros_like(written)
        columns: list[tuple[Array, ...]] = []
        shared = self._touched_by_several(log, written)
        for entry in log:
            if again and (entry.epochs == self.epoch[entry.blocks]).any():
                self._log.append(entry)
                self._size += entry.granules.size
                if entry.kind != READ:
                    self._written[entry.granules.ravel()] = True
            keep = shared[entry.granules]
            if not keep.any():
                continue
            rows, _ = np.nonzero(keep)
            count = len(rows)
            columns.append(
                (
                    entry.granules[keep],
                    entry.threads[rows],
                    entry.epochs[rows],
                    entry.warp_epochs[rows],
                    np.full(count, entry.pc),
                    np.full(count, entry.kind),
                )
            )
        if not columns:
            return
        granules, threads, epochs, warp_epochs, pcs, kinds = (np.concatenate(c) for c in zip(*columns, strict=True))
        warps = np.where(threads < 0, -1 - threads, threads >> 5)
        self._judge((granules, epochs), warps, pcs, kinds)
        self._judge((granules, epochs, warps, warp_epochs), threads, pcs, kinds)

    def _touched_by_several(self, log: list[_Access], written: Array) -> Array:
        """Granules that are written, and accessed by more than one thread: the only ones worth sorting."""
        owner = np.zeros(len(written), np.int64)
        for entry in log:
            owner[entry.granules] = entry.threads[:, None]
        several = np.zeros(len(written), np.bool_)
        for entry in log:
            several[entry.granules[owner[entry.granules] != entry.threads[:, None]]] = True
        return several & written

    def _judge(self, keys: tuple[Array, ...], actors: Array, pcs: Array, kinds: Array) -> None:
        """Reports groups of equal keys that hold two actors and a write (or an atomic and a plain read)."""
        order = np.lexsort(keys)
        sorted_keys = [key[order] for key in keys]
        actors, pcs, kinds = actors[order], pcs[order], kinds[order]
        fresh = np.zeros(len(order), np.bool_)
        fresh[0] = True
        for key in sorted_keys:
            fresh[1:] |= key[1:] != key[:-1]
        starts = np.flatnonzero(fresh)
        several = np.minimum.reduceat(actors, starts) != np.maximum.reduceat(actors, starts)
        plain = np.maximum.reduceat((kinds == WRITE).astype(np.int8), starts) > 0
        atomic = np.maximum.reduceat((kinds == ATOMIC).astype(np.int8), starts) > 0
        read = np.maximum.reduceat((kinds == READ).astype(np.int8), starts) > 0
        stops = np.append(starts[1:], len(order))
        for group in np.flatnonzero(several & (plain | (atomic & read)))[:_REPORTED]:
            span = slice(starts[group], stops[group])
            first, second = _guilty(actors[span], pcs[span], kinds[span])
            self.report(first, second, int(sorted_keys[0][starts[group]]), 1)


def _guilty(actors: Array, pcs: Array, kinds: Array) -> tuple[int, int]:
    """Two program counters of a group: one that writes, and one of another actor."""
    for wanted in (WRITE, ATOMIC):
        for writer in np.flatnonzero(kinds == wanted):
            others = actors != actors[writer]
            if wanted == ATOMIC:
                others &= kinds != ATOMIC
            if others.any():
                return int(pcs[writer]), int(pcs[np.flatnonzero(others)[0]])
    return int(pcs[0]), int(pcs[-1])
