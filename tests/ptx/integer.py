"""Integer arithmetic: PTX manual, "Integer Arithmetic Instructions" and "Extended-Precision Integer Arithmetic"."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .decoder import Decoder, unsupported
from .syntax import Instruction
from .types import DTYPES, RAW, Array, Read, Registers, Step

Binary = Callable[[Array, Array], Array]


def operand_type(instruction: Instruction) -> str:
    """The type an instruction works in: its last part."""
    return instruction.parts[-1]


def elementwise(d: Decoder, i: Instruction, function: Callable[..., Array], kinds: list[str]) -> Step:
    """result = function(operands…), each operand read as its type."""
    write = d.write(i, i.operands[0])
    reads = [d.read(operand, kind) for operand, kind in zip(i.operands[1:], kinds, strict=True)]
    if len(reads) == 1:
        only = reads[0]
        return lambda r, g: write(r, function(only(r)))
    if len(reads) == 2:
        first, second = reads
        return lambda r, g: write(r, function(first(r), second(r)))
    if len(reads) == 3:
        one, two, three = reads
        return lambda r, g: write(r, function(one(r), two(r), three(r)))
    return lambda r, g: write(r, function(*(read(r) for read in reads)))


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the exact product, of the operands' type."""
    dtype = np.result_type(a, b)
    bits = 8 * dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
        upper: Array = (a.astype(wide) * b.astype(wide)) >> wide.type(bits)
        return upper.astype(dtype)
    x, y = a.astype(np.uint64), b.astype(np.uint64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    low = (x & mask) * (y & mask)
    cross = (x >> half) * (y & mask) + (low >> half)
    other = (x & mask) * (y >> half) + (cross & mask)
    high: Array = (x >> half) * (y >> half) + (cross >> half) + (other >> half)
    if dtype.kind == "i":
        zero = np.uint64(0)
        high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.view(dtype)


def multiply_wide(a: Array, b: Array) -> Array:
    """The exact product, in twice the width."""
    dtype = np.result_type(a, b)
    wide = np.dtype(f"{dtype.kind}{dtype.itemsize * 2}")
    product: Array = a.astype(wide) * b.astype(wide)
    return product


def divide(a: Array, b: Array) -> Array:
    """Quotient cut towards zero. Division by zero is undefined in PTX; all ones here, as GPUs give."""
    zero = b == 0
    divisor = np.where(zero, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        quotient = a // divisor
    else:
        magnitude = np.abs(a).view(RAW[a.dtype.itemsize]) // np.abs(divisor).view(RAW[a.dtype.itemsize])
        signed = magnitude.view(a.dtype)
        quotient = np.where((a < 0) != (divisor < 0), -signed, signed)
    return np.where(zero, ~np.zeros_like(quotient), quotient)


def remainder(a: Array, b: Array) -> Array:
    """a - b · divide(a, b); a itself for b = 0."""
    return np.where(b == 0, a, a - b * divide(a, b))


def saturated(function: Binary) -> Binary:
    """The s32 operation clamped to its type."""

    def clamped(a: Array, b: Array) -> Array:
        exact = function(a.astype(np.int64), b.astype(np.int64))
        return np.clip(exact, -(2**31), 2**31 - 1).astype(np.int32)

    return clamped


def add_or_sub(d: Decoder, i: Instruction) -> Step:
    """add, sub on integers, with .sat and the carry of .cc."""
    kind = operand_type(i)
    function: Binary = np.add if i.parts[0] == "add" else np.subtract
    if "cc" in i.parts:
        return _with_carry(d, i)
    if "sat" in i.parts:
        function = saturated(function)
    return elementwise(d, i, function, [kind, kind])


def _with_carry(d: Decoder, i: Instruction) -> Step:
    """add.cc, addc, sub.cc, subc. The carry register holds 1 for a carry, or for a borrow."""
    kind = operand_type(i)
    bits = 8 * DTYPES[kind].itemsize
    raw, subtract = f"u{bits}", i.parts[0].startswith("sub")
    first, second = d.read(i.operands[1], raw), d.read(i.operands[2], raw)
    write, carry = d.write(i, i.operands[0]), d.program.special("%cc")
    takes, gives = i.parts[0] in ("addc", "subc"), "cc" in i.parts
    if i.guard is not None:
        raise unsupported(i, "a guard on carry arithmetic")

    def step(r: Registers, g: object) -> None:
        a, b = first(r), second(r)
        incoming = r[carry].astype(DTYPES[raw]) if takes else DTYPES[raw].type(0)
        if subtract:
            result = a - b - incoming
            outgoing = (a < b) | ((a == b) & (incoming != 0))
        else:
            partial = a + b
            result = partial + incoming
            outgoing = (partial < a) | (result < partial)
        write(r, result)
        if gives:
            r[carry] = np.broadcast_to(outgoing, r[0].shape).astype(np.uint32)

    return step


def carry_chain(d: Decoder, i: Instruction) -> Step:
    """addc and subc."""
    return _with_carry(d, i)


def multiply(d: Decoder, i: Instruction) -> Step:
    """mul on integers."""
    kind = operand_type(i)
    functions: dict[str, Binary] = {"lo": np.multiply, "hi": multiply_high, "wide": multiply_wide}
    return elementwise(d, i, functions[i.parts[1]], [kind, kind])


def multiply_add(d: Decoder, i: Instruction) -> Step:
    """mad on integers, and the carry forms mad.cc and madc."""
    kind, mode = operand_type(i), i.parts[1]
    functions: dict[str, Binary] = {"lo": np.multiply, "hi": multiply_high, "wide": multiply_wide}
    product = functions[mode]
    width = DTYPES[kind].itemsize * (2 if mode == "wide" else 1)
    total = f"{kind[0]}{8 * width}"
    if "cc" in i.parts or i.parts[0] == "madc":
        return _multiply_add_carry(d, i, product)
    if "sat" in i.parts:
        return elementwise(d, i, lambda a, b, c: saturated(np.add)(product(a, b), c), [kind, kind, kind])
    return elementwise(d, i, lambda a, b, c: product(a, b) + c, [kind, kind, total])


def _multiply_add_carry(d: Decoder, i: Instruction, product: Binary) -> Step:
    kind = operand_type(i)
    raw = RAW[DTYPES[kind].itemsize]
    reads: list[Read] = [d.read(operand, kind) for operand in i.operands[1:]]
    write, carry = d.write(i, i.operands[0]), d.program.special("%cc")
    takes, gives = i.parts[0] == "madc", "cc" in i.parts
    if i.guard is not None:
        raise unsupported(i, "a guard on carry arithmetic")

    def step(r: Registers, g: object) -> None:
        a, b, c = (read(r) for read in reads)
        low, addend = product(a, b).view(raw), c.view(raw)
        partial = low + addend
        result = partial + (r[carry].astype(raw) if takes else raw.type(0))
        write(r, result)
        if gives:
            carried = (partial < addend) | (result < partial)
            r[carry] = np.broadcast_to(carried, r[0].shape).astype(np.uint32)

    return step


def _multiply_24(a: Array, b: Array) -> Array:
    """The exact product of the operands' low 24 bits, as 64 bits."""
    if a.dtype.kind == "u":
        mask = np.uint32(0xFFFFFF)
        return (a & mask).astype(np.uint64) * (b & mask).astype(np.uint64)
    eight = np.int32(8)
    return ((a << eight) >> eight).astype(np.int64) * ((b << eight) >> eight).astype(np.int64)


def multiply_24(d: Decoder, i: Instruction) -> Step:
    """mul24 and mad24: lo takes bits 0 to 31 of the 48-bit product, hi bits 16 to 47."""
    kind = operand_type(i)
    shift, dtype = (16 if i.parts[1] == "hi" else 0), DTYPES[kind]

    def product(a: Array, b: Array) -> Array:
        wide = _multiply_24(a, b)
        field: Array = wide >> wide.dtype.type(shift)
        return field.astype(dtype)

    if i.parts[0] == "mul24":
        return elementwise(d, i, product, [kind, kind])
    return elementwise(d, i, lambda a, b, c: product(a, b) + c, [kind, kind, kind])


def dot_product(d: Decoder, i: Instruction) -> Step:
    """dp4a: four 8-bit products; dp2a: two 16-bit by 8-bit products, of the lower or upper byte pair of b."""
    first, second = i.parts[-2], i.parts[-1]
    result = "s32" if "s32" in (first, second) else "u32"
    four = i.parts[0] == "dp4a"
    upper = "hi" in i.parts

    def lanes(value: Array, bits: int, signed: bool, count: int, start: int = 0) -> list[Array]:
        fields = []
        for position in range(start, start + count):
            field = (value >> np.uint32(bits * position)) & np.uint32((1 << bits) - 1)
            wide = field.astype(np.int64)
            fields.append(np.where(wide >> (bits - 1), wide - (1 << bits), wide) if signed else wide)
        return fields

    def function(a: Array, b: Array, c: Array) -> Array:
        left = lanes(a, 8 if four else 16, first == "s32", 4 if four else 2)
        right = lanes(b, 8, second == "s32", 4 if four else 2, 0 if four or not upper else 2)
        total = c.astype(np.int64)
        for x, y in zip(left, right, strict=True):
            total = total + x * y
        return total.astype(np.uint32).view(DTYPES[result])

    return elementwise(d, i, function, ["u32", "u32", result])


UNARY: dict[str, Callable[[Array], Array]] = {"neg": np.negative, "abs": np.abs}
BINARY: dict[str, Binary] = {"div": divide, "rem": remainder, "min": np.minimum, "max": np.maximum}


def simple(d: Decoder, i: Instruction) -> Step:
    """neg, abs, div, rem, min, max, sad on integers."""
    kind = operand_type(i)
    if i.parts[0] in UNARY:
        return elementwise(d, i, UNARY[i.parts[0]], [kind])
    if i.parts[0] in BINARY:
        if "relu" in i.parts:
            function = BINARY[i.parts[0]]
            return elementwise(d, i, lambda a, b: np.maximum(function(a, b), 0), [kind, kind])
        return elementwise(d, i, BINARY[i.parts[0]], [kind, kind])
    if i.parts[0] == "sad":
        raw = DTYPES["u" + kind[1:]]
        return elementwise(d, i, lambda a, b, c: c + _distance(a, b).view(raw).view(c.dtype), [kind] * 3)
    raise unsupported(i)


def _distance(a: Array, b: Array) -> Array:
    """|a - b| modulo the type's width."""
    return np.where(a > b, a - b, b - a)
