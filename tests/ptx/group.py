"""The warps that run one stretch of instructions together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .types import Array

if TYPE_CHECKING:
    from .machine import Machine

DONE = 1 << 30
"""Program counter of a lane that has ended, or was never there."""

EVERY_LANE: Array = np.ones((1, 1), np.bool_)


class Group:
    """Some whole warps of the running blocks, and which of their lanes execute.

    `warps`: indices of the warps, ascending, or None for all of them. `mask`: (warps, 32) bool, or None
    when every lane executes. Registers hold garbage in lanes that do not.
    """

    __slots__ = ("_lanes", "machine", "mask", "pc", "warps")

    def __init__(self, machine: Machine, warps: Array | None, mask: Array | None) -> None:
        self.machine = machine
        self.warps = warps
        self.mask = mask
        self.pc = 0
        self._lanes: Array | None = None

    @property
    def count(self) -> int:
        """Number of warps."""
        return self.machine.warp_count if self.warps is None else len(self.warps)

    @property
    def lanes(self) -> Array:
        """(warps, 32) int64: each lane's number among all lanes of the running blocks."""
        if self._lanes is None:
            every = self.machine.lanes
            self._lanes = every if self.warps is None else every[self.warps]
        return self._lanes

    def rows(self, per_lane: Array) -> Array:
        """The group's rows of an array over all lanes."""
        return per_lane if self.warps is None else per_lane[self.warps]

    def combine(self, predicate: Array) -> Array | None:
        """The lanes that execute and whose predicate holds; None for all."""
        mask = predicate if self.mask is None else predicate & self.mask
        return None if mask.all() else mask

    def all_lanes(self) -> Array:
        """The mask as an array, also when every lane executes."""
        return np.ones((self.count, 32), np.bool_) if self.mask is None else self.mask
