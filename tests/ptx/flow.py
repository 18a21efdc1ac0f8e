"""Control flow of a program: basic blocks, which registers are alive where, stretches to run in one go."""

from __future__ import annotations

from collections.abc import Iterator

from .program import Program
from .syntax import Address, Instruction, Name, Not, Operand, Pair, PtxError, Reg, Vector

_NO_RESULT = frozenset(["st", "bra", "brx", "ret", "exit", "bar", "barrier", "red", "cp", "membar", "fence"])
_NO_RESULT |= frozenset(["prefetch", "prefetchu", "nanosleep", "trap", "stmatrix", "applypriority", "discard"])
_ENDS = frozenset(["bra", "brx", "ret", "exit", "trap", "bar", "barrier"])
_COLLECTIVE = frozenset(["shfl", "vote", "match", "ldmatrix", "stmatrix", "mma", "movmatrix", "redux", "activemask"])
_CARRY_USERS = frozenset(["addc", "subc", "madc"])


def has_result(instruction: Instruction) -> bool:
    """Whether operand 0 is written."""
    if instruction.parts[0] == "bar" or instruction.parts[0] == "barrier":
        return "red" in instruction.parts
    return instruction.parts[0] not in _NO_RESULT


def is_collective(instruction: Instruction) -> bool:
    """Whether lanes of a warp must arrive together (activemask only sees who has)."""
    if instruction.parts[:2] == ("bar", "warp"):
        return True
    return instruction.parts[0] in _COLLECTIVE


def is_barrier(instruction: Instruction) -> bool:
    """Whether this is a barrier of the block."""
    return instruction.parts[0] in ("bar", "barrier") and "warp" not in instruction.parts


def ends_block(instruction: Instruction) -> bool:
    """Whether control may go elsewhere than to the next instruction."""
    return instruction.parts[0] in _ENDS and instruction.parts[:2] != ("bar", "warp")


def _registers(operand: Operand) -> Iterator[int]:
    if isinstance(operand, Reg):
        yield operand.index
    elif isinstance(operand, Vector):
        for item in operand.items:
            yield from _registers(item)
    elif isinstance(operand, Not):
        yield from _registers(operand.operand)
    elif isinstance(operand, Pair):
        yield from _registers(operand.first)
        yield from _registers(operand.second)
    elif isinstance(operand, Address) and isinstance(operand.base, Reg):
        yield operand.base.index


class Flow:
    """Blocks and liveness. Sets of registers are bit masks in Python ints."""

    def __init__(self, program: Program) -> None:
        self.program = program
        code = program.code
        carry = program.special("%cc") if any(self._carry(i) for i in code) else None
        # `mov %r, symbol` reads the register that holds the symbol's address
        self.uses: list[int] = []
        self.defs: list[int] = []
        for instruction in code:
            use, define = self._effects(instruction, carry)
            self.uses.append(use)
            self.defs.append(define)
        self.leaders = self._find_leaders()
        self._leader_set = frozenset(self.leaders)
        self.live_in = self._liveness()

    @staticmethod
    def _carry(instruction: Instruction) -> bool:
        return "cc" in instruction.parts or instruction.parts[0] in _CARRY_USERS

    def _effects(self, instruction: Instruction, carry: int | None) -> tuple[int, int]:
        use = define = 0
        result = has_result(instruction)
        for position, operand in enumerate(instruction.operands):
            mask = 0
            for index in _registers(operand):
                mask |= 1 << index
            for index in self._addresses(operand):
                use |= 1 << index
            if result and position == 0 and not isinstance(operand, Address):
                define |= mask
            else:
                use |= mask
        if carry is not None and self._carry(instruction):
            if "cc" in instruction.parts:
                define |= 1 << carry
            if instruction.parts[0] in _CARRY_USERS:
                use |= 1 << carry
        if instruction.guard is not None:
            use |= define | 1 << instruction.guard[0].index
        if instruction.parts[0] in ("cvt", "mov") and any(
            self.program.registers[i] == "b8" for i in _registers(instruction.operands[0])
        ):
            use |= define
        return use, define

    def _addresses(self, operand: Operand) -> Iterator[int]:
        """Registers that hold addresses of module variables named by an operand."""
        if isinstance(operand, Vector):
            for item in operand.items:
                yield from self._addresses(item)
            return
        var = getattr(operand, "var", None) or getattr(getattr(operand, "base", None), "var", None)
        if var in self.program.globals:
            yield self.program.globals[var]

    def targets(self, index: int) -> list[int]:
        """Where the instruction may branch to."""
        instruction = self.program.code[index]
        if instruction.parts[0] == "bra":
            return [self.label(instruction, instruction.operands[0])]
        if instruction.parts[0] == "brx":
            table = instruction.operands[1]
            if not isinstance(table, Name) or table.text not in self.program.tables:
                raise PtxError(f"line {instruction.line}: unknown branch table: {instruction.text}")
            return [self.label(instruction, Name(target)) for target in self.program.tables[table.text]]
        return []

    def label(self, instruction: Instruction, operand: Operand) -> int:
        """Index of a label."""
        if not isinstance(operand, Name) or operand.text not in self.program.labels:
            raise PtxError(f"line {instruction.line}: unknown label: {instruction.text}")
        return self.program.labels[operand.text]

    def _find_leaders(self) -> list[int]:
        leaders = {0, len(self.program.code)}
        for index, instruction in enumerate(self.program.code):
            if ends_block(instruction):
                leaders.add(index + 1)
                leaders.update(self.targets(index))
        return sorted(leaders)

    def _liveness(self) -> list[int]:
        """Registers alive before each instruction."""
        code = self.program.code
        live = [0] * (len(code) + 1)
        blocks = list(zip(self.leaders, self.leaders[1:], strict=False))
        changed = True
        while changed:
            changed = False
            for start, stop in reversed(blocks):
                alive = self._live_out(live, stop - 1)
                for index in range(stop - 1, start - 1, -1):
                    alive = (alive & ~self.defs[index]) | self.uses[index]
                    if index != start:
                        live[index] = alive
                if alive != live[start]:
                    live[start] = alive
                    changed = True
        return live

    def _live_out(self, live: list[int], last: int) -> int:
        instruction = self.program.code[last]
        name, guarded = instruction.parts[0], instruction.guard is not None
        alive = 0
        for target in self.targets(last):
            alive |= live[target]
        falls_through = name not in ("bra", "brx", "ret", "exit", "trap") or guarded
        return alive | live[last + 1] if falls_through else alive

    def block_end(self, index: int) -> int:
        """First leader after an instruction."""
        low, high = 0, len(self.leaders)
        while low < high:
            middle = (low + high) // 2
            if self.leaders[middle] <= index:
                low = middle + 1
            else:
                high = middle
        return self.leaders[low]

    def inputs(self, start: int, stop: int) -> list[int]:
        """Registers that [start, stop) reads before it writes them."""
        alive = 0
        for index in range(stop - 1, start - 1, -1):
            alive = (alive & ~self.defs[index]) | self.uses[index]
        return _bits(alive)

    def outputs(self, start: int, stop: int) -> list[int]:
        """Registers that [start, stop) writes and that are alive after it."""
        written = 0
        for index in range(start, stop):
            written |= self.defs[index]
        if not written:
            return []
        last = stop - 1
        alive = self._live_out(self.live_in, last) if stop in self._leader_set else self.live_in[stop]
        return _bits(written & alive)


def _bits(mask: int) -> list[int]:
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
