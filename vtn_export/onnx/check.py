"""Graph against reference: one error measure, one bound a precision, failures that say by how much.

float32: `max|a - b| / max(1, max|b|)`, at most 1e-5 against the float64 model.
16-bit:  `max|a - b|` of the rounding copy, at most twice PyTorch's own error with parameters and op
         outputs rounded to the type, over all samples, and 2 ulp of the type at max|reference|.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vtn_export.errors import AccuracyError
from vtn_export.onnx.precision import ulp
from vtn_export.runtime.golden import Sample
from vtn_export.runtime.session import Session
from vtn_export.spec import Array, Precision

FP32_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Check:
    """The worst error of one output over all samples, and the bound it is held against."""

    part: str
    output: str
    measured: float
    tolerance: float
    worst_sample: str
    measure: str

    @property
    def passed(self) -> bool:
        return math.isfinite(self.measured) and self.measured <= self.tolerance

    def describe(self) -> str:
        verdict = "within" if self.passed else "beyond"
        return (
            f"{self.part}: {self.output}: {self.measure} {self.measured:.3g}, {verdict} tolerance {self.tolerance:.3g} "
            f"(worst: {self.worst_sample}; the smallest that passes is {self.measured:.3g})"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def relative_error(got: Array, expected: Array) -> float:
    """`max|a - b| / max(1, max|b|)` in float64; NaN where either has one (or an infinity that the other lacks)."""
    return absolute_error(got, expected) / max(1.0, _largest(expected))


def absolute_error(got: Array, expected: Array) -> float:
    """`max|a - b|` in float64; NaN is never hidden."""
    if got.shape != expected.shape:
        return float("nan")
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(got.astype(np.float64) - expected.astype(np.float64)))) if got.size else 0.0


def typed_tolerance(rounded_error: float, references: Iterable[Array], precision: Precision) -> float:
    """The 16-bit bound from PyTorch's rounded error and the references' size; always finite.

    Where PyTorch, rounded likewise, gives no number itself, its error excuses nothing: an infinite
    bound would let every overflowing graph pass.
    """
    excuse = rounded_error if math.isfinite(rounded_error) else 0.0
    return 2 * excuse + 2 * ulp(max(_largest(reference) for reference in references), precision)


def check_samples(
    session: Session, samples: Sequence[Sample], *, part: str, precision: Precision, tolerance: float
) -> list[Check]:
    """Run every sample and keep the worst of each output."""
    measure = "relative error" if precision == "fp32" else "absolute error"
    error_of = relative_error if precision == "fp32" else absolute_error
    worst: dict[str, tuple[float, str]] = {}
    for sample in samples:
        outputs = session.run(sample.inputs)
        for name, expected in sample.expected.items():
            error = error_of(outputs[name], expected)
            # a NaN is the worst there is, and no later sample takes its place
            if name not in worst or not (math.isnan(worst[name][0]) or error <= worst[name][0]):
                worst[name] = (error, sample.name)
    return [Check(part, name, error, tolerance, where, measure) for name, (error, where) in worst.items()]


def require_passed(checks: Iterable[Check]) -> None:
    """Raise AccuracyError naming every output beyond its tolerance."""
    failed = [check.describe() for check in checks if not check.passed]
    if failed:
        raise AccuracyError("; ".join(failed))


def _largest(array: Array) -> float:
    return float(np.max(np.abs(array.astype(np.float64)))) if array.size else 0.0
