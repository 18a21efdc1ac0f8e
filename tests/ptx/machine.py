"""Runs blocks of a grid together: which lanes are where, and who goes next."""

from __future__ import annotations

import numpy as np

from .access import Traffic
from .async_copy import AsyncCopies
from .barriers import Barriers
from .findings import DIVERGENT, DIVERGENT_BARRIER
from .flow import is_barrier, is_collective
from .group import DONE, EVERY_LANE, Group
from .kernel import Kernel, Segment
from .syntax import Instruction, PtxError
from .types import LANES, Array, Registers


class Machine:
    """Some independent blocks of one launch, all their lanes side by side as (warps, 32) arrays.

    Lanes with the smallest program counter run first, so that those that took the longer way round catch up.
    While all lanes share one program counter it is kept as the number `together` instead of an array.
    """

    def __init__(
        self, kernel: Kernel, traffic: Traffic, warps_of_block: int, threads: int, blocks: int, limit: int
    ) -> None:
        self.kernel = kernel
        self.traffic = traffic
        self.blocks = blocks
        self.warp_count = blocks * warps_of_block
        self.limit = limit
        shape = (self.warp_count, LANES)
        self.lanes = np.arange(self.warp_count * LANES, dtype=np.int64).reshape(shape)
        self.registers: Registers = [_EMPTY] * len(kernel.widths)
        self.copies = AsyncCopies(traffic, self.lanes.size)
        self.single = Group(self, np.zeros(1, np.int64), None)  # for what all lanes have in common
        self.exists = self.lanes % (warps_of_block * LANES) < threads
        self.alive = self.exists
        self.pc: Array = np.where(self.exists, 0, DONE)
        self.together: int | None = 0
        self.barriers = Barriers(self)
        self.blocked = np.zeros(shape, np.bool_)  # lanes at a collective whose warp is not complete
        self.forced = False  # the next collective runs although its warp is not complete
        self.issues = np.zeros(len(kernel.program.code) + 1, np.int64)
        self.predicated_off = 0

    def code(self, pc: int) -> Instruction:
        """The instruction at a program counter."""
        return self.kernel.program.code[pc]

    def run(self) -> None:
        """Until every lane has ended."""
        while True:
            if self.together is not None:
                mask = None if self.alive.all() else self.alive
                self._advance(Group(self, None, mask), self.together, whole=True)
            elif not self._run_smallest():
                break
            if self.traffic.counts.warp_instructions > self.limit:
                raise PtxError(f"more than {self.limit} warp instructions: an endless loop, or raise `limit`")
        self.traffic.races.look()

    # -- choosing ------------------------------------------------------------------------------------

    def _run_smallest(self) -> bool:
        """Runs the lanes with the smallest program counter. False when there is nothing left to run."""
        free = self.barriers.free
        candidates = np.where(free & ~self.blocked, self.pc, DONE)
        smallest = int(candidates.min())
        living = self.pc != DONE
        if smallest == DONE:
            waiting = bool(living.any())
            if waiting:
                self._unlock()
            return waiting
        lanes = (self.pc == smallest) & free
        if lanes.sum() == living.sum():
            self.alive, self.together = living, smallest
            self.blocked[:] = False
            return True
        warps = np.flatnonzero(lanes.any(axis=1))
        mask = lanes[warps]
        whole = bool((mask == living[warps]).all())
        if not whole and (is_collective(self.code(smallest)) or is_barrier(self.code(smallest))):
            warps, mask = self._complete_warps(smallest, warps, mask, living)
            if not len(warps):
                return True
        group = Group(self, None if len(warps) == self.warp_count else warps, None if mask.all() else mask)
        self._advance(group, smallest, whole)
        return True

    def _complete_warps(self, pc: int, warps: Array, mask: Array, living: Array) -> tuple[Array, Array]:
        """At a collective: the warps all of whose living lanes are here; the lanes of others wait."""
        if self.forced:
            self.forced = False
            self.blocked[:] = False
            return warps, mask
        complete = (mask == living[warps]).all(axis=1)
        instruction = self.code(pc)
        if "aligned" not in instruction.parts and not is_barrier(instruction):
            complete |= self._members_present(instruction, warps, mask, living)
        late = warps[~complete]
        self.blocked[late] |= mask[~complete]
        self.blocked[warps[complete]] &= ~mask[complete]
        return warps[complete], mask[complete]

    def _members_present(self, instruction: Instruction, warps: Array, mask: Array, living: Array) -> Array:
        """Warps in which every lane named by a member mask is here."""
        if instruction.parts[0] == "activemask":
            return np.ones(len(warps), np.bool_)
        rows: Registers = [a[warps] for a in self.registers]
        members = self.kernel.decoder.read(instruction.operands[-1], "b32")(rows)
        bits = (np.broadcast_to(members, mask.shape)[:, :, None] >> np.arange(LANES, dtype=np.uint32)) & np.uint32(1)
        absent = living[warps] & ~mask
        missing: Array = ((bits != 0) & mask[:, :, None] & absent[:, None, :]).any(axis=(1, 2))
        return ~missing

    def _unlock(self) -> None:
        """Nobody can go on. Threads that ended may complete a barrier; else lanes of one warp wait for each
        other in different places: that is reported, and the first of them goes on alone."""
        if not self.blocked.any():
            self.barriers.recheck()
            if self.barriers.free[self.pc != DONE].any():
                return
            self.barriers.give_up()
            return
        pc = int(self.pc[self.blocked].min())
        lanes = self.blocked & (self.pc == pc)
        elsewhere = (self.pc != pc) & (self.pc != DONE) & lanes.any(axis=1)[:, None]
        other = int(self.pc[elsewhere].min()) if elsewhere.any() else pc
        first = self.traffic.who(int(self.lanes[lanes][0]))
        detail = f"{first} waits here while lanes of its warp are at line {self.code(other).line}"
        kind = DIVERGENT_BARRIER if is_barrier(self.code(pc)) else DIVERGENT
        self.traffic.complain(kind, pc, detail, int(lanes.any(axis=1).sum()))
        self.blocked &= self.pc != pc
        self.forced = True

    # -- running -------------------------------------------------------------------------------------

    def _advance(self, g: Group, pc: int, whole: bool) -> None:
        """Runs a group from a program counter to the end of its segment and moves its lanes on. Incomplete
        warps stop at every collective."""
        stop = self.kernel.flow.block_end(pc)
        if not whole:
            stop = min([stop, *(n for n in self.kernel.collectives if pc < n < stop)])
        segment = self.kernel.segment(pc, stop)
        direct = g.warps is None and g.mask is None
        env = self.registers
        if not direct:
            env = [_EMPTY] * len(self.registers)
            for index in (0, *segment.inputs):
                env[index] = g.rows(self.registers[index])
        warps = g.count
        self.issues[pc:stop] += warps
        self.traffic.counts.warp_instructions += warps * (stop - pc)
        for position, step in enumerate(segment.steps, pc):
            g.pc = position
            if position in segment.guarded:
                holds = segment.guarded[position](env)
                some = holds if g.mask is None else holds & g.mask
                self.predicated_off += int(np.count_nonzero(~some.any(axis=1)))
            step(env, g)
        if not direct:
            self._write_back(g, segment, env)
        if len(segment.steps) == stop - pc:
            self.move(g, stop)
        else:
            g.pc = stop - 1
            self._leave(g, stop - 1, env)

    def _write_back(self, g: Group, segment: Segment, env: Registers) -> None:
        for index in segment.outputs:
            old, new = self.registers[index], env[index]
            if g.warps is None and g.mask is not None:
                self.registers[index] = np.where(g.mask, new, old)
            else:
                merged = old.copy()
                merged[g.warps] = new if g.mask is None else np.where(g.mask, new, old[g.warps])
                self.registers[index] = merged

    def move(self, g: Group, target: int | Array, mask: Array | None = None) -> None:
        """Sets the program counter of the group's lanes (of those in `mask`)."""
        if isinstance(target, int) and target >= len(self.kernel.program.code):
            target = DONE
        if self.together is not None:
            if mask is None and isinstance(target, int) and target != DONE:
                self.together = target
                return
            self.pc = np.where(self.alive, self.together, DONE)
            self.together = None
        lanes = g.mask if mask is None else (mask if g.mask is None else mask & g.mask)
        if np.any(target == DONE):
            self.blocked[:] = False  # nobody waits for lanes that have ended: all are looked at again
        if g.warps is None:
            self.pc = np.full(self.pc.shape, target) if lanes is None else np.where(lanes, target, self.pc)
        elif lanes is None:
            self.pc[g.warps] = target
        else:
            self.pc[g.warps] = np.where(lanes, target, self.pc[g.warps])

    def _leave(self, g: Group, pc: int, env: Registers) -> None:
        """Carries out the branch, exit or barrier at a program counter."""
        instruction = self.code(pc)
        name = instruction.parts[0]
        taken: Array | None = None
        if instruction.guard is not None:
            guard = self.kernel.decoder.guard(instruction)
            assert guard is not None
            taken = guard(env)
            here = taken if g.mask is None else taken[g.mask]
            if here.all():
                taken = None
            elif not here.any():
                self.move(g, pc + 1)
                return
        if is_barrier(instruction):
            self.barriers.arrive(g, pc, instruction, env, taken)
            return
        if name == "trap":
            raise PtxError(f"line {instruction.line}: trap was executed: {instruction.text}")
        if name == "brx":
            table = np.array(self.kernel.flow.targets(pc))
            index = self.kernel.decoder.read(instruction.operands[0], "u32")(env).astype(np.int64)
            beyond = (index >= len(table)) & g.all_lanes()
            if (beyond if taken is None else beyond & taken).any():
                raise PtxError(f"line {instruction.line}: branch index beyond its table: {instruction.text}")
            target: int | Array = table[np.minimum(index, len(table) - 1)]
        else:
            target = DONE if name in ("ret", "exit") else self.kernel.flow.targets(pc)[0]
        if taken is not None:
            target = np.where(taken, target, pc + 1)
        self.move(g, target, None if isinstance(target, int) else EVERY_LANE)


_EMPTY: Array = np.zeros(0)
