"""Pass or fail: the bundle's own bounds, or the tolerances that the caller gives; and one output's table row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from vtn_export.evaluate import metrics
from vtn_export.evaluate.forms import Bound
from vtn_export.evaluate.metrics import Errors, Smallest
from vtn_export.spec import LOGITS, Array


@dataclass(frozen=True)
class Rule:
    """The caller's tolerances; None leaves the bundle's bound in force.

    atol, rtol: `|a - b| <= atol + rtol·|b|` for every element, in place of the bound (one left out is
    0). top1: the least share of rows whose likeliest class must be the same.
    """

    atol: float | None = None
    rtol: float | None = None
    top1: float | None = None

    @property
    def overrides(self) -> bool:
        return self.atol is not None or self.rtol is not None


@dataclass(frozen=True)
class Compared:
    """One output of one call on both sides. frames: how many went in."""

    sample: str
    frames: int
    got: Array
    expected: Array


@dataclass(frozen=True)
class SampleError:
    """One sample's error by the row's measure."""

    sample: str
    frames: int
    measured: float


@dataclass(frozen=True)
class OutputCheck:
    """One output over all samples of one source: every number of the accuracy table, and the verdict.

    part: a graph, or `video`, or `mode full`. source: golden, frames, or video. measured, tolerance: by
    `measure`; `reasons` says why it failed, empty if it passed. cosine: the lowest of all rows;
    kl: the largest, in nats; top1, top5: mean agreement; None for outputs that are no logits.
    """

    part: str
    output: str
    source: str
    measure: str
    measured: float
    tolerance: float
    worst_sample: str
    errors: Errors
    smallest: Smallest
    cosine: float
    top1: float | None
    top5: float | None
    kl: float | None
    samples: tuple[SampleError, ...]
    reasons: tuple[str, ...] = field(default=())

    @property
    def passed(self) -> bool:
        return not self.reasons

    def describe(self) -> str:
        return (
            f"{self.part}: {self.output}: {'; '.join(self.reasons) or 'within tolerance'} (worst: {self.worst_sample}; "
            f"the smallest that passes is {self.measured:.3g})"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def check_output(
    part: str,
    output: str,
    source: str,
    compared: Iterable[Compared],
    bound: Bound,
    rule: Rule,
    against: str = "PyTorch",
) -> OutputCheck:
    """Every measure over the samples, one held in memory at a time if `compared` makes them one by one."""
    found: list[Errors] = []
    smallest: list[Smallest] = []
    samples: list[SampleError] = []
    cosines: list[float] = []
    ranks: list[tuple[int, float, float, float]] = []  # rows, top-1, top-5, KL
    measure = _measure(bound, rule)
    for one in compared:
        errors = metrics.errors(one.got, one.expected)
        least = metrics.smallest_tolerance(one.got, one.expected, atol=rule.atol or 0.0, rtol=rule.rtol or 0.0)
        measured = _measured(errors, least, bound, rule)
        found.append(errors)
        smallest.append(least)
        samples.append(SampleError(one.sample, one.frames, measured))
        cosines.append(float(np.min(metrics.cosine(one.got, one.expected))))
        if output == LOGITS:
            first, five = (metrics.topk_agreement(one.got, one.expected, k) for k in (1, 5))
            ranks.append((len(one.got), first, five, float(np.max(metrics.kl(one.got, one.expected)))))
    merged = metrics.merge(found)
    # a NaN is the worst there is
    worst = max(samples, key=lambda s: math.inf if math.isnan(s.measured) else s.measured)
    rows = sum(count for count, *_ in ranks)
    top1, top5 = (sum(entry[0] * entry[column] for entry in ranks) / rows if rows else None for column in (1, 2))
    tolerance = bound.tolerance if not rule.overrides else (rule.atol or rule.rtol or 0.0)
    reasons = []
    if not (math.isfinite(worst.measured) and worst.measured <= tolerance):
        reasons.append(f"{measure} {worst.measured:.3g}, beyond tolerance {tolerance:.3g} against {against}")
    if rule.top1 is not None and top1 is not None and not top1 >= rule.top1:
        reasons.append(f"top-1 agreement {top1:.4g}, below {rule.top1:.4g}")
    return OutputCheck(
        part=part,
        output=output,
        source=source,
        measure=measure,
        measured=worst.measured,
        tolerance=tolerance,
        worst_sample=worst.sample,
        errors=merged,
        smallest=Smallest(
            metrics.worst([s.agreement for s in smallest]),
            metrics.worst([s.atol for s in smallest]),
            metrics.worst([s.rtol for s in smallest]),
        ),
        cosine=_lowest(cosines),
        top1=top1,
        top5=top5,
        kl=metrics.worst([entry[3] for entry in ranks]) if ranks else None,
        samples=tuple(samples),
        reasons=tuple(reasons),
    )


def pair_bound(got: Bound, expected: Bound, max_expected: float) -> Bound:
    """For two forms held against the same truth: float32 ones as one alone, else both bounds together."""
    if got.relative and expected.relative:
        return Bound(True, max(got.tolerance, expected.tolerance))
    return Bound(False, got.absolute(max_expected) + expected.absolute(max_expected))


def _measure(bound: Bound, rule: Rule) -> str:
    if rule.atol and rule.rtol:
        return f"absolute error beyond {rule.rtol:.3g} of the value"
    if rule.overrides:
        return "element-wise relative error" if rule.rtol else "absolute error"
    return "relative error" if bound.relative else "absolute error"


def _measured(errors: Errors, smallest: Smallest, bound: Bound, rule: Rule) -> float:
    """What is held against the tolerance: of atol and rtol, the one that is given (atol, where both are)."""
    if rule.overrides:
        return smallest.rtol if rule.rtol and not rule.atol else smallest.atol
    return errors.agreement if bound.relative else errors.max_abs


def _lowest(values: Sequence[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else min(values)
