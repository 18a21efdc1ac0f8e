"""Runs blocks of a grid together: which lanes are where, who may go on, barriers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .access import Traffic
from .async_copy import AsyncCopies
from .decoder import Decoder
from .findings import DIVERGENT, DIVERGENT_BARRIER
from .flow import Flow, ends_block, is_barrier, is_collective
from .group import Group
from .program import Program
from .syntax import Imm, Instruction, PtxError
from .types import LANES, RAW, Array, Registers, Step

_DONE = 1 << 30  # program counter of a lane that has ended, or was never there


@dataclass
class Segment:
    """Instructions [start, stop) as steps, with the registers they need and those they leave."""

    start: int
    stop: int
    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    guarded: list[tuple[int, Callable[[Registers], Array]]]


class Kernel:
    """A program with its flow and its decoded segments; shared by all launches."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.flow = Flow(program)
        self.decoder = Decoder(program)
        self.widths = self.decoder.widths
        self.collectives = [n for n, i in enumerate(program.code) if is_collective(i)]
        self._segments: dict[tuple[int, int], Segment] = {}

    def segment(self, start: int, stop: int) -> Segment:
        """The decoded segment [start, stop); a branch or barrier at its end is not part of its steps."""
        found = self._segments.get((start, stop))
        if found is None:
            code = self.program.code
            last = stop - 1 if ends_block(code[stop - 1]) else stop
            guarded = []
            for index in range(start, stop):
                guard = self.decoder.guard(code[index])
                if guard is not None and code[index].parts[0] not in ("bra", "brx"):
                    guarded.append((index, guard))
            found = Segment(
                start,
                stop,
                [self.decoder.step(index) for index in range(start, last)],
                self.flow.inputs(start, stop),
                self.flow.outputs(start, stop),
                guarded,
            )
            self._segments[start, stop] = found
        return found


