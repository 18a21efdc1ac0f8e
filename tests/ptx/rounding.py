"""Exact rounding of floats: to odd, to a narrower type in one step, and the fused multiply-add.

Rounding to odd (truncate, then set the last bit if anything was lost) keeps the information that a second
rounding to a type narrower by at least two bits needs (Boldo and Melquiond, 2008), so that the pair acts as one.
"""

from __future__ import annotations

import numpy as np

from .types import Array

_TIE = np.uint64(0x10000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_LARGEST_SUBNORMAL = np.uint32(0x7FFFFF)  # and the smallest normal: a total just below it may have become one
_BELOW_F32 = np.uint64((1 << 29) - 1)  # bits of a float64 that a float32 drops


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and what the rounding lost (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """a · b rounded, and what the rounding lost (Dekker); exact when nothing over- or underflows."""
    split = 134217729.0
    high_a, high_b = a * split, b * split
    high_a, high_b = high_a - (high_a - a), high_b - (high_b - b)
    low_a, low_b = a - high_a, b - high_b
    product = a * b
    return product, ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b


def sum_to_odd(a: Array, b: Array) -> Array:
    """a + b of float64, rounded to odd."""
    total, lost = _two_sum(a, b)
    bits = np.ascontiguousarray(total).view(np.int64)
    adjust = (lost != 0) & np.isfinite(total) & np.isfinite(lost) & (bits & 1 == 0)
    away = (lost > 0) == (total > 0)
    return np.where(adjust, bits + np.where(away, 1, -1), bits).view(np.float64)


def to_f32(value: Array, mode: str = "rn") -> Array:
    """float64 -> float32 in the rounding mode rn, rz, rm, rp or odd."""
    nearest = value.astype(np.float32)
    if mode == "rn":
        return nearest
    back = nearest.astype(np.float64)
    bits = nearest.view(np.int32)
    if mode in ("rz", "odd"):
        cut = np.where(np.abs(back) > np.abs(value), bits - 1, bits)
        if mode == "odd":
            cut = np.where((back != value) & ~np.isnan(value), cut | 1, cut)
        return cut.astype(np.int32).view(np.float32)
    limit = np.float32(-np.inf if mode == "rm" else np.inf)
    wrong = back > value if mode == "rm" else back < value
    return np.where(wrong, np.nextafter(nearest, limit), nearest)


def to_f16(value: Array, mode: str = "rn") -> Array:
    """float32 or float64 -> float16."""
    single = to_f32(value, "odd") if value.dtype == np.float64 else value
    nearest = single.astype(np.float16)
    if mode == "rn":
        return nearest
    back = nearest.astype(np.float32)
    bits = nearest.view(np.int16)
    if mode == "rz":
        return np.where(np.abs(back) > np.abs(single), bits - 1, bits).astype(np.int16).view(np.float16)
    limit = np.float16(-np.inf if mode == "rm" else np.inf)
    wrong = back > single if mode == "rm" else back < single
    return np.where(wrong, np.nextafter(nearest, limit), nearest)


def to_bf16(value: Array, mode: str = "rn") -> Array:
    """float32 or float64 -> bfloat16 bits (uint16)."""
    single = to_f32(value, "odd") if value.dtype == np.float64 else value
    bits = np.ascontiguousarray(single).view(np.uint32)
    if mode == "rz":
        cut = bits
    elif mode == "rn":
        cut = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    else:
        grows = (bits >> np.uint32(31) != 0) if mode == "rm" else (bits >> np.uint32(31) == 0)
        cut = np.where(grows, bits + np.uint32(0xFFFF), bits)
    return np.where(np.isnan(single), np.uint16(0x7FFF), (cut >> np.uint32(16)).astype(np.uint16))


def from_bf16(bits: Array) -> Array:
    """bfloat16 bits -> float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_tf32(value: Array) -> Array:
    """float32 -> tf32 bits (10 bits of fraction), nearest, ties away from zero."""
    bits = np.ascontiguousarray(value).view(np.uint32)
    rounded = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(value), rounded, bits)


def fma_f32(a: Array, b: Array, c: Array, mode: str = "rn") -> Array:
    """a · b + c of float32, rounded once. The product is exact in float64; the sum is rounded to odd only
    where its rounding to float64 could change the result."""
    if mode != "rn":
        return to_f32(fma_narrow(a, b, c), mode)
    total = np.asarray(a.astype(np.float64) * b)
    total = np.add(total, c, out=total if total.shape == np.shape(c) else None)
    nearest = total.astype(np.float32)
    doubtful = (total.view(np.uint64) & _BELOW_F32) == _TIE
    doubtful |= (nearest.view(np.uint32) & _MAGNITUDE) - np.uint32(1) <= _LARGEST_SUBNORMAL
    if doubtful.any():
        some = (array[doubtful] for array in np.broadcast_arrays(a, b, c))
        nearest[doubtful] = to_f32(fma_narrow(*some))
    return nearest


def fma_narrow(a: Array, b: Array, c: Array) -> Array:
    """a · b + c of float32 (and so float16 and bfloat16) values, as a float64 rounded to odd."""
    product = a.astype(np.float64) * b
    return sum_to_odd(*np.broadcast_arrays(product, c.astype(np.float64)))


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a · b + c of float64, rounded once (where the product's error term does not underflow)."""
    high, low = _two_product(a, b)
    partial, rest = _two_sum(c, low)
    total, lost = _two_sum(high, partial)
    result = total + sum_to_odd(*np.broadcast_arrays(rest, lost))
    return np.where(np.isfinite(result), result, a * b + c)


def flush(value: Array) -> Array:
    """Subnormal float32 values as zeros of their sign (.ftz)."""
    tiny = np.abs(value) < np.float32(1.17549435e-38)
    if tiny.any():
        return np.where(tiny, np.copysign(np.float32(0), value), value)
    return value
