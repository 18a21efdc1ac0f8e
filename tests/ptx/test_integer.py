"""Integer instructions against Python integers and the manual's own pseudo-code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .lanes import evaluate, run_lanes

EDGES_32 = [0, 1, 2, 3, 7, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 0x12345678]
PAIRS_32 = np.array([(a, b) for a in EDGES_32 for b in EDGES_32], np.uint32)
A32, B32 = PAIRS_32[:, 0].copy(), PAIRS_32[:, 1].copy()
EDGES_64 = [0, 1, 5, 63, 64, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 0x123456789ABCDEF0]
PAIRS_64 = np.array([(a, b) for a in EDGES_64 for b in EDGES_64], np.uint64)
A64, B64 = PAIRS_64[:, 0].copy(), PAIRS_64[:, 1].copy()


def signed(value: int, bits: int = 32) -> int:
    """The value of some bits as two's complement."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def table(function: Callable[..., int], *columns: npt.NDArray[Any], bits: int = 32) -> npt.NDArray[Any]:
    """function of Python integers for every row, modulo 2^bits."""
    kind = {16: np.uint16, 32: np.uint32, 64: np.uint64}[bits]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return np.array([function(*row) & ((1 << bits) - 1) for row in rows], kind)


def quotient(a: int, b: int) -> int:
    """Cut towards zero."""
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


