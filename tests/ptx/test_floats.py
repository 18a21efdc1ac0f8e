"""Floating point against rational arithmetic rounded once, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .exact import decode, encode
from .lanes import evaluate, run_lanes

RNG = np.random.default_rng(20)
BITS = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32, "f64": np.uint64}


def samples(kind: str, count: int = 600) -> npt.NDArray[Any]:
    """Finite bits of a type: of any exponent, near one, subnormal, and the corners."""
    dtype = np.dtype(BITS[kind])
    width = 8 * dtype.itemsize
    any_bits = RNG.integers(0, 1 << (width - 1), count, dtype=np.uint64) * 2 + RNG.integers(
        0, 2, count, dtype=np.uint64
    )
    one = encode(Fraction(1), kind)
    near = np.array([one + int(n) for n in RNG.integers(-300, 300, count)], np.uint64)
    near |= RNG.integers(0, 2, count, dtype=np.uint64) << np.uint64(width - 1)
    tiny = RNG.integers(0, 40, count // 4, dtype=np.uint64)
    corners = np.array([0, 1, 2, one, encode(Fraction(2), kind), encode(Fraction(1, 3), kind)], np.uint64)
    raw = np.concatenate([any_bits, near, tiny, corners, corners | np.uint64(1 << (width - 1))]).astype(dtype)
    return raw[[isinstance(decode(int(b), kind), Fraction) for b in raw]]


def fractions(bits: npt.NDArray[Any], kind: str) -> list[Fraction]:
    return [Fraction(decode(int(b), kind)) for b in bits]


def same_bits(got: npt.NDArray[Any], expected: list[int], kind: str) -> None:
    """Equal bit for bit, except that zeros may differ in sign (tested by themselves)."""
    sign = 1 << (8 * got.dtype.itemsize - 1)
    wrong = [n for n, (g, e) in enumerate(zip(got.tolist(), expected, strict=True)) if g != e and (g | e) & ~sign]
    assert not wrong, [(hex(got[n]), hex(expected[n])) for n in wrong[:5]]


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32"])
@pytest.mark.parametrize("operation", ["add", "sub", "mul"])
def test_basic_operations_round_once(kind: str, operation: str) -> None:
    a, b = samples(kind), RNG.permutation(samples(kind))
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    functions: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
        "add": lambda x, y: x + y,
        "sub": lambda x, y: x - y,
        "mul": lambda x, y: x * y,
    }
    got = evaluate(f"{operation}.rn.{kind} x, a, b;", a, b, out=BITS[kind])
    pairs = zip(fractions(a, kind), fractions(b, kind), strict=True)
    same_bits(got, [encode(functions[operation](x, y), kind) for x, y in pairs], kind)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_fma_rounds_once(kind: str) -> None:
    """With addends close to minus the product, where a second rounding would show."""
    a, b = samples(kind), RNG.permutation(samples(kind))
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    if kind == "f64":  # products whose error term would underflow are not claimed
        value = np.exp(RNG.uniform(-30, 30, count))
        a, b = value.view(np.uint64), RNG.permutation(value).view(np.uint64)
    x, y = fractions(a, kind), fractions(b, kind)
    c = samples(kind)
    c = np.resize(c, count)
    close = [encode(-u * v, kind) for u, v in zip(x, y, strict=True)]
    finite = [isinstance(decode(bits, kind), Fraction) for bits in close]
    c[::2] = np.where(finite, np.array(close, BITS[kind]), c)[::2]
    got = evaluate(f"fma.rn.{kind} x, a, b, c;", a, b, c, out=BITS[kind])
    rows = zip(x, y, fractions(c, kind), strict=True)
    same_bits(got, [encode(u * v + w, kind) for u, v, w in rows], kind)


def test_fma_f32_at_the_ties_of_double_rounding() -> None:
    """a·b + c where the exact sum lies a hair beside a float32 tie: rounding to float64 first would land on it."""
    a = np.array([1 + 2.0**-12] * 4, np.float32)
    b = np.array([1 + 2.0**-12] * 4, np.float32)  # product 1 + 2^-11 + 2^-24: a tie of float32
    c = np.array([2.0**-80, -(2.0**-80), 0, 2.0**-149], np.float32)
    got = evaluate("fma.rn.f32 x, a, b, c;", a, b, c, out=np.float32)
    even, odd = np.float32(1 + 2.0**-11), np.float32(1 + 2.0**-11 + 2.0**-23)
    assert got.tolist() == [odd, even, even, odd]


@pytest.mark.parametrize("mode", ["rz", "rm", "rp"])
@pytest.mark.parametrize("operation", ["add", "mul", "fma"])
def test_directed_rounding(mode: str, operation: str) -> None:
    a, b = samples("f32", 200), RNG.permutation(samples("f32", 200))
    count = min(len(a), len(b))
    a, b = a[:count], b[:count]
    c = np.roll(a, 1)
    operands = "a, b, c" if operation == "fma" else "a, b"
    got = evaluate(f"{operation}.{mode}.f32 x, {operands};", a, b, c, out=np.uint32)
    rows = zip(*(fractions(column, "f32") for column in (a, b, c)), strict=True)
    functions: dict[str, Callable[[Fraction, Fraction, Fraction], Fraction]] = {
        "add": lambda x, y, z: x + y,
        "mul": lambda x, y, z: x * y,
        "fma": lambda x, y, z: x * y + z,
    }
    same_bits(got, [encode(functions[operation](*row), "f32", mode) for row in rows], "f32")


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_packed_pairs_are_two_of_their_kind(kind: str) -> None:
    half = kind[:-2]
    columns = [np.resize(RNG.permutation(samples(half)), 800) for _ in range(3)]
    packed = [column.view(np.uint32) for column in columns]
    for code, single in (
        ("add.rn.{} x, a, b;", "add.rn.{} x, a, b;"),
        ("mul.rn.{} x, a, b;", "mul.rn.{} x, a, b;"),
        ("fma.rn.{} x, a, b, c;", "fma.rn.{} x, a, b, c;"),
        ("max.{} x, a, b;", "max.{} x, a, b;"),
        ("neg.{} x, a;", "neg.{} x, a;"),
        ("abs.{} x, a;", "abs.{} x, a;"),
    ):
        pairs = evaluate(code.format(kind), *packed, out=np.uint32).view(np.uint16)
        halves = evaluate(single.format(half), *columns, out=np.uint16)
        assert np.array_equal(pairs, halves), code


@pytest.mark.parametrize("target", ["f16", "bf16"])
@pytest.mark.parametrize("mode", ["rn", "rz"])
def test_narrowing_conversions(target: str, mode: str) -> None:
    a = samples("f32", 1500)
    middle = np.array([0x3F801000, 0x3F803000, 0x3F801001, 0x3F800FFF, 0x3F808000, 0x3F818000, 0x477FEFFF, 0x477FF000])
    a = np.concatenate([a, middle.astype(np.uint32)])
    got = evaluate(f"cvt.{mode}.{target}.f32 x, a;", a, out=np.uint16)
    same_bits(got, [encode(value, target, mode) for value in fractions(a, "f32")], target)
    b = np.roll(a, 1)
    packed = evaluate(f"cvt.{mode}.{target}x2.f32 x, a, b;", a, b, out=np.uint32)
    assert np.array_equal(packed >> np.uint32(16), got), "the first source is the upper half"
    assert np.array_equal(packed & np.uint32(0xFFFF), np.roll(got, 1))


def test_widening_conversions_are_exact() -> None:
    for kind in ("f16", "bf16"):
        a = np.arange(1 << 16, dtype=np.uint16)
        a = a[[isinstance(decode(int(b), kind), Fraction) for b in a]]
        got = evaluate(f"cvt.f32.{kind} x, a;", a[:900], out=np.uint32)
        assert fractions(got, "f32") == fractions(a[:900], kind)
    a = samples("f32")
    assert fractions(evaluate("cvt.f64.f32 x, a;", a, out=np.uint64), "f64") == fractions(a, "f32")


def test_double_to_single() -> None:
    a = RNG.standard_normal(500) * np.exp2(RNG.integers(-160, 120, 500))
    got = evaluate("cvt.rn.f32.f64 x, a;", a, out=np.uint32)
    same_bits(got, [encode(Fraction(float(value)), "f32") for value in a], "f32")
    got = evaluate("cvt.rz.f32.f64 x, a;", a, out=np.uint32)
    same_bits(got, [encode(Fraction(float(value)), "f32", "rz") for value in a], "f32")


def test_tf32_rounds_ties_away() -> None:
    a = np.array([0x3F801000, 0x3F800FFF, 0x3F803000, 0xBF801000, 0x7F7FFFFF], np.uint32)
    got = evaluate("cvt.rna.tf32.f32 x, a;", a)
    assert got.tolist() == [0x3F802000, 0x3F800000, 0x3F804000, 0xBF802000, 0x7F800000]


@pytest.mark.parametrize(
    ("code", "expected"),
    [  # of 2.5, -2.5, 3.5, 0.7, -0.7, 1e20, -1e20, nan
        ("cvt.rni.s32.f32 x, a;", [2, -2, 4, 1, -1, 2**31 - 1, -(2**31), 0]),
        ("cvt.rzi.s32.f32 x, a;", [2, -2, 3, 0, 0, 2**31 - 1, -(2**31), 0]),
        ("cvt.rmi.s32.f32 x, a;", [2, -3, 3, 0, -1, 2**31 - 1, -(2**31), 0]),
        ("cvt.rpi.s32.f32 x, a;", [3, -2, 4, 1, 0, 2**31 - 1, -(2**31), 0]),
        ("cvt.rzi.u32.f32 x, a;", [2, 0, 3, 0, 0, 2**32 - 1, 0, 0]),
        ("cvt.rzi.u16.f32 h1, a; cvt.u32.u16 x, h1;", [2, 0, 3, 0, 0, 65535, 0, 0]),
        ("cvt.rzi.s8.f32 h1, a; cvt.s32.s16 x, h1;", [2, -2, 3, 0, 0, 127, -128, 0]),
    ],
)
def test_floats_to_integers(code: str, expected: list[int]) -> None:
    a = np.array([2.5, -2.5, 3.5, 0.7, -0.7, 1e20, -1e20, np.nan], np.float32)
    assert evaluate(code, a).tolist() == [value % 2**32 for value in expected]


def test_integers_to_floats() -> None:
    a = np.array([0, 1, 16777217, 16777219, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2049, 65519, 65520], np.uint32)
    as_signed = a.view(np.int32).tolist()
    got = evaluate("cvt.rn.f32.u32 x, a;", a)
    assert got.tolist() == [encode(Fraction(int(v)), "f32") for v in a]
    got = evaluate("cvt.rn.f32.s32 x, a;", a)
    assert got.tolist() == [encode(Fraction(v), "f32") for v in as_signed]
    got = evaluate("cvt.rz.f32.u32 x, a;", a)
    assert got.tolist() == [encode(Fraction(int(v)), "f32", "rz") for v in a]
    got = evaluate("cvt.rn.f16.u32 x, a;", a, out=np.uint16)
    assert got.tolist() == [encode(Fraction(int(v)), "f16") for v in a]
    got = evaluate("cvt.rn.f64.s32 x, a;", a, out=np.float64)
    assert got.tolist() == [float(v) for v in as_signed]
    wide = np.array([2**63 + 2**39, 2**63 + 2**39 + 1, 2**64 - 1, 3], np.uint64)
    got = evaluate("cvt.rn.f32.u64 x, a;", wide)
    assert got.tolist() == [encode(Fraction(int(v)), "f32") for v in wide]


def test_integer_conversions() -> None:
    a = np.array([0, 127, 128, 255, 256, 32768, 0x8000FF80, 0xFFFFFFFF], np.uint32)
    assert evaluate("cvt.s32.s8 x, a;", a).tolist() == [((v & 255) ^ 128) - 128 & 0xFFFFFFFF for v in a.tolist()]
    assert evaluate("cvt.u32.u8 x, a;", a).tolist() == [v & 255 for v in a.tolist()]
    assert evaluate("cvt.s64.s32 x, a;", a, out=np.int64).tolist() == a.view(np.int32).tolist()
    assert evaluate("cvt.u64.u32 x, a;", a, out=np.uint64).tolist() == a.tolist()
    clamped = [max(-128, min(127, v)) for v in a.view(np.int32).tolist()]
    assert evaluate("cvt.sat.s8.s32 x, a;", a).view(np.int32).tolist() == clamped
    assert evaluate("cvt.sat.u8.s32 x, a;", a).tolist() == [max(0, min(255, v)) for v in a.view(np.int32).tolist()]


def test_approximations() -> None:
    """Within the manual's bounds: ex2 and rcp a few ulp; and what they give at the corners."""
    a = RNG.uniform(-20, 20, 500).astype(np.float32)
    got = evaluate("ex2.approx.ftz.f32 x, a;", a, out=np.float32)
    assert np.abs(got / np.exp2(a.astype(np.float64)) - 1).max() <= 2.0**-22
    corners = np.array([-np.inf, np.inf, 0, -0.0, -127, -149, -1000, 128], np.float32)
    got = evaluate("ex2.approx.ftz.f32 x, a;", corners, out=np.float32)
    assert got.tolist() == [0, np.inf, 1, 1, 0, 0, 0, np.inf]
    kept = evaluate("ex2.approx.f32 x, a;", corners, out=np.float32)
    assert kept.tolist() == [0, np.inf, 1, 1, 2.0**-127, 2.0**-149, 0, np.inf]
    got = evaluate(
        "rcp.approx.ftz.f32 x, a;", np.array([0, -0.0, np.inf, 4, 2.0**127, 1e-40], np.float32), out=np.float32
    )
    assert got.tolist() == [np.inf, -np.inf, 0, 0.25, 0, np.inf]
    positive = np.abs(a) + np.float32(0.01)
    exact = positive.astype(np.float64)
    for code, reference in (
        ("rsqrt.approx.f32 x, a;", 1 / np.sqrt(exact)),
        ("sqrt.approx.f32 x, a;", np.sqrt(exact)),
        ("lg2.approx.f32 x, a;", np.log2(exact)),
        ("sin.approx.f32 x, a;", np.sin(exact)),
        ("cos.approx.f32 x, a;", np.cos(exact)),
        ("tanh.approx.f32 x, a;", np.tanh(exact)),
    ):
        assert np.abs(evaluate(code, positive, out=np.float32) - reference).max() <= 2e-6, code


