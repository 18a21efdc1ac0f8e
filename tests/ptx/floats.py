"""Floating-point arithmetic: PTX manual, "Floating Point Instructions" and "Half Precision …" instructions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import integer, rounding
from .decoder import Decoder, operation, unsupported
from .integer import elementwise
from .syntax import Instruction
from .types import Array, Step

FLOATS = ("f16", "f32", "f64", "bf16", "f16x2", "bf16x2")


@dataclass(frozen=True)
class Kind:
    """How a float type is unpacked to be computed with (float32 or float64) and rounded back to bits."""

    name: str
    unpack: Callable[[Array], Array]
    pack: Callable[[Array, str], Array]


def _pairs(bits: Array) -> Array:
    """Packed pairs -> (…, 2) uint16, low half first."""
    return np.ascontiguousarray(bits).reshape(*np.shape(bits), 1).view(np.uint16)


def _packed(halves: Array) -> Array:
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def _f32_pack(value: Array, mode: str) -> Array:
    return value if value.dtype == np.float32 else rounding.to_f32(value, mode)


KINDS = {
    "f32": Kind("f32", lambda x: x, _f32_pack),
    "f64": Kind("f64", lambda x: x, lambda x, mode: x),
    "f16": Kind("f16", lambda x: x.astype(np.float32), rounding.to_f16),
    "bf16": Kind("bf16", lambda x: rounding.from_bf16(np.asarray(x)).astype(np.float64), rounding.to_bf16),
    "f16x2": Kind(
        "f16x2",
        lambda x: _pairs(x).view(np.float16).astype(np.float32),
        lambda x, mode: _packed(rounding.to_f16(x, mode).view(np.uint16)),
    ),
    "bf16x2": Kind(
        "bf16x2",
        lambda x: rounding.from_bf16(_pairs(x)).astype(np.float64),
        lambda x, mode: _packed(rounding.to_bf16(x, mode)),
    ),
}


def is_float(instruction: Instruction) -> bool:
    """Whether an instruction works on floats."""
    return instruction.parts[-1] in FLOATS


def rounding_mode(instruction: Instruction) -> str:
    """rn unless the opcode says otherwise."""
    return next((part for part in instruction.parts if part in ("rz", "rm", "rp")), "rn")


def float_step(d: Decoder, i: Instruction, function: Callable[..., Array]) -> Step:
    """result = function(operands…) on unpacked values, with .ftz, .sat and .relu, rounded back."""
    kind = KINDS[i.parts[-1]]
    mode, ftz, sat, relu = rounding_mode(i), "ftz" in i.parts, "sat" in i.parts, "relu" in i.parts
    plain = kind.name in ("f32", "f64") and not (ftz or sat or relu)
    flushes = ftz and kind.name == "f32"

    def whole(*operands: Array) -> Array:
        values = [kind.unpack(x) for x in operands]
        if flushes:
            values = [rounding.flush(x) for x in values]
        result = function(*values)
        if sat:
            result = np.where(np.isnan(result), 0, np.clip(result, 0, 1)).astype(result.dtype)
        if relu:
            result = np.where(result > 0, result, np.where(np.isnan(result), result, 0)).astype(result.dtype)
        bits = kind.pack(result, mode)
        return rounding.flush(bits) if flushes else bits

    if plain and mode == "rn":
        return elementwise(d, i, function, [kind.name] * (len(i.operands) - 1))
    return elementwise(d, i, whole, [kind.name] * (len(i.operands) - 1))


def _exact(function: Callable[[Array, Array], Array], i: Instruction) -> Callable[[Array, Array], Array]:
    """add and mul of f32 in directed rounding need more than float32."""
    if rounding_mode(i) == "rn":
        return function
    if i.parts[-1] != "f32":
        raise unsupported(i, "directed rounding")
    if function is np.multiply:
        return lambda a, b: a.astype(np.float64) * b
    sign = -1.0 if function is np.subtract else 1.0

    def total(a: Array, b: Array) -> Array:
        pair = np.broadcast_arrays(a.astype(np.float64), sign * b.astype(np.float64))
        return rounding.sum_to_odd(*pair)

    return total


def fma(d: Decoder, i: Instruction) -> Step:
    """fma, and mad on floats: one rounding."""
    kind, mode = i.parts[-1], rounding_mode(i)
    if kind == "f32":
        return float_step(d, i, lambda a, b, c: rounding.fma_f32(a, b, c, mode))
    if mode != "rn":
        raise unsupported(i, "directed rounding")
    return float_step(d, i, rounding.fma_f64 if kind == "f64" else rounding.fma_narrow)


def _extreme(smaller: bool, propagate: bool) -> Callable[[Array, Array], Array]:
    """min or max: a number wins over NaN (unless .NaN), and -0 is less than +0."""
    pick = np.fmin if smaller else np.fmax

    def function(a: Array, b: Array) -> Array:
        result = pick(a, b)
        same = (a == b) & (result == 0)
        if np.any(same):
            either = np.signbit(a) | np.signbit(b) if smaller else np.signbit(a) & np.signbit(b)
            result = np.where(same, np.where(either, -0.0, 0.0).astype(result.dtype), result)
        if propagate:
            result = np.where(np.isnan(a) | np.isnan(b), result.dtype.type(np.nan), result)
        return result

    return function


def _double(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A function of one value, computed in float64 and rounded to the value's type."""

    def computed(a: Array) -> Array:
        return np.asarray(function(a.astype(np.float64))).astype(a.dtype)

    return computed


