"""Barriers of a block: who waits, when they may go on, and what they voted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .decoder import unsupported
from .findings import DIVERGENT_BARRIER
from .group import DONE, EVERY_LANE, Group
from .syntax import Imm, Instruction, Reg
from .types import LANES, Array, Registers

if TYPE_CHECKING:
    from .machine import Machine


class Barriers:
    """bar.sync, bar.red and bar.arrive, with their numbers and thread counts, of all running blocks."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.number = np.full(machine.lanes.shape, -1)  # of the barrier each lane waits at; -1: none
        self.size = np.zeros(machine.lanes.shape, np.int64)  # threads it waits for; 0: the whole block
        self.votes = np.zeros(machine.lanes.shape, np.bool_)
        self.arrived: dict[int, Array] = {}  # barrier -> threads of each block that did not stay to wait

    @property
    def free(self) -> Array:
        """Lanes that wait at no barrier."""
        return self.number < 0

    def arrive(self, g: Group, pc: int, instruction: Instruction, env: Registers, taken: Array | None) -> None:
        """The lanes of a group (of those in `taken`) reach a barrier."""
        m = self.machine
        operands = list(instruction.operands)
        votes = "red" in instruction.parts
        if votes:
            vote = m.kernel.decoder.read(operands.pop(), "pred")(env)
            operands.pop(0)
            rows = slice(None) if g.warps is None else g.warps
            self.votes[rows] = np.where(g.all_lanes(), vote, self.votes[rows])
        counted = len(operands) > 1
        if "arrive" in instruction.parts:
            self._pass_by(g, pc, instruction, env, taken)
            return
        if not votes and m.together is not None and taken is None and not counted and isinstance(operands[0], Imm):
            if (m.alive != m.exists).any():
                self._complain_ended(pc, m.exists & ~m.alive)
            m.traffic.counts.barriers += m.blocks
            m.traffic.races.barrier(None)
            m.move(g, pc + 1)
            return
        shape = (g.count, LANES)
        values = [np.broadcast_to(m.kernel.decoder.read(operand, "u32")(env), shape) for operand in operands]
        m.move(g, np.full(shape, pc) if taken is None else np.where(taken, pc, pc + 1), EVERY_LANE)
        lanes = g.all_lanes() if taken is None else g.all_lanes() & taken
        rows = slice(None) if g.warps is None else g.warps
        self.number[rows] = np.where(lanes, values[0], self.number[rows])
        self.size[rows] = np.where(lanes, values[1] if counted else 0, self.size[rows])
        self._release_complete(pc)

    def _release_complete(self, pc: int) -> None:
        """Lets the lanes go on whose barrier has all its threads."""
        m = self.machine
        shape = (m.blocks, -1)
        numbers, sizes = self.number.reshape(shape), self.size.reshape(shape)
        living = (m.pc != DONE).reshape(shape)
        exists = m.exists.reshape(shape)
        for number in np.unique(numbers[numbers >= 0]):
            here = (numbers == number) & living
            size = sizes.max(axis=1, where=here, initial=0)
            passed = self.arrived.get(int(number), np.zeros(m.blocks, np.int64))
            wanted = np.where(size > 0, size, living.sum(axis=1))
            full = here.any(axis=1) & (here.sum(axis=1) + passed >= wanted)
            if not full.any():
                continue
            ended = exists & ~living & (full & (size == 0))[:, None]
            if ended.any():
                self._complain_ended(pc, ended.reshape(m.pc.shape))
            passed[full] = 0
            self._release((here & full[:, None]).reshape(m.pc.shape))

    def _pass_by(self, g: Group, pc: int, instruction: Instruction, env: Registers, taken: Array | None) -> None:
        """bar.arrive: counted at the barrier, without waiting."""
        m = self.machine
        number = instruction.operands[0]
        if not isinstance(number, Imm) or taken is not None:
            raise unsupported(instruction)
        lanes = np.zeros(m.pc.shape, np.bool_)
        lanes[slice(None) if g.warps is None else g.warps] = g.all_lanes()
        count = self.arrived.setdefault(int(number.value), np.zeros(m.blocks, np.int64))
        count += lanes.reshape(m.blocks, -1).sum(axis=1)
        m.move(g, pc + 1)
        self.recheck()

    def recheck(self) -> None:
        """Threads have ended: barriers that only waited for them are complete."""
        waiting = self.number >= 0
        if waiting.any():
            self._release_complete(int(self.machine.pc[waiting].min()))

    def give_up(self) -> None:
        """Nobody can arrive any more: reports who waits, and lets them go on."""
        m = self.machine
        waiting = self.number >= 0
        pc = int(m.pc[waiting].min())
        lane = int(m.lanes[waiting & (m.pc == pc)][0])
        m.traffic.complain(
            DIVERGENT_BARRIER, pc, f"{m.traffic.who(lane)} waits for threads that never come", int(waiting.sum())
        )
        self._release(waiting)

    def _complain_ended(self, pc: int, gone: Array) -> None:
        traffic = self.machine.traffic
        first = traffic.who(int(self.machine.lanes[gone][0]))
        traffic.complain(DIVERGENT_BARRIER, pc, f"{first} has ended before this barrier", int(gone.sum()))

    def _release(self, lanes: Array) -> None:
        """Moves waiting lanes past their barrier."""
        m = self.machine
        blocks = np.flatnonzero(lanes.reshape(m.blocks, -1).any(axis=1))
        m.traffic.counts.barriers += len(blocks)
        for pc in np.unique(m.pc[lanes]):
            if "red" in m.code(int(pc)).parts:
                self._count_votes(int(pc), lanes)
        m.pc = np.where(lanes, m.pc + 1, m.pc)
        self.number[lanes] = -1
        m.blocked &= ~lanes
        m.traffic.races.barrier(None if len(blocks) == m.blocks else blocks)

    def _count_votes(self, pc: int, lanes: Array) -> None:
        """Gives the lanes released from a bar.red the number of votes, or whether any or every thread voted."""
        m = self.machine
        instruction = m.code(pc)
        target = instruction.operands[0]
        if not isinstance(target, Reg):
            raise unsupported(instruction)
        shape = (m.blocks, -1)
        here = lanes.reshape(shape)
        votes = (here & self.votes.reshape(shape)).sum(axis=1)
        if "popc" in instruction.parts:
            result = votes.astype(np.uint32)
        else:
            result = votes > 0 if "or" in instruction.parts else votes == here.sum(axis=1)
        every = np.repeat(result, lanes.size // m.blocks).reshape(m.pc.shape)
        m.registers[target.index] = np.where(lanes & (m.pc == pc), every, m.registers[target.index])