@pytest.mark.parametrize(
    ("code", "function"),
    [
        ("add.s32 x, a, b;", lambda a, b: a + b),
        ("sub.u32 x, a, b;", lambda a, b: a - b),
        ("mul.lo.s32 x, a, b;", lambda a, b: a * b),
        ("mul.hi.u32 x, a, b;", lambda a, b: a * b >> 32),
        ("mul.hi.s32 x, a, b;", lambda a, b: signed(a) * signed(b) >> 32),
        ("mad.lo.u32 x, a, b, a;", lambda a, b: a * b + a),
        ("mad.hi.s32 x, a, b, b;", lambda a, b: (signed(a) * signed(b) >> 32) + b),
        ("min.s32 x, a, b;", lambda a, b: min(signed(a), signed(b))),
        ("max.u32 x, a, b;", lambda a, b: max(a, b)),
        ("sad.s32 x, a, b, 5;", lambda a, b: 5 + abs(signed(a) - signed(b))),
        ("sad.u32 x, a, b, a;", lambda a, b: a + abs(a - b)),
        ("mul24.lo.u32 x, a, b;", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
        ("mul24.hi.s32 x, a, b;", lambda a, b: signed(a, 24) * signed(b, 24) >> 16),
        ("add.sat.s32 x, a, b;", lambda a, b: max(-(2**31), min(2**31 - 1, signed(a) + signed(b)))),
        ("sub.sat.s32 x, a, b;", lambda a, b: max(-(2**31), min(2**31 - 1, signed(a) - signed(b)))),
        ("and.b32 x, a, b;", lambda a, b: a & b),
        ("or.b32 x, a, b;", lambda a, b: a | b),
        ("xor.b32 x, a, b;", lambda a, b: a ^ b),
        ("not.b32 x, a;", lambda a, b: ~a),
        ("cnot.b32 x, a;", lambda a, b: int(a == 0)),
        ("neg.s32 x, a;", lambda a, b: -a),
        ("abs.s32 x, a;", lambda a, b: abs(signed(a))),
        ("shl.b32 x, a, b;", lambda a, b: a << b if b < 32 else 0),
        ("shr.u32 x, a, b;", lambda a, b: a >> b if b < 32 else 0),
        ("shr.s32 x, a, b;", lambda a, b: signed(a) >> min(b, 31)),
        ("shl.b32 x, a, 5;", lambda a, b: a << 5),
        ("shr.s32 x, a, 31;", lambda a, b: signed(a) >> 31),
        ("shr.u32 x, a, 32;", lambda a, b: 0),
        ("shf.l.wrap.b32 x, a, b, 9;", lambda a, b: (b << 32 | a) << 9 >> 32),
        ("shf.r.wrap.b32 x, a, b, a;", lambda a, b: (b << 32 | a) >> (a & 31)),
        ("shf.r.clamp.b32 x, a, b, a;", lambda a, b: (b << 32 | a) >> min(a, 32)),
        ("shf.l.clamp.b32 x, a, b, b;", lambda a, b: (b << 32 | a) << min(b, 32) >> 32),
        ("popc.b32 x, a;", lambda a, b: bin(a).count("1")),
        ("clz.b32 x, a;", lambda a, b: 32 - a.bit_length()),
        ("brev.b32 x, a;", lambda a, b: int(f"{a:032b}"[::-1], 2)),
        ("bfind.u32 x, a;", lambda a, b: a.bit_length() - 1),
        ("bfind.s32 x, a;", lambda a, b: (a if a < 2**31 else ~a & 0xFFFFFFFF).bit_length() - 1),
        ("bfind.shiftamt.u32 x, a;", lambda a, b: 32 - a.bit_length() if a else -1),
        ("bmsk.clamp.b32 x, a, b;", lambda a, b: ((1 << min(b, 32)) - 1) << min(a, 32)),
        ("bmsk.wrap.b32 x, a, b;", lambda a, b: ((1 << (b & 31)) - 1) << (a & 31)),
        ("setp.ne.u32 p, a, b; selp.b32 x, b, a, p;", lambda a, b: b),
    ],
)
def test_32_bits(code: str, function: Callable[[int, int], int]) -> None:
    assert np.array_equal(evaluate(code, A32, B32), table(function, A32, B32))


@pytest.mark.parametrize(
    ("code", "function"),
    [
        ("add.u64 x, a, b;", lambda a, b: a + b),
        ("sub.s64 x, a, b;", lambda a, b: a - b),
        ("mul.lo.s64 x, a, b;", lambda a, b: a * b),
        ("mul.hi.u64 x, a, b;", lambda a, b: a * b >> 64),
        ("mul.hi.s64 x, a, b;", lambda a, b: signed(a, 64) * signed(b, 64) >> 64),
        ("mad.lo.s64 x, a, b, b;", lambda a, b: a * b + b),
        ("min.s64 x, a, b;", lambda a, b: min(signed(a, 64), signed(b, 64))),
        ("max.u64 x, a, b;", lambda a, b: max(a, b)),
        ("shl.b64 x, a, 33;", lambda a, b: a << 33),
        ("shr.s64 x, a, 40;", lambda a, b: signed(a, 64) >> 40),
        ("and.b64 x, a, b;", lambda a, b: a & b),
        ("clz.b64 r1, a; cvt.u64.u32 x, r1;", lambda a, b: 64 - a.bit_length()),
        ("popc.b64 r1, a; cvt.u64.u32 x, r1;", lambda a, b: bin(a).count("1")),
        ("brev.b64 x, a;", lambda a, b: int(f"{a:064b}"[::-1], 2)),
        ("bfind.u64 r1, a; cvt.u64.u32 x, r1;", lambda a, b: (a.bit_length() - 1) & 0xFFFFFFFF),
    ],
)
def test_64_bits(code: str, function: Callable[[int, int], int]) -> None:
    assert np.array_equal(evaluate(code, A64, B64, out=np.uint64), table(function, A64, B64, bits=64))


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64", "u16", "s16"])
@pytest.mark.parametrize("operation", ["div", "rem"])
def test_division(kind: str, operation: str) -> None:
    """Cut towards zero, whatever the signs; the remainder has the dividend's sign."""
    bits = int(kind[1:])
    dtype = np.dtype(f"uint{bits}")
    a, b = (np.array([v & ((1 << bits) - 1) for v in column], dtype) for column in (A64.tolist(), B64.tolist()))
    a, b = a[b != 0], b[b != 0]
    keep = ~((a == 1 << (bits - 1)) & (b == (1 << bits) - 1))  # overflows: undefined
    a, b = a[keep], b[keep]

    def reference(x: int, y: int) -> int:
        if kind[0] == "s":
            x, y = signed(x, bits), signed(y, bits)
        return quotient(x, y) if operation == "div" else x - y * quotient(x, y)

    assert np.array_equal(evaluate(f"{operation}.{kind} x, a, b;", a, b, out=dtype), table(reference, a, b, bits=bits))


def test_wide_products() -> None:
    unsigned = evaluate("mul.wide.u32 x, a, b;", A32, B32, out=np.uint64)
    assert np.array_equal(unsigned, table(lambda a, b: a * b, A32, B32, bits=64))
    with_sign = evaluate("mul.wide.s32 x, a, b;", A32, B32, out=np.uint64)
    assert np.array_equal(with_sign, table(lambda a, b: signed(a) * signed(b), A32, B32, bits=64))
    summed = evaluate("mad.wide.s32 x, a, b, c;", A32, B32, np.resize(A64, len(A32)), out=np.uint64)
    expected = table(lambda a, b, c: signed(a) * signed(b) + c, A32, B32, np.resize(A64, len(A32)), bits=64)
    assert np.array_equal(summed, expected)
    short = evaluate("mul.wide.s16 x, a, b;", A32.astype(np.uint16), B32.astype(np.uint16), out=np.uint32)
    assert np.array_equal(short, table(lambda a, b: signed(a, 16) * signed(b, 16), A32, B32))


def test_carry_chain_adds_and_subtracts_128_bits() -> None:
    low_a, high_a, low_b, high_b = A64, A64[::-1].copy(), B64, np.roll(B64, 3)
    code = "add.cc.u64 x, a, c; addc.u64 y, b, d; sub.cc.u64 z, a, c; subc.u64 w, b, d;"
    results, report = run_lanes(code, low_a, high_a, low_b, high_b, out=[np.uint64] * 4)
    assert not report.findings
    for n in range(len(low_a)):
        a, b = int(high_a[n]) << 64 | int(low_a[n]), int(high_b[n]) << 64 | int(low_b[n])
        total, difference = (a + b) % 2**128, (a - b) % 2**128
        assert (int(results[1][n]) << 64 | int(results[0][n])) == total
        assert (int(results[3][n]) << 64 | int(results[2][n])) == difference


def test_multiply_add_with_carry() -> None:
    """A 64-bit product plus a 64-bit sum from 32-bit parts, as nvcc does long multiplication."""
    code = "mad.lo.cc.u32 x, a, b, c; madc.hi.u32 y, a, b, d;"
    c, d = A32[::-1].copy(), np.roll(B32, 5)
    results, _ = run_lanes(code, A32, B32, c, d, out=[np.uint32, np.uint32])
    expected = table(lambda a, b, lo, hi: a * b + (hi << 32 | lo), A32, B32, c, d, bits=64)
    assert np.array_equal(results[1].astype(np.uint64) << np.uint64(32) | results[0], expected)


def manual_bfe(a: int, position: int, length: int, bits: int, with_sign: bool) -> int:
    """The manual's loop."""
    position, length, top = position & 0xFF, length & 0xFF, bits - 1
    sign = 0 if not with_sign or length == 0 else a >> min(position + length - 1, top) & 1
    result = 0
    for i in range(bits):
        bit = a >> (position + i) & 1 if i < length and position + i <= top else sign
        result |= bit << i
    return result


def manual_bfi(a: int, b: int, position: int, length: int, bits: int) -> int:
    """The manual's loop."""
    position, length = position & 0xFF, length & 0xFF
    for i in range(length):
        if position + i <= bits - 1:
            b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


FIELDS = [(p, n) for p in (0, 1, 5, 31, 32, 40, 63, 64, 255) for n in (0, 1, 8, 27, 31, 32, 33, 64, 255)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(kind: str) -> None:
    bits = int(kind[1:])
    dtype = np.dtype(f"uint{bits}")
    values = [
        0xDEADBEEFCAFEF00D & ((1 << bits) - 1),
        1 << (bits - 1),
        (1 << bits) - 1,
        0x0123456789ABCDEF % (1 << bits),
    ]
    rows = [(v, p, n) for v in values for p, n in FIELDS]
    a = np.array([row[0] for row in rows], dtype)
    where, count = (np.array([row[n] for row in rows], np.uint32) for n in (1, 2))
    got = evaluate(f"bfe.{kind} x, a, b, c;", a, where, count, out=dtype)
    expected = [manual_bfe(v, p, n, bits, kind[0] == "s") for v, p, n in rows]
    assert got.tolist() == expected
    into = np.resize(a[::-1], len(a))
    got = evaluate(f"bfi.b{bits} x, a, d, b, c;", a, where, count, into, out=dtype)
    expected = [manual_bfi(v, int(o), p, n, bits) for (v, p, n), o in zip(rows, into, strict=True)]
    assert got.tolist() == expected


@pytest.mark.parametrize("code", [0x00, 0x1E, 0x6A, 0x78, 0x96, 0xC0, 0xE8, 0xFE, 0xFF])
def test_lop3(code: int) -> None:
    """The manual builds the table from ta = 0xF0, tb = 0xCC, tc = 0xAA."""
    c = np.roll(A32, 7)

    def reference(x: int, y: int, z: int) -> int:
        return sum((code >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1) << i for i in range(32))

    assert np.array_equal(evaluate(f"lop3.b32 x, a, b, c, {code};", A32, B32, c), table(reference, A32, B32, c))


def test_lop3_tables_of_the_manual() -> None:
    c = np.roll(A32, 7)
    assert np.array_equal(evaluate("lop3.b32 x, a, b, c, 0x80;", A32, B32, c), A32 & B32 & c)
    assert np.array_equal(evaluate("lop3.b32 x, a, b, c, 0xFE;", A32, B32, c), A32 | B32 | c)
    assert np.array_equal(evaluate("lop3.b32 x, a, b, c, 0x40;", A32, B32, c), A32 & B32 & ~c)
    assert np.array_equal(evaluate("lop3.b32 x, a, b, c, 0x1A;", A32, B32, c), (A32 & B32 | c) ^ A32)


@pytest.mark.parametrize(
    ("code", "expected"),
    [  # bytes of a = 33221100, of b = 77665544: byte n has the value 0x11·n
        ("prmt.b32 x, a, b, 0x3210;", 0x33221100),
        ("prmt.b32 x, a, b, 0x7654;", 0x77665544),
        ("prmt.b32 x, a, b, 0x0123;", 0x00112233),
        ("prmt.b32 x, a, b, 0x5410;", 0x55441100),
        ("prmt.b32.f4e x, a, b, 1;", 0x44332211),
        ("prmt.b32.f4e x, a, b, 3;", 0x66554433),
        ("prmt.b32.b4e x, a, b, 0;", 0x55667700),
        ("prmt.b32.b4e x, a, b, 3;", 0x00112233),
        ("prmt.b32.rc8 x, a, b, 2;", 0x22222222),
        ("prmt.b32.ecl x, a, b, 1;", 0x33221111),
        ("prmt.b32.ecr x, a, b, 1;", 0x11111100),
        ("prmt.b32.rc16 x, a, b, 0;", 0x11001100),
        ("prmt.b32.rc16 x, a, b, 1;", 0x33223322),
    ],
)
def test_permute(code: str, expected: int) -> None:
    a, b = np.full(3, 0x33221100, np.uint32), np.full(3, 0x77665544, np.uint32)
    assert evaluate(code, a, b).tolist() == [expected] * 3


def test_permute_replicates_signs() -> None:
    a, b = np.full(1, 0x80FF7F01, np.uint32), np.zeros(1, np.uint32)
    assert evaluate("prmt.b32 x, a, b, 0xBA98;", a, b).tolist() == [0xFFFF0000]


def test_dot_products_of_bytes() -> None:
    a, b = np.array([0x01FF027F], np.uint32), np.array([0x80FF0302], np.uint32)
    parts_a, parts_b = [0x7F, 0x02, 0xFF, 0x01], [0x02, 0x03, 0xFF, 0x80]
    unsigned = sum(x * y for x, y in zip(parts_a, parts_b, strict=True))
    assert evaluate("dp4a.u32.u32 x, a, b, 10;", a, b).tolist() == [unsigned + 10]
    with_sign = sum(signed(x, 8) * signed(y, 8) for x, y in zip(parts_a, parts_b, strict=True))
    assert evaluate("dp4a.s32.s32 x, a, b, 10;", a, b).tolist() == [(with_sign + 10) % 2**32]
    low = 0x027F * 0x02 + 0x01FF * 0x03
    high = 0x027F * signed(0xFF, 8) + 0x01FF * signed(0x80, 8)
    assert evaluate("dp2a.lo.u32.u32 x, a, b, 0;", a, b).tolist() == [low]
    assert evaluate("dp2a.hi.s32.s32 x, a, b, 0;", a, b).tolist() == [high % 2**32]
