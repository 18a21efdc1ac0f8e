"""Operands as closures over registers: the tools with which instructions become steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .group import Group
from .program import Program
from .syntax import Address, Imm, Instruction, Not, Operand, PtxError, Reg, Sink, Symbol, Vector, width_of
from .types import DTYPES, RAW, Array, Read, Registers, Step, Write

Build = Callable[["Decoder", Instruction], Step]
OPERATIONS: dict[str, Build] = {}
"""What each first part of an opcode becomes. The modules of instructions fill it."""


def operation(*names: str) -> Callable[[Build], Build]:
    """Registers a builder for opcodes that begin with one of these names."""

    def register(build: Build) -> Build:
        for name in names:
            OPERATIONS[name] = build
        return build

    return register


def unsupported(instruction: Instruction, why: str = "") -> PtxError:
    """The error for an instruction that the interpreter does not know."""
    reason = f" ({why})" if why else ""
    return PtxError(f"line {instruction.line}: not supported by the interpreter{reason}: {instruction.text}")


class Decoder:
    """Turns instructions of one program into steps."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.widths = [width_of(kind) for kind in program.registers]

    def step(self, index: int) -> Step:
        """The step of the instruction at an index; its program counter is put into the group by the machine."""
        instruction = self.program.code[index]
        build = OPERATIONS.get(instruction.parts[0])
        if build is None:
            raise unsupported(instruction)
        try:
            return build(self, instruction)
        except (IndexError, KeyError, PtxError) as error:
            if isinstance(error, PtxError) and str(error).startswith("line "):
                raise
            raise unsupported(instruction, f"{type(error).__name__}: {error}") from error

    # -- reading -------------------------------------------------------------------------------------

    def read(self, operand: Operand, kind: str) -> Read:
        """A closure that gives an operand as the numpy type of a PTX type; literals give numpy scalars."""
        dtype = DTYPES[kind]
        if isinstance(operand, Imm):
            value = literal(operand, kind)
            return lambda r: value
        if isinstance(operand, Symbol):
            return self._read_symbol(operand, kind)
        if isinstance(operand, Not):
            inner = self.read(operand.operand, kind)
            return lambda r: ~inner(r)
        if isinstance(operand, Vector):
            return self._read_packed(operand, kind)
        if not isinstance(operand, Reg):
            raise PtxError(f"got the operand {operand}, expected a register or a literal")
        index, width = operand.index, self.widths[operand.index]
        if (dtype.itemsize == width and width) or (dtype == np.bool_ and width == 0):
            if dtype == RAW[width]:
                return lambda r: r[index]
            return lambda r: r[index].view(dtype)
        if width == 0:
            raise PtxError(f"got a predicate, expected .{kind}")
        if dtype == np.bool_:
            raise PtxError("got a register that is no predicate, expected a predicate")
        raw = RAW[dtype.itemsize]
        return lambda r: r[index].astype(raw).view(dtype)

    def _read_symbol(self, symbol: Symbol, kind: str) -> Read:
        program, var, dtype = self.program, symbol.var, DTYPES[kind]
        if var in program.globals:
            index, offset = program.globals[var], np.uint64(symbol.offset)
            return lambda r: (r[index] + offset).astype(dtype)
        for table in (program.shared, program.frame, program.params):
            if var in table:
                value = dtype.type(table[var] + symbol.offset)
                return lambda r: value
        raise PtxError(f"the variable {var.name} has no address here")

    def _read_packed(self, vector: Vector, kind: str) -> Read:
        """`{low, high}` as one value."""
        total = DTYPES[kind].itemsize
        part = total // len(vector.items)
        raw = RAW[total]
        readers = [self.read(item, f"b{8 * part}") for item in vector.items]
        shifts = [raw.type(8 * part * i) for i in range(len(readers))]
        dtype = DTYPES[kind]

        def read(r: Registers) -> Array:
            value: Array = readers[0](r).astype(raw)
            for reader, shift in zip(readers[1:], shifts[1:], strict=True):
                value = value | (reader(r).astype(raw) << shift)
            if value.ndim == 0:
                value = np.full(r[0].shape, value, raw)
            return value.view(dtype)

        return read

    # -- writing -------------------------------------------------------------------------------------

    def write(self, instruction: Instruction, operand: Operand) -> Write:
        """A closure that stores values in a register: bits as they are; narrower ones are extended by their
        sign; lanes whose guard does not hold keep what they had. `_` stores nothing."""
        if isinstance(operand, Sink):
            return lambda r, value: None
        if isinstance(operand, Vector):
            return self._write_packed(instruction, operand)
        if not isinstance(operand, Reg):
            raise PtxError(f"line {instruction.line}: got the result {operand}, expected a register")
        index, width = operand.index, self.widths[operand.index]
        raw = RAW[width]
        signed = np.dtype(f"int{8 * width}") if width else None
        guard = self.guard(instruction)

        def bits(r: Registers, value: Array) -> Array:
            if value.dtype != raw:
                if value.dtype.itemsize == raw.itemsize:
                    value = value.view(raw)
                elif value.dtype.kind == "i" and signed is not None:
                    value = value.astype(signed).view(raw)
                else:
                    value = value.view(RAW[value.dtype.itemsize]).astype(raw)
            if value.ndim == 0:
                return np.full(r[0].shape, value, raw)
            return value

        if guard is None:

            def write(r: Registers, value: Array) -> None:
                r[index] = bits(r, value)
        else:
            holds = guard

            def write(r: Registers, value: Array) -> None:
                r[index] = np.where(holds(r), bits(r, value), r[index])

        return write

    def _write_packed(self, instruction: Instruction, vector: Vector) -> Write:
        """Stores one value into `{low, high}`."""
        writers = [self.write(instruction, item) for item in vector.items]

        def write(r: Registers, value: Array) -> None:
            part = value.dtype.itemsize // len(writers)
            if value.ndim == 0:
                value = np.full(r[0].shape, value, value.dtype)
            split = np.ascontiguousarray(value).view(RAW[part]).reshape(*value.shape, len(writers))
            for position, writer in enumerate(writers):
                writer(r, np.ascontiguousarray(split[..., position]))

        return write

    # -- who executes --------------------------------------------------------------------------------

    def guard(self, instruction: Instruction) -> Read | None:
        """The guard as bool lanes."""
        if instruction.guard is None:
            return None
        index, negated = instruction.guard[0].index, instruction.guard[1]
        if negated:
            return lambda r: ~r[index]
        return lambda r: r[index]

    def active(self, instruction: Instruction) -> Callable[[Registers, Group], Array | None]:
        """The lanes that execute the instruction, guard included; None for all."""
        guard = self.guard(instruction)
        if guard is None:
            return lambda r, g: g.mask
        holds = guard
        return lambda r, g: g.combine(holds(r))

    # -- addresses -----------------------------------------------------------------------------------

    def address(self, instruction: Instruction, operand: Operand) -> Read:
        """`[base+offset]` as (warps, 32) int64."""
        if not isinstance(operand, Address):
            raise PtxError(f"line {instruction.line}: got {operand}, expected an address")
        offset = operand.offset
        if operand.base is None:
            return lambda r: np.full(r[0].shape, offset, np.int64)
        if isinstance(operand.base, Symbol):
            base = self._read_symbol(operand.base, "u64")
            return lambda r: np.full(r[0].shape, base(r).astype(np.int64) + offset, np.int64)
        index = operand.base.index
        if self.widths[index] == 8:
            if offset:
                return lambda r: r[index].view(np.int64) + offset
            return lambda r: r[index].view(np.int64)
        return lambda r: r[index].astype(np.int64) + offset


def literal(operand: Imm, kind: str) -> Array:
    """A literal as a numpy scalar of a PTX type."""
    dtype = DTYPES[kind]
    if operand.kind == "decimal":
        return np.array(operand.value, dtype)[()]
    value = int(operand.value)
    if dtype == np.bool_:
        return np.array(value != 0)[()]
    if operand.kind == "int" and dtype.kind == "f":
        return np.array(value, dtype)[()]
    if operand.kind == "f64" and dtype.itemsize == 4:
        return np.array(value, np.uint64).view(np.float64).astype(np.float32).view(dtype)[()]
    raw = RAW[dtype.itemsize]
    return np.array(value & ((1 << 8 * dtype.itemsize) - 1), raw).view(dtype)[()]