_UNARY: dict[str, Callable[[Array], Array]] = {
    "rcp": lambda a: a.dtype.type(1) / a,
    "sqrt": np.sqrt,
    "rsqrt": _double(lambda a: 1.0 / np.sqrt(a)),
    "ex2": _double(np.exp2),
    "lg2": _double(np.log2),
    "sin": _double(np.sin),
    "cos": _double(np.cos),
    "tanh": _double(np.tanh),
}


@operation(*_UNARY)
def unary(d: Decoder, i: Instruction) -> Step:
    """Approximations are computed exactly and rounded once; directed rounding of rcp and sqrt is not modelled."""
    if rounding_mode(i) != "rn":
        raise unsupported(i, "directed rounding")
    return float_step(d, i, _UNARY[i.parts[0]])


@operation("neg", "abs")
def sign(d: Decoder, i: Instruction) -> Step:
    """neg and abs: of floats they only change the sign bit."""
    kind = i.parts[-1]
    if not is_float(i):
        return integer.simple(d, i)
    if kind in ("f32", "f64", "f16"):
        function = np.negative if i.parts[0] == "neg" else np.abs
        return float_step(d, i, function) if "ftz" in i.parts else elementwise(d, i, function, [kind])
    bits = {"bf16": 0x8000, "f16x2": 0x80008000, "bf16x2": 0x80008000}[kind]
    flip = i.parts[0] == "neg"

    def function_on_bits(a: Array) -> Array:
        mask = a.dtype.type(bits)
        changed: Array = a ^ mask if flip else a & ~mask
        return changed

    return elementwise(d, i, function_on_bits, [kind])


@operation("add", "sub")
def add_sub(d: Decoder, i: Instruction) -> Step:
    """add and sub of integers or floats."""
    if not is_float(i):
        return integer.add_or_sub(d, i)
    return float_step(d, i, _exact(np.add if i.parts[0] == "add" else np.subtract, i))


@operation("addc", "subc")
def carry(d: Decoder, i: Instruction) -> Step:
    """Links of a carry chain."""
    return integer.carry_chain(d, i)


@operation("mul")
def mul(d: Decoder, i: Instruction) -> Step:
    """mul of integers or floats."""
    return float_step(d, i, _exact(np.multiply, i)) if is_float(i) else integer.multiply(d, i)


@operation("fma", "mad", "madc")
def multiply_add(d: Decoder, i: Instruction) -> Step:
    """fma; mad of integers or floats."""
    return fma(d, i) if is_float(i) else integer.multiply_add(d, i)


@operation("div")
def div(d: Decoder, i: Instruction) -> Step:
    """div; .approx and .full are computed as the exact quotient."""
    if not is_float(i):
        return integer.simple(d, i)
    if rounding_mode(i) != "rn":
        raise unsupported(i, "directed rounding")
    return float_step(d, i, np.divide)


@operation("min", "max")
def extreme(d: Decoder, i: Instruction) -> Step:
    """min and max of two (or, since PTX 8.8, three) values."""
    if not is_float(i):
        return integer.simple(d, i)
    if "abs" in i.parts or "xorsign" in i.parts:
        raise unsupported(i)
    two = _extreme(i.parts[0] == "min", "NaN" in i.parts)
    return float_step(d, i, two if len(i.operands) == 3 else lambda a, b, c: two(two(a, b), c))


@operation("rem", "sad")
def remaining(d: Decoder, i: Instruction) -> Step:
    """rem and sad of integers."""
    return integer.simple(d, i)


@operation("mul24", "mad24")
def narrow(d: Decoder, i: Instruction) -> Step:
    """24-bit products."""
    return integer.multiply_24(d, i)


@operation("dp4a", "dp2a")
def dot(d: Decoder, i: Instruction) -> Step:
    """Dot products of bytes."""
    return integer.dot_product(d, i)


@operation("copysign")
def copysign(d: Decoder, i: Instruction) -> Step:
    """copysign d, a, b: the sign of a on the magnitude of b."""
    return float_step(d, i, lambda a, b: np.copysign(b, a))


@operation("testp")
def test_property(d: Decoder, i: Instruction) -> Step:
    """testp.{finite,infinite,number,notanumber,normal,subnormal}."""
    tiny = np.finfo(np.float32 if i.parts[-1] == "f32" else np.float64).tiny
    tests: dict[str, Callable[[Array], Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return elementwise(d, i, tests[i.parts[1]], [i.parts[-1]])
