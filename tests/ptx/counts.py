"""What a launch cost: instructions, sectors of global memory, wavefronts of shared memory, tensor-core work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from .types import Array

SECTOR = 32  # bytes of global memory that move together


@dataclass
class Counts:
    """Totals over all blocks of a launch. A warp instruction is one instruction issued for one warp, whatever
    its guard; `predicated_off` of them had a guard that held in no lane."""

    warp_instructions: int = 0
    predicated_off: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)
    global_load_requests: int = 0
    global_load_sectors: int = 0
    global_load_bytes: int = 0  # that lanes asked for
    global_store_requests: int = 0
    global_store_sectors: int = 0
    global_store_bytes: int = 0
    shared_load_wavefronts: int = 0
    shared_load_conflicts: int = 0  # wavefronts beyond one a phase
    shared_store_wavefronts: int = 0
    shared_store_conflicts: int = 0
    ldmatrix_wavefronts: int = 0
    ldmatrix_conflicts: int = 0
    cp_async_wavefronts: int = 0
    cp_async_conflicts: int = 0
    conflicts_at: Counter[int] = field(default_factory=Counter)  # by index of the instruction in the kernel
    local_requests: int = 0
    barriers: int = 0  # per block
    mma_instructions: int = 0
    mma_flops: int = 0  # a multiplication and an addition count as two

    @property
    def bank_conflicts(self) -> int:
        """Extra wavefronts of all kinds of access to shared memory."""
        return (
            self.shared_load_conflicts + self.shared_store_conflicts + self.ldmatrix_conflicts + self.cp_async_conflicts
        )

    @property
    def global_load_traffic(self) -> int:
        """Bytes of the sectors that loads touched, each warp request by itself."""
        return SECTOR * self.global_load_sectors

    @property
    def global_store_traffic(self) -> int:
        """Bytes of the sectors that stores touched, each warp request by itself."""
        return SECTOR * self.global_store_sectors

    def add_global(self, kind: str, addresses: Array, mask: Array | None, size: int) -> None:
        """One request of each warp: `kind` is load or store, addresses are (warps, 32), size in bytes a lane."""
        requests, sectors = count_sectors(addresses, mask)
        lanes = addresses.size if mask is None else int(np.count_nonzero(mask))
        if kind == "load":
            self.global_load_requests += requests
            self.global_load_sectors += sectors
            self.global_load_bytes += lanes * size
        else:
            self.global_store_requests += requests
            self.global_store_sectors += sectors
            self.global_store_bytes += lanes * size

    def add_shared(self, kind: str, pc: int, addresses: Array, mask: Array | None, size: int) -> None:
        """One access of each warp: `kind` is shared_load, shared_store, ldmatrix or cp_async."""
        waves, extra = count_wavefronts(addresses, mask, size)
        setattr(self, f"{kind}_wavefronts", getattr(self, f"{kind}_wavefronts") + waves)
        setattr(self, f"{kind}_conflicts", getattr(self, f"{kind}_conflicts") + extra)
        if extra:
            self.conflicts_at[pc] += extra


def count_sectors(addresses: Array, mask: Array | None) -> tuple[int, int]:
    """(warps with an active lane, different sectors of each warp summed up). Accesses are aligned and at most
    16 bytes, so each lies in one sector."""
    sectors = addresses >> 5
    if mask is not None:
        sectors = np.where(mask, sectors, -1)
    step = np.diff(sectors, axis=1)
    if (step < 0).any():
        step = np.diff(np.sort(sectors, axis=1), axis=1)
    distinct = np.count_nonzero(step, axis=1) + 1
    if mask is None:
        return len(sectors), int(distinct.sum())
    some, idle = mask.any(axis=1), ~mask.all(axis=1)
    return int(np.count_nonzero(some)), int((distinct - idle)[some].sum())


def count_wavefronts(addresses: Array, mask: Array | None, size: int) -> tuple[int, int]:
    """(wavefronts, those beyond one a phase) of accesses of `size` bytes by each lane of each warp.

    A warp's access to shared memory runs in phases: all 32 lanes for up to 4 bytes, 16 for 8, 8 for 16. In a
    phase, lanes that want different words of one of the 32 banks take turns; the same word serves all.
    """
    unit = max(size, 4)
    banks = 128 // unit  # a bank of this many neighbouring words moves as one
    words = (addresses >> (unit.bit_length() - 1)).reshape(-1, banks)
    active = None if mask is None else mask.reshape(-1, banks)
    if active is not None:
        some = active.any(axis=1)
        words, active = words[some], active[some]
    phases = len(words)
    if not phases:
        return 0, 0
    rows = np.arange(phases)[:, None] * banks
    slot = rows + words % banks
    if active is None:
        if np.bincount(slot.ravel(), minlength=phases * banks).max() <= 1:
            return phases, 0
        active = np.ones(words.shape, np.bool_)
    elif np.bincount(slot[active], minlength=phases * banks).max() <= 1:
        return phases, 0
    big = int(words.max()) + 1
    key = np.where(active, slot * big + words, -1)
    key.sort(axis=1)
    fresh = np.ones(key.shape, np.bool_)
    fresh[:, 1:] = key[:, 1:] != key[:, :-1]
    fresh &= key >= 0
    turns = np.bincount(key[fresh] // big, minlength=phases * banks).reshape(phases, banks).max(axis=1)
    return int(turns.sum()), int(turns.sum()) - phases
