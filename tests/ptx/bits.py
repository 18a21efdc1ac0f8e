"""Logic, shifts, bit fields, permutes, counts: PTX manual, "Logic and Shift Instructions" and its neighbours."""

from __future__ import annotations

import numpy as np

from .decoder import Decoder, operation, unsupported
from .integer import elementwise
from .syntax import Imm, Instruction
from .types import DTYPES, RAW, Array, Step


@operation("and", "or", "xor")
def logic(d: Decoder, i: Instruction) -> Step:
    """Bitwise operations; on predicates, logical ones."""
    kind = i.parts[-1]
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[i.parts[0]]
    return elementwise(d, i, function, [kind, kind])


@operation("not", "cnot")
def invert(d: Decoder, i: Instruction) -> Step:
    """not: every bit; cnot: 1 for zero, else 0."""
    kind = i.parts[-1]
    if i.parts[0] == "not":
        return elementwise(d, i, np.invert, [kind])
    return elementwise(d, i, lambda a: (a == 0).astype(a.dtype), [kind])


@operation("shl", "shr")
def shift(d: Decoder, i: Instruction) -> Step:
    """Shifts by more than the width act as shifts by the width."""
    kind = i.parts[-1]
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize

    def left(a: Array, by: Array) -> Array:
        shifted: Array = a << np.minimum(by, bits - 1).astype(dtype)
        return np.where(by >= bits, dtype.type(0), shifted)

    def right(a: Array, by: Array) -> Array:
        shifted: Array = a >> np.minimum(by, bits - 1).astype(dtype)
        return shifted if dtype.kind == "i" else np.where(by >= bits, dtype.type(0), shifted)

    if isinstance(i.operands[2], Imm) and 0 <= i.operands[2].value < bits:
        fixed = dtype.type(i.operands[2].value)
        if i.parts[0] == "shl":
            return elementwise(d, i, lambda a, by: a << fixed, [kind, "u32"])
        return elementwise(d, i, lambda a, by: a >> fixed, [kind, "u32"])
    return elementwise(d, i, left if i.parts[0] == "shl" else right, [kind, "u32"])


@operation("shf")
def funnel_shift(d: Decoder, i: Instruction) -> Step:
    """shf.{l,r}.{clamp,wrap}.b32 d, low, high, by."""
    leftwards, wrap = i.parts[1] == "l", i.parts[2] == "wrap"

    def function(low: Array, high: Array, by: Array) -> Array:
        amount = (by & np.uint32(31) if wrap else np.minimum(by, np.uint32(32))).astype(np.uint64)
        both = (high.astype(np.uint64) << np.uint64(32)) | low
        if leftwards:
            return (np.where(amount == 0, both, both << amount) >> np.uint64(32)).astype(np.uint32)
        return (both >> amount).astype(np.uint32)

    return elementwise(d, i, function, ["b32", "b32", "u32"])


@operation("lop3")
def lookup_logic(d: Decoder, i: Instruction) -> Step:
    """Any logic of three inputs: bit (a·4 + b·2 + c) of the table."""
    table = i.operands[4]
    if not isinstance(table, Imm) or i.parts[-1] != "b32":
        raise unsupported(i)
    code = int(table.value)
    ones = np.uint32(0xFFFFFFFF)

    def function(a: Array, b: Array, c: Array, _: Array) -> Array:
        result: Array = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), np.uint32)
        for row in range(8):
            if code >> row & 1:
                result |= (a if row & 4 else a ^ ones) & (b if row & 2 else b ^ ones) & (c if row & 1 else c ^ ones)
        return result

    return elementwise(d, i, function, ["b32"] * 4)


@operation("prmt")
def permute(d: Decoder, i: Instruction) -> Step:
    """Each selector nibble takes a byte of {b, a}, or (bit 3) its sign; or one of the six special modes."""
    mode = i.parts[2] if len(i.parts) > 2 else ""

    def function(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32)) | a
        result: Array = np.zeros(np.broadcast_shapes(both.shape, selector.shape), np.uint32)
        for position in range(4):
            if mode:
                nibble = _mode_selector(mode, selector & np.uint32(3), position)
            else:
                nibble = (selector >> np.uint32(4 * position)) & np.uint32(15)
            byte = (both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))).astype(np.uint32)
            byte = byte & np.uint32(0xFF)
            sign = (byte >> np.uint32(7)) * np.uint32(0xFF)
            result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * position)
        return result

    return elementwise(d, i, function, ["b32"] * 3)


def _mode_selector(mode: str, c: Array, position: int) -> Array:
    """The byte that a special mode of prmt puts at a position, for selectors c of 0 to 3."""
    p = np.uint32(position)
    if mode == "f4e":
        return c + p
    if mode == "b4e":
        return (c - p) & np.uint32(7)
    if mode == "rc8":
        return c
    if mode == "ecl":
        return np.maximum(c, p)
    if mode == "ecr":
        return np.minimum(c, p)
    return (c & np.uint32(1)) * np.uint32(2) + (p & np.uint32(1))  # rc16


