"""A program decoded: stretches of instructions as steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .decoder import Decoder
from .flow import Flow, ends_block, is_collective
from .program import Program
from .types import Array, Registers, Step


@dataclass
class Segment:
    """Instructions [start, stop) as steps, with the registers they need and those they leave. A branch, exit
    or barrier at the end has no step. `guarded`: guards of the instructions that have one."""

    start: int
    stop: int
    steps: list[Step]
    inputs: list[int]
    outputs: list[int]
    guarded: dict[int, Callable[[Registers], Array]]


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
        """The decoded segment [start, stop)."""
        found = self._segments.get((start, stop))
        if found is None:
            code = self.program.code
            last = stop - 1 if ends_block(code[stop - 1]) else stop
            guards = {index: self.decoder.guard(code[index]) for index in range(start, last)}
            found = Segment(
                start,
                stop,
                [self.decoder.step(index) for index in range(start, last)],
                self.flow.inputs(start, stop),
                self.flow.outputs(start, last),
                {index: guard for index, guard in guards.items() if guard is not None},
            )
            self._segments[start, stop] = found
        return found