def test_division_and_roots_are_correctly_rounded() -> None:
    a, b = samples("f32"), RNG.permutation(samples("f32"))
    count = min(len(a), len(b))
    x, y = fractions(a[:count], "f32"), fractions(b[:count], "f32")
    keep = [n for n in range(count) if y[n]]
    got = evaluate("div.rn.f32 x, a, b;", a[keep], b[keep])
    same_bits(got, [encode(x[n] / y[n], "f32") for n in keep], "f32")
    squares = RNG.integers(1, 1 << 12, 300)
    got = evaluate("sqrt.rn.f32 x, a;", (squares.astype(np.float32)) ** 2, out=np.float32)
    assert got.tolist() == squares.tolist()


def test_minimum_and_maximum() -> None:
    """A number beats NaN; -0 is below +0; with .NaN, NaN wins."""
    a = np.array([1, np.nan, np.nan, 0.0, -0.0, -np.inf], np.float32)
    b = np.array([2, 3, np.nan, -0.0, 0.0, 5], np.float32)
    low = evaluate("min.f32 x, a, b;", a, b, out=np.float32)
    high = evaluate("max.f32 x, a, b;", a, b, out=np.float32)
    assert low[[0, 1, 5]].tolist() == [1, 3, -np.inf]
    assert high[[0, 1, 5]].tolist() == [2, 3, 5]
    assert np.isnan(low[2])
    assert np.signbit(low[3:5]).tolist() == [True, True]
    assert np.signbit(high[3:5]).tolist() == [False, False]
    strict = evaluate("max.NaN.f32 x, a, b;", a, b, out=np.float32)
    assert np.isnan(strict).tolist() == [False, True, True, False, False, False]