@operation("bfe")
def extract_field(d: Decoder, i: Instruction) -> Step:
    """bfe d, a, pos, len: a field of a, extended by zeros or by its sign bit."""
    kind = i.parts[-1]
    dtype = DTYPES[kind]
    bits, raw = 8 * dtype.itemsize, RAW[dtype.itemsize]

    def function(a: Array, position: Array, length: Array) -> Array:
        position = (position & np.uint32(255)).astype(np.int64)
        length = (length & np.uint32(255)).astype(np.int64)
        source = a.view(raw)
        inside = np.minimum(position, bits - 1).astype(raw)
        shifted = np.where(position < bits, source >> inside, raw.type(0))
        take = np.clip(np.minimum(length, bits - position), 0, bits)
        mask = np.where(
            take == bits, ~raw.type(0), (raw.type(1) << np.minimum(take, bits - 1).astype(raw)) - raw.type(1)
        )
        value: Array = shifted & mask
        if dtype.kind == "u":
            return value
        at = np.minimum(position + length - 1, bits - 1)
        sign = np.where(length == 0, raw.type(0), (source >> np.maximum(at, 0).astype(raw)) & raw.type(1))
        extended: Array = np.where(sign != 0, value | ~mask, value)
        return extended.view(dtype)

    return elementwise(d, i, function, [kind, "u32", "u32"])


@operation("bfi")
def insert_field(d: Decoder, i: Instruction) -> Step:
    """bfi f, a, b, pos, len: b with the low bits of a put at a position."""
    kind = i.parts[-1]
    raw = DTYPES[kind]
    bits = 8 * raw.itemsize

    def function(a: Array, b: Array, position: Array, length: Array) -> Array:
        position = (position & np.uint32(255)).astype(np.int64)
        take = np.clip(np.minimum((length & np.uint32(255)).astype(np.int64), bits - position), 0, bits)
        at = np.minimum(position, bits - 1).astype(raw)
        ones = np.where(
            take == bits, ~raw.type(0), (raw.type(1) << np.minimum(take, bits - 1).astype(raw)) - raw.type(1)
        )
        mask = ones << at
        inserted: Array = (b & ~mask) | ((a << at) & mask)
        return inserted

    return elementwise(d, i, function, [kind, kind, "u32", "u32"])


@operation("bfind")
def find_leading(d: Decoder, i: Instruction) -> Step:
    """Position of the highest bit that is set (for signed negatives: not set); all ones if there is none."""
    kind, amount = i.parts[-1], "shiftamt" in i.parts
    dtype = DTYPES[kind]
    bits, raw = 8 * dtype.itemsize, RAW[dtype.itemsize]

    def function(a: Array) -> Array:
        value = np.where(a < 0, ~a, a).view(raw) if dtype.kind == "i" else a
        top = bits - 1 - _leading_zeros(value, bits).astype(np.int64)
        none = top < 0
        found = bits - 1 - top if amount else top
        return np.where(none, np.int64(0xFFFFFFFF), found).astype(np.uint32)

    return elementwise(d, i, function, [kind])


def _leading_zeros(value: Array, bits: int) -> Array:
    rest, zeros = value.copy(), np.zeros(value.shape, np.uint32)
    step = bits // 2
    while step:
        high = rest >> value.dtype.type(bits - step)
        empty = high == 0
        zeros = zeros + np.where(empty, np.uint32(step), np.uint32(0))
        rest = np.where(empty, rest << value.dtype.type(step), rest)
        step //= 2
    last: Array = rest >> value.dtype.type(bits - 1) == 0
    return zeros + last.astype(np.uint32)


@operation("clz")
def leading_zeros(d: Decoder, i: Instruction) -> Step:
    """Zeros above the highest set bit; the width for 0."""
    kind = i.parts[-1]
    return elementwise(d, i, lambda a: _leading_zeros(np.asarray(a), 8 * DTYPES[kind].itemsize), [kind])


@operation("popc")
def count_ones(d: Decoder, i: Instruction) -> Step:
    """Number of set bits."""
    kind = i.parts[-1]

    def function(a: Array) -> Array:
        parts = np.ascontiguousarray(a).reshape(*np.shape(a), 1).view(np.uint8)
        total: Array = _BYTE_COUNT[parts].sum(axis=-1)
        return total.astype(np.uint32)

    return elementwise(d, i, function, [kind])


_BYTE_COUNT = np.array([bin(value).count("1") for value in range(256)], np.uint32)
_BYTE_REVERSED = np.array([int(f"{value:08b}"[::-1], 2) for value in range(256)], np.uint8)


@operation("brev")
def reverse(d: Decoder, i: Instruction) -> Step:
    """The bits in opposite order."""
    kind = i.parts[-1]

    def function(a: Array) -> Array:
        parts = np.ascontiguousarray(a).reshape(*np.shape(a), 1).view(np.uint8)
        return np.ascontiguousarray(_BYTE_REVERSED[parts][..., ::-1]).view(DTYPES[kind])[..., 0]

    return elementwise(d, i, function, [kind])


@operation("bmsk")
def bit_mask(d: Decoder, i: Instruction) -> Step:
    """bmsk.{clamp,wrap}.b32 d, pos, len: `len` ones from bit `pos` up."""
    wrap = i.parts[1] == "wrap"

    def function(position: Array, length: Array) -> Array:
        where, take = position.astype(np.uint64), length.astype(np.uint64)
        if wrap:
            where, take = where & np.uint64(31), take & np.uint64(31)
        where, take = np.minimum(where, np.uint64(32)), np.minimum(take, np.uint64(32))
        return (((np.uint64(1) << take) - np.uint64(1)) << where).astype(np.uint32)

    return elementwise(d, i, function, ["u32", "u32"])
