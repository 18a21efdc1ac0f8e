"""For the tests: rounding by rational arithmetic, written from the definition of IEEE 754, not from numpy."""

from __future__ import annotations

import math
from fractions import Fraction

FORMATS = {"f16": (11, -14, 15), "bf16": (8, -126, 127), "f32": (24, -126, 127), "f64": (53, -1022, 1023)}
"""Bits of precision, smallest and largest exponent of normal numbers."""


def decode(bits: int, kind: str) -> Fraction | float:
    """The value of a float's bits: a fraction, or inf or nan."""
    precision, low, high = FORMATS[kind]
    fraction_bits = precision - 1
    exponent_bits = (high - low + 2).bit_length()
    sign = -1 if bits >> (fraction_bits + exponent_bits) else 1
    exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1)
    fraction = bits & ((1 << fraction_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * Fraction(2) ** (low - fraction_bits)
    return sign * (fraction + (1 << fraction_bits)) * Fraction(2) ** (exponent - 1 + low - fraction_bits)


def encode(value: Fraction, kind: str, mode: str = "rn") -> int:
    """The bits of a fraction rounded once: rn (ties to even), rz, rm, rp. The sign of zero is plus."""
    precision, low, high = FORMATS[kind]
    fraction_bits = precision - 1
    exponent_bits = (high - low + 2).bit_length()
    sign = 1 if value < 0 else 0
    magnitude = abs(value)
    if magnitude == 0:
        return 0
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, low)
    unit = Fraction(2) ** (exponent - fraction_bits)
    count, rest = divmod(magnitude, unit)
    upwards = {"rn": False, "rz": False, "rm": bool(sign), "rp": not sign}[mode]
    if mode == "rn":
        upwards = rest > unit / 2 or (rest == unit / 2 and count % 2 == 1)
    if rest and upwards:
        count += 1
    if count == 1 << precision:
        count, exponent = count // 2, exponent + 1
    top = sign << (fraction_bits + exponent_bits)
    if exponent > high:
        infinite = mode == "rn" or upwards or (mode == "rp" and not sign) or (mode == "rm" and bool(sign))
        largest = (1 << (fraction_bits + exponent_bits)) - (1 << fraction_bits)
        return top | (largest if infinite else largest - 1)
    if count < 1 << fraction_bits:
        return top | int(count)
    return top | (exponent - low + 1) << fraction_bits | (int(count) - (1 << fraction_bits))