def test_flush_and_saturation() -> None:
    a = np.array([1e-40, -1e-40, 1e-38, 2, -1, 0.5, np.nan], np.float32)
    got = evaluate("add.ftz.f32 x, a, 0f00000000;", a, out=np.float32)
    assert got[:2].tolist() == [0, 0]
    assert evaluate("mul.ftz.f32 x, a, 0f00800000;", a, out=np.float32)[2] == 0
    got = evaluate("add.sat.f32 x, a, 0f00000000;", a, out=np.float32)
    assert got[3:].tolist() == [1, 0, 0.5, 0]
    got = evaluate("cvt.sat.f32.f32 x, a;", a, out=np.float32)
    assert got[3:].tolist() == [1, 0, 0.5, 0]
    relu = evaluate("cvt.rn.relu.f16x2.f32 x, a, a;", a).view(np.float16).reshape(-1, 2)[:, 0]
    assert relu[3:6].tolist() == [2, 0, 0.5]


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda x, y: x == y, "lt": lambda x, y: x < y, "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y, "ge": lambda x, y: x >= y,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["f32", "f64", "f16"])
def test_float_comparisons_and_nan(kind: str) -> None:
    dtype = np.dtype(f"float{kind[1:]}")
    values = [1.0, 2.0, -0.0, 0.0, np.inf, np.nan]
    a, b = (np.array(column, dtype) for column in zip(*((x, y) for x in values for y in values), strict=True))
    unordered = np.isnan(a) | np.isnan(b)
    for name, function in COMPARISONS.items():
        for suffix, on_nan in (("", False), ("u", True)):
            got = evaluate(f"setp.{name}{suffix}.{kind} p, a, b; selp.u32 x, 1, 0, p;", a, b)
            expected = np.where(
                unordered, on_nan, [function(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
            )
            assert np.array_equal(got, expected), name + suffix
    for name, expected in (
        ("ne", ~unordered & (a != b)),
        ("neu", unordered | (a != b)),
        ("num", ~unordered),
        ("nan", unordered),
    ):
        assert np.array_equal(evaluate(f"setp.{name}.{kind} p, a, b; selp.u32 x, 1, 0, p;", a, b), expected), name


def test_packed_comparisons_give_a_predicate_for_each_half() -> None:
    a = np.array([[1, 5], [2, np.nan], [-0.0, 0]], np.float16).view(np.uint32)[:, 0].copy()
    b = np.array([[2, 5], [2, 1], [0.0, 1]], np.float16).view(np.uint32)[:, 0].copy()
    code = "setp.lt.f16x2 p|q, a, b; selp.u32 x, 1, 0, p; selp.u32 y, 1, 0, q;"
    (low, high), _ = run_lanes(code, a, b, out=[np.uint32, np.uint32])
    assert (low.tolist(), high.tolist()) == ([1, 0, 0], [0, 0, 1])
    ones = evaluate("set.ge.f16x2.f16x2 x, a, b;", a, b).view(np.float16).reshape(-1, 2)
    assert ones.tolist() == [[0, 1], [1, 0], [1, 0]]
    masks = evaluate("set.geu.u32.f16x2 x, a, b;", a, b)
    assert masks.tolist() == [0xFFFF0000, 0xFFFFFFFF, 0x0000FFFF]


def test_setp_with_logic_and_two_results() -> None:
    a = np.array([1, 2, 3, 4], np.uint32)
    code = """
    setp.gt.u32 s, a, 1; setp.ne.and.u32 s, a, 4, s; setp.lt.and.u32 p|q, a, 3, s;
    selp.u32 x, 1, 0, p; selp.u32 y, 1, 0, q;"""
    (p, q), _ = run_lanes(code, a, out=[np.uint32, np.uint32])
    assert p.tolist() == [0, 1, 0, 0]  # a < 3, and a is 2 or 3
    assert q.tolist() == [0, 0, 1, 0]  # not (a < 3), and a is 2 or 3
    code = "setp.eq.u32 s, a, 4; setp.lt.or.s32 p, a, 2, !s; selp.u32 x, 1, 0, p;"
    assert evaluate(code, a).tolist() == [1, 1, 1, 0]


def test_negative_literals_and_hexadecimal_floats() -> None:
    a = np.array([1.5], np.float32)
    assert evaluate("fma.rn.f32 x, a, 0fC0000000, 0f3F000000;", a, out=np.float32).tolist() == [-2.5]
    assert evaluate("add.f64 x, a, 0d4000000000000000;", a.astype(np.float64), out=np.float64).tolist() == [3.5]
    assert evaluate("add.s32 x, a, -0x10;", np.array([5], np.uint32)).view(np.int32).tolist() == [-11]