class Machine:
    """Some independent blocks of one launch, all their lanes side by side."""

    def __init__(
        self, kernel: Kernel, traffic: Traffic, warps_of_block: int, threads: int, blocks: int, limit: int
    ) -> None:
        self.kernel = kernel
        self.traffic = traffic
        self.blocks = blocks
        self.warps_of_block = warps_of_block
        self.warp_count = blocks * warps_of_block
        self.limit = limit
        shape = (self.warp_count, LANES)
        self.lanes = np.arange(self.warp_count * LANES, dtype=np.int64).reshape(shape)
        self.registers: Registers = [np.zeros(0)] * len(kernel.widths)
        self.copies = AsyncCopies(traffic, self.lanes.size)
        self.single = Group(self, np.zeros(1, np.int64), None)
        self.exists = self.lanes % (warps_of_block * LANES) < threads
        self.pc = np.where(self.exists, 0, _DONE)
        self.barrier_id = np.full(shape, -1)
        self.barrier_size = np.zeros(shape, np.int64)
        self.blocked = np.zeros(shape, np.bool_)
        self.forced = False
        self.issues = np.zeros(len(kernel.program.code) + 1, np.int64)
        self.predicated_off = 0
        self.together: int | None = 0  # the program counter of all living lanes, if they share one
        self.alive = self.exists

    # -- the loop ------------------------------------------------------------------------------------

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

    def _run_smallest(self) -> bool:
        """Runs the lanes with the smallest program counter. False when there is nothing left to run."""
        ready = (self.barrier_id < 0) & ~self.blocked
        candidates = np.where(ready, self.pc, _DONE)
        smallest = int(candidates.min())
        if smallest == _DONE:
            waiting = (self.pc != _DONE).any()
            if waiting:
                self._unlock()
            return bool(waiting)
        lanes = (self.pc == smallest) & (self.barrier_id < 0)
        living = self.pc != _DONE
        if lanes.sum() == living.sum():
            self.alive, self.together = living, smallest
            self.blocked[:] = False
            return True
        warps = np.flatnonzero(lanes.any(axis=1))
        mask = lanes[warps]
        whole = bool((mask == living[warps]).all())
        if not whole and (is_collective(self.code(smallest)) or is_barrier(self.code(smallest))):
            warps, mask = self._gather_warps(smallest, warps, mask, living)
            if not len(warps):
                return True
        group = Group(self, None if len(warps) == self.warp_count else warps, None if mask.all() else mask)
        self._advance(group, smallest, whole)
        return True

    def code(self, pc: int) -> Instruction:
        """The instruction at a program counter."""
        return self.kernel.program.code[pc]

    def _gather_warps(self, pc: int, warps: Array, mask: Array, living: Array) -> tuple[Array, Array]:
        """At a collective: the warps all of whose living lanes are here; the lanes of others wait."""
        if self.forced:
            self.forced = False
            self.blocked[warps] &= ~mask
            return warps, mask
        complete = (mask == living[warps]).all(axis=1)
        instruction = self.code(pc)
        if not complete.all() and "aligned" not in instruction.parts and not is_barrier(instruction):
            complete |= self._members_present(pc, warps, mask)
        late = warps[~complete]
        self.blocked[late] |= mask[~complete]
        self.blocked[warps[complete]] &= ~mask[complete]
        return warps[complete], mask[complete]

    def _members_present(self, pc: int, warps: Array, mask: Array) -> Array:
        """Warps in which every lane named by a member mask is here."""
        instruction = self.code(pc)
        if instruction.parts[0] == "activemask":
            return np.ones(len(warps), np.bool_)
        operand = instruction.operands[-1]
        named = self.kernel.decoder.read(operand, "b32")
        rows: Registers = [a[warps] if len(a) else a for a in self.registers]
        members = np.broadcast_to(named(rows), mask.shape)
        bits = (members[:, :, None] >> np.arange(LANES, dtype=np.uint32)) & np.uint32(1) != 0
        living = (self.pc != _DONE)[warps]
        missing = (bits & mask[:, :, None] & (living & ~mask)[:, None, :]).any(axis=(1, 2))
        return ~missing

    def _unlock(self) -> None:
        """Nobody can go on: lanes of one warp wait in different places."""
        if self.blocked.any():
            pc = int(self.pc[self.blocked].min())
            lanes = self.blocked & (self.pc == pc)
            elsewhere = (self.pc != pc) & (self.pc != _DONE) & lanes.any(axis=1)[:, None]
            other = int(self.pc[elsewhere].min()) if elsewhere.any() else pc
            barrier = is_barrier(self.code(pc))
            kind = DIVERGENT_BARRIER if barrier else DIVERGENT
            first = self.traffic.who(int(self.lanes[lanes][0]))
            detail = f"{first} waits here while lanes of its warp are at line {self.code(other).line}"
            self.traffic.complain(kind, pc, detail, int(lanes.any(axis=1).sum()))
            self.blocked[:] = False
            self.forced = True
            everyone = self.barrier_id < 0
            ready = np.where(everyone, self.pc, _DONE)
            if int(ready.min()) != pc:
                self.blocked |= everyone & (self.pc != pc) & (self.pc != _DONE)
            return
        waiting = self.barrier_id >= 0
        pc = int(self.pc[waiting].min())
        lane = int(self.lanes[waiting & (self.pc == pc)][0])
        detail = f"{self.traffic.who(lane)} waits for threads that never come"
        self.traffic.complain(DIVERGENT_BARRIER, pc, detail, int(waiting.sum()))
        self._release(waiting)

    # -- one segment ---------------------------------------------------------------------------------

    def _advance(self, g: Group, pc: int, whole: bool) -> None:
        """Runs a group from a program counter to the end of its segment and moves its lanes on."""
        stop = self.kernel.flow.block_end(pc)
        if not whole:
            start = pc + 1
            stop = min([stop, *(n for n in self.kernel.collectives if start <= n < stop)])
        segment = self.kernel.segment(pc, stop)
        direct = g.warps is None and g.mask is None
        env = self.registers
        if not direct:
            env = [_EMPTY] * len(self.registers)
            for index in segment.inputs:
                env[index] = g.rows(self.registers[index])
            env[0] = g.rows(self.registers[0])
        warps = g.count
        self.issues[pc:stop] += warps
        self.traffic.counts.warp_instructions += warps * (stop - pc)
        if segment.guarded:
            self._run_guarded(g, segment, env)
        else:
            for g.pc, step in enumerate(segment.steps, pc):
                step(env, g)
        if not direct:
            self._write_back(g, segment, env)
        last = stop - 1
        if len(segment.steps) == stop - pc:
            self._move(g, stop)
        else:
            g.pc = last
            self._leave(g, last, env)

    def _run_guarded(self, g: Group, segment: Segment, env: Registers) -> None:
        guards = dict(segment.guarded)
        for g.pc, step in enumerate(segment.steps, segment.start):
            if g.pc in guards:
                holds = guards[g.pc](env)
                some = holds if g.mask is None else holds & g.mask
                self.predicated_off += int((~some.any(axis=1)).sum())
            step(env, g)

    def _write_back(self, g: Group, segment: Segment, env: Registers) -> None:
        for index in segment.outputs:
            old, new = self.registers[index], env[index]
            if g.warps is None:
                self.registers[index] = np.where(g.mask, new, old)
            else:
                merged = old.copy()
                merged[g.warps] = new if g.mask is None else np.where(g.mask, new, old[g.warps])
                self.registers[index] = merged

    # -- where lanes go ------------------------------------------------------------------------------

    def _move(self, g: Group, target: int | Array, mask: Array | None = None) -> None:
        """Sets the program counter of the group's lanes (of those in `mask`)."""
        if self.together is not None:
            if mask is None and isinstance(target, int):
                if target == _DONE or target >= len(self.kernel.program.code):
                    self.pc[:] = _DONE
                    self.together = None
                else:
                    self.together = target
                return
            self.pc = np.where(self.alive, self.together, _DONE)
            self.together = None
        lanes = g.mask if mask is None else (mask if g.mask is None else mask & g.mask)
        if isinstance(target, int) and target >= len(self.kernel.program.code):
            target = _DONE
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
                self._move(g, pc + 1)
                return
        if name == "bra":
            target = self.kernel.flow.targets(pc)[0]
            self._move(g, target if taken is None else np.where(taken, target, pc + 1), taken if taken is None else _ALL)
        elif name == "brx":
            table = np.array(self.kernel.flow.targets(pc))
            index = self.kernel.decoder.read(instruction.operands[0], "u32")(env).astype(np.int64)
            beyond = (index >= len(table)) & (g.all_lanes())
            if beyond.any():
                raise PtxError(f"line {instruction.line}: branch index beyond its table: {instruction.text}")
            self._move(g, table[np.minimum(index, len(table) - 1)], _ALL)
        elif name in ("ret", "exit"):
            self._move(g, _DONE if taken is None else np.where(taken, _DONE, pc + 1), taken if taken is None else _ALL)
        elif name == "trap":
            raise PtxError(f"line {instruction.line}: trap was executed")
        else:
            self._arrive(g, pc, instruction, env, taken)

    # -- barriers ------------------------------------------------------------------------------------

    def _arrive(self, g: Group, pc: int, instruction: Instruction, env: Registers, taken: Array | None) -> None:
        """bar.sync, barrier.sync, bar.arrive and bar.red of the lanes of a group."""
        operands = list(instruction.operands)
        if "red" in instruction.parts:
            raise PtxError(f"line {instruction.line}: not supported by the interpreter: {instruction.text}")
        values = []
        for operand in operands:
            values.append(np.broadcast_to(self.kernel.decoder.read(operand, "u32")(env), (g.count, LANES)))
        counted = len(operands) > 1
        if self.together is not None and taken is None and not counted and isinstance(operands[0], Imm):
            if (self.alive != self.exists).any():
                self._complain_exited(pc)
            self.traffic.counts.barriers += self.blocks
            self.traffic.races.barrier(None)
            self._move(g, pc + 1)
            return
        if "arrive" in instruction.parts:
            raise PtxError(f"line {instruction.line}: not supported by the interpreter: {instruction.text}")
        if taken is not None:
            self._move(g, np.where(taken, pc, pc + 1), _ALL)
        else:
            self._move(g, np.full((g.count, LANES), pc), _ALL)
        lanes = g.all_lanes() if taken is None else g.all_lanes() & taken
        rows = slice(None) if g.warps is None else g.warps
        self.barrier_id[rows] = np.where(lanes, values[0], self.barrier_id[rows])
        self.barrier_size[rows] = np.where(lanes, values[1] if counted else 0, self.barrier_size[rows])
        self._release_complete(pc)

    def _release_complete(self, pc: int) -> None:
        """Lets the blocks go on whose barrier is complete."""
        shape = (self.blocks, -1)
        ids, sizes = self.barrier_id.reshape(shape), self.barrier_size.reshape(shape)
        living = (self.pc != _DONE).reshape(shape)
        for number in np.unique(ids[ids >= 0]):
            here = (ids == number) & living
            wanted = np.where(sizes.max(axis=1, where=here, initial=0) > 0, sizes.max(axis=1, where=here, initial=0), living.sum(axis=1))
            full = here.any(axis=1) & (here.sum(axis=1) >= wanted)
            if not full.any():
                continue
            missing = full & (living.sum(axis=1) < self.exists.reshape(shape).sum(axis=1)) & (
                sizes.max(axis=1, where=here, initial=0) == 0
            )
            if missing.any():
                self._complain_exited(pc)
            self._release((here & full[:, None]).reshape(self.pc.shape))

    def _complain_exited(self, pc: int) -> None:
        gone = (self.exists & ~self.alive) if self.together is not None else self.exists & (self.pc == _DONE)
        first = self.traffic.who(int(self.lanes[gone][0]))
        self.traffic.complain(DIVERGENT_BARRIER, pc, f"{first} has ended before this barrier", int(gone.sum()))

    def _release(self, lanes: Array) -> None:
        """Moves waiting lanes past their barrier."""
        blocks = np.flatnonzero(lanes.reshape(self.blocks, -1).any(axis=1))
        self.traffic.counts.barriers += len(blocks)
        self.pc = np.where(lanes, self.pc + 1, self.pc)
        self.barrier_id[lanes] = -1
        self.blocked &= ~lanes
        self.traffic.races.barrier(None if len(blocks) == self.blocks else blocks)


_EMPTY = np.zeros(0)
_ALL = np.ones((1, 1), np.bool_)


def initial(width: int, shape: tuple[int, ...]) -> Array:
    """A register that nobody has written."""
    return np.zeros(shape, RAW[width])
