"""Comparison, selection, moves and conversions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import rounding
from .decoder import Decoder, operation, unsupported
from .floats import FLOATS, KINDS
from .integer import elementwise
from .spaces import generic_offset
from .syntax import Imm, Instruction, Operand, Pair, Sink, Vector
from .types import DTYPES, RAW, Array, Read, Registers, Step

Compare = Callable[[Array, Array], Array]

_ORDERED: dict[str, Compare] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def comparison(name: str, kind: str) -> Compare:
    """A comparison by its PTX name. Ordered float comparisons are false for NaN, the …u forms true."""
    if name == "ne":
        if kind in FLOATS:
            return lambda a, b: (a < b) | (a > b)
        return np.not_equal
    if name in _ORDERED:
        return _ORDERED[name]
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    plain = comparison(name[:-1], kind)
    return lambda a, b: plain(a, b) | np.isnan(a) | np.isnan(b)


def _compared(d: Decoder, i: Instruction, first: Operand, second: Operand) -> Read:
    kind = i.parts[-1]
    test = comparison(i.parts[1], kind)
    a, b = d.read(first, kind), d.read(second, kind)
    if kind not in FLOATS or kind in ("f64", "f16") or (kind == "f32" and "ftz" not in i.parts):
        return lambda r: test(a(r), b(r))
    unpack = rounding.flush if kind == "f32" else KINDS[kind].unpack
    return lambda r: test(unpack(a(r)), unpack(b(r)))


def _logic(name: str) -> Compare:
    functions: dict[str, Compare] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
    return functions[name]


@operation("setp")
def set_predicate(d: Decoder, i: Instruction) -> Step:
    """setp.cmp[.bool] p[|q], a, b[, c]: p = cmp bool c, q = !cmp bool c. Of packed pairs: p low, q high."""
    result = i.operands[0]
    both = isinstance(result, Pair)
    first, second = (result.first, result.second) if isinstance(result, Pair) else (result, Sink())
    write_p, write_q = d.write(i, first), d.write(i, second)
    compare = _compared(d, i, i.operands[1], i.operands[2])
    packed = i.parts[-1] in ("f16x2", "bf16x2")
    combine = next((_logic(part) for part in i.parts[2:-1] if part in ("and", "or", "xor")), None)
    other = _predicate(d, i.operands[3]) if combine is not None else None

    def step(r: Registers, g: object) -> None:
        holds = compare(r)
        if packed:
            p, q = holds[..., 0], holds[..., 1]
        else:
            p, q = holds, ~holds if both else holds
        if combine is not None and other is not None:
            c = other(r)
            p, q = combine(p, c), combine(q, c)
        write_p(r, p)
        if both:
            write_q(r, q)

    return step


def _predicate(d: Decoder, operand: Operand) -> Read:
    return d.read(operand, "pred")


@operation("set")
def set_value(d: Decoder, i: Instruction) -> Step:
    """set.cmp.dtype.stype: all ones (integers) or 1.0 (floats) where it holds."""
    kind, source = i.parts[-2], i.parts[-1]
    if any(part in ("and", "or", "xor") for part in i.parts[2:-2]):
        raise unsupported(i)
    write, compare = d.write(i, i.operands[0]), _compared(d, i, i.operands[1], i.operands[2])

    def step(r: Registers, g: object) -> None:
        holds = compare(r)
        if source in ("f16x2", "bf16x2"):
            if kind in KINDS:
                write(r, KINDS[kind].pack(holds.astype(np.float32), "rn"))
            else:
                ones = np.where(holds, np.uint32(0xFFFF), np.uint32(0))
                write(r, ones[..., 0] | (ones[..., 1] << np.uint32(16)))
        elif kind in KINDS:
            write(r, KINDS[kind].pack(holds.astype(np.float32), "rn"))
        else:
            write(r, np.where(holds, ~RAW[DTYPES[kind].itemsize].type(0), RAW[DTYPES[kind].itemsize].type(0)))

    return step


@operation("selp")
def select(d: Decoder, i: Instruction) -> Step:
    """selp d, a, b, p: a where p holds, else b."""
    kind = i.parts[-1]
    return elementwise(d, i, _choose, [kind, kind, "pred"])


def _choose(a: Array, b: Array, where: Array) -> Array:
    return np.where(where, a, b)


@operation("slct")
def select_by_sign(d: Decoder, i: Instruction) -> Step:
    """slct d, a, b, c: a where c ≥ 0, else b."""
    kind = i.parts[-2]
    return elementwise(d, i, lambda a, b, c: _choose(a, b, c >= 0), [kind, kind, i.parts[-1]])


@operation("mov")
def move(d: Decoder, i: Instruction) -> Step:
    """mov, packing and unpacking included. Registers are never written in place, so they may share arrays."""
    kind = i.parts[-1]
    write = d.write(i, i.operands[0])
    source = i.operands[1]
    if isinstance(i.operands[0], Vector) and isinstance(source, Vector):
        pairs = [
            (d.write(i, to), d.read(item, f"b{8 * DTYPES[kind].itemsize // len(source.items)}"))
            for to, item in zip(i.operands[0].items, source.items, strict=True)
        ]

        def both(r: Registers, g: object) -> None:
            values = [read(r) for _, read in pairs]
            for (put, _), value in zip(pairs, values, strict=True):
                put(r, value)

        return both
    read = d.read(source, kind)
    return lambda r, g: write(r, read(r))


@operation("cvta")
def convert_address(d: Decoder, i: Instruction) -> Step:
    """cvta.space: an address of a space as a generic one; cvta.to.space: back."""
    kind = i.parts[-1]
    space = i.parts[2] if i.parts[1] == "to" else i.parts[1]
    offset = generic_offset(space)
    delta = -offset if i.parts[1] == "to" else offset
    write, read = d.write(i, i.operands[0]), d.read(i.operands[1], kind)
    if kind == "u32" and delta:
        raise unsupported(i, "32-bit generic addresses")
    return lambda r, g: write(r, (read(r).view(np.int64) + delta).view(np.uint64) if delta else read(r))


@operation("isspacep")
def in_space(d: Decoder, i: Instruction) -> Step:
    """Whether a generic address lies in a space."""
    space = i.parts[1].split("::")[0]
    low = generic_offset(space)
    if space == "global":
        return elementwise(d, i, lambda a: a >= np.uint64(4 << 44), ["u64"])
    return elementwise(d, i, lambda a: (a >= np.uint64(low)) & (a < np.uint64(low + (1 << 44))), ["u64"])


_INTEGRAL: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@operation("cvt")
def convert(d: Decoder, i: Instruction) -> Step:
    """cvt between integers and floats, and the packing cvt.rn.{f16x2,bf16x2}.f32 d, high, low."""
    target, source = i.parts[-2], i.parts[-1]
    if target == "pack" or i.parts[1] == "pack":
        raise unsupported(i)
    if target in ("f16x2", "bf16x2") and len(i.operands) == 3:
        return _pack_pair(d, i, target)
    function = _conversion(i, target, source)
    if isinstance(i.operands[1], Imm):
        return elementwise(d, i, lambda a: function(np.asarray(a)), [source])
    return elementwise(d, i, function, [source])


def _conversion(i: Instruction, target: str, source: str) -> Callable[[Array], Array]:
    if target == "tf32":
        return rounding.to_tf32
    if source in FLOATS:
        return _float_to_float(i, target, source) if target in FLOATS else _float_to_int(i, target, source)
    return _int_to_float(i, target) if target in FLOATS else _int_to_int(i, target, source)


def _mode(i: Instruction) -> str:
    return next((part for part in i.parts if part in ("rn", "rz", "rm", "rp")), "rn")


def _pack_pair(d: Decoder, i: Instruction, target: str) -> Step:
    mode, relu, ftz = _mode(i), "relu" in i.parts, "ftz" in i.parts
    write = d.write(i, i.operands[0])
    high, low = d.read(i.operands[1], "f32"), d.read(i.operands[2], "f32")

    def half(value: Array) -> Array:
        value = rounding.flush(value) if ftz else np.asarray(value)
        if relu:
            value = np.where(value > 0, value, np.where(np.isnan(value), value, np.float32(0)))
        if "satfinite" in i.parts:
            limit = np.float32(65504.0 if target == "f16x2" else 3.3895313892515355e38)
            value = np.clip(value, -limit, limit)
        bits = rounding.to_f16(value, mode).view(np.uint16) if target == "f16x2" else rounding.to_bf16(value, mode)
        return bits.astype(np.uint32)

    return lambda r, g: write(r, (half(high(r)) << np.uint32(16)) | half(low(r)))


def _float_to_float(i: Instruction, target: str, source: str) -> Callable[[Array], Array]:
    if "x2" in target or "x2" in source:
        raise unsupported(i)
    integral = next((_INTEGRAL[part] for part in i.parts if part in _INTEGRAL), None)
    mode, ftz = _mode(i), "ftz" in i.parts
    unpack, pack = KINDS[source].unpack, KINDS[target].pack

    def function(a: Array) -> Array:
        value = unpack(a)
        if ftz and source == "f32":
            value = rounding.flush(value)
        if integral is not None:
            value = integral(value)
        if "sat" in i.parts:
            value = np.where(np.isnan(value), 0, np.clip(value, 0, 1)).astype(value.dtype)
        if "relu" in i.parts:
            value = np.where(value > 0, value, np.where(np.isnan(value), value, 0)).astype(value.dtype)
        result = value.astype(np.float64) if target == "f64" else pack(value, mode)
        return rounding.flush(result) if ftz and target == "f32" else result

    return function


def _float_to_int(i: Instruction, target: str, source: str) -> Callable[[Array], Array]:
    """Clamped to the type; NaN gives 0."""
    integral = next((_INTEGRAL[part] for part in i.parts if part in _INTEGRAL), np.trunc)
    dtype, unpack, ftz = DTYPES[target], KINDS[source].unpack, "ftz" in i.parts
    info = np.iinfo(dtype)
    low, high = float(info.min), float(info.max)

    def function(a: Array) -> Array:
        value = unpack(a)
        value = integral(rounding.flush(value) if ftz and source == "f32" else value).astype(np.float64)
        inside = (value > low) & (value < high)
        result = np.where(inside, value, 0).astype(dtype)
        return np.where(value >= high, info.max, np.where(value <= low, info.min, result)).astype(dtype)

    return function


def _int_to_float(i: Instruction, target: str) -> Callable[[Array], Array]:
    mode, pack = _mode(i), KINDS[target].pack

    def function(a: Array) -> Array:
        wide = np.asarray(a)
        if target == "f64":
            return wide.astype(np.float64)
        if wide.dtype.itemsize == 8 and mode == "rn" and target == "f32":
            return wide.astype(np.float32)
        return pack(wide.astype(np.float64), mode)

    return function


def _int_to_int(i: Instruction, target: str, source: str) -> Callable[[Array], Array]:
    dtype = DTYPES[target]
    if "sat" not in i.parts:
        return lambda a: a.astype(dtype)
    info, origin = np.iinfo(dtype), np.iinfo(DTYPES[source])
    low, high = max(info.min, origin.min), min(info.max, origin.max)
    return lambda a: np.clip(a, a.dtype.type(low), a.dtype.type(high)).astype(dtype)
