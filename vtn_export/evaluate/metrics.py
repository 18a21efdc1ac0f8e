"""How far two arrays are apart: every number of an accuracy table, in float64, merged over samples.

`got` and `expected` have one shape; where rows are meant, they are the last axis. Nothing that is
not finite is ever hidden: a NaN in `got` makes the errors NaN and its row agree with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vtn_export.errors import ShapeError
from vtn_export.spec import Array

# Element-wise relative errors take |expected| for at least this share of max|expected|: next to zero
# they would say how small a number is, not how wrong.
RELATIVE_FLOOR = 1e-3

# Bins of |got - expected| for the histograms, four a decade; the end bins take what lies beyond.
HISTOGRAM_LOG10_EDGES: tuple[float, ...] = tuple(step / 4 for step in range(-48, 17))


@dataclass(frozen=True)
class Errors:
    """One output's errors over `count` elements.

    agreement: `max|a - b| / max(1, max|b|)`, the measure of float32 bounds. max_rel, mean_rel:
    element by element, see RELATIVE_FLOOR. histogram: elements by |a - b| in the bins of
    HISTOGRAM_LOG10_EDGES; `exact` of them are equal, `not_finite` have no error, neither is in a bin.
    """

    count: int
    max_abs: float
    mean_abs: float
    max_rel: float
    mean_rel: float
    agreement: float
    max_expected: float
    histogram: tuple[int, ...]
    exact: int
    not_finite: int


@dataclass(frozen=True)
class Smallest:
    """The smallest tolerances that would have passed.

    agreement: for `max|a - b| / max(1, max|b|)`. atol, rtol: for `|a - b| <= atol + rtol·|b|` of every
    element, each with the other one as it was given; infinite where none would do.
    """

    agreement: float
    atol: float
    rtol: float


def errors(got: Array, expected: Array) -> Errors:
    """All errors of one output of one sample. Raises ShapeError."""
    a, b = _pair(got, expected)
    if not a.size:
        return Errors(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (0,) * (len(HISTOGRAM_LOG10_EDGES) - 1), 0, 0)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))  # equal infinities have no difference
        largest = float(np.max(np.abs(b)))
        floor = np.maximum(np.abs(b), RELATIVE_FLOOR * largest)
        relative = np.where(difference == 0, 0.0, difference / floor)
        bad = ~np.isfinite(difference)
        exact = difference == 0
        edges = np.asarray(HISTOGRAM_LOG10_EDGES)
        logs = np.clip(np.log10(difference[~bad & ~exact]), edges[0], edges[-1])
    counts, _ = np.histogram(logs, edges)
    return Errors(
        count=a.size,
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        max_rel=float(relative.max()),
        mean_rel=float(relative.mean()),
        agreement=float(difference.max()) / max(1.0, largest),
        max_expected=largest,
        histogram=tuple(int(count) for count in counts),
        exact=int(exact.sum()),
        not_finite=int(bad.sum()),
    )


def merge(parts: Sequence[Errors]) -> Errors:
    """The errors of several samples as one: the largest of each maximum, means over all elements."""
    if not parts:
        raise ValueError("nothing to merge")
    count = sum(part.count for part in parts)

    def mean(values: Sequence[float]) -> float:
        weighted = sum(value * part.count for value, part in zip(values, parts, strict=True) if part.count)
        return weighted / count if count else 0.0

    return Errors(
        count=count,
        max_abs=worst([part.max_abs for part in parts]),
        mean_abs=mean([part.mean_abs for part in parts]),
        max_rel=worst([part.max_rel for part in parts]),
        mean_rel=mean([part.mean_rel for part in parts]),
        agreement=worst([part.agreement for part in parts]),
        max_expected=worst([part.max_expected for part in parts]),
        histogram=tuple(sum(bins) for bins in zip(*(part.histogram for part in parts), strict=True)),
        exact=sum(part.exact for part in parts),
        not_finite=sum(part.not_finite for part in parts),
    )


def worst(values: Sequence[float]) -> float:
    """The largest; a NaN is worse than anything."""
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def cosine(got: Array, expected: Array) -> Array:
    """float64 `[…]`: the cosine of every row's angle. Two zero rows agree (1), one alone does not (0).

    NaN where a row is not finite. Raises ShapeError.
    """
    a, b = (_scaled(x) for x in _pair(got, expected))
    with np.errstate(invalid="ignore"):
        norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        same_zero = ~a.any(-1) & ~b.any(-1)
        cosines = (a * b).sum(-1) / np.where(norms == 0, 1.0, norms)
        return np.asarray(np.where(same_zero, 1.0, np.clip(cosines, -1.0, 1.0)))


def topk_agreement(got: Array, expected: Array, k: int) -> float:
    """Mean share, over the rows, of the expected k highest that are among the k highest of `got`.

    k = 1: the share of rows whose likeliest class is the same. A k beyond the row is the whole row; of
    equal values the first counts as higher. A row of `got` that is not finite agrees with nothing.
    Raises ShapeError.
    """
    if k < 1:
        raise ShapeError(f"top-k: got k = {k}, expected at least 1")
    a, b = (x.reshape(-1, x.shape[-1]) for x in _pair(got, expected))
    if not a.size:
        return 1.0
    k = min(k, a.shape[1])
    ours, theirs = (np.argsort(-x, axis=1, kind="stable")[:, :k] for x in (a, b))
    shared = (ours[:, :, None] == theirs[:, None, :]).any(1).mean(1)
    return float(np.where(np.isfinite(a).all(1), shared, 0.0).mean())


def rank_of(logits: Array, labels: Array) -> Array:
    """int64 `[N]`: how many classes are likelier than the label of every row of logits `[N, classes]`; 0 is right.

    Of equal values the first counts as higher. A row that is not finite ranks its label behind all (`classes`).
    Raises ShapeError.
    """
    rows = np.asarray(logits)
    wanted = np.asarray(labels)
    if rows.ndim != 2 or wanted.shape != rows.shape[:1]:
        raise ShapeError(f"labels: got {wanted.shape} for logits {rows.shape}, expected one a row")
    own = np.take_along_axis(rows, wanted[:, None], 1)
    earlier = np.arange(rows.shape[1])[None] < wanted[:, None]
    before = (rows > own) | ((rows == own) & earlier)
    return np.asarray(np.where(np.isfinite(rows).all(1), before.sum(1), rows.shape[1]))


def kl(got: Array, expected: Array) -> Array:
    """float64 `[…]`, in nats: KL(softmax(expected) ‖ softmax(got)) of every row of logits. Raises ShapeError."""
    a, b = (_log_softmax(x) for x in _pair(got, expected))
    with np.errstate(invalid="ignore"):
        divergence = (np.exp(b) * (b - a)).sum(-1)
    return np.asarray(np.where(divergence < 0, 0.0, divergence))  # below zero by rounding alone


def smallest_tolerance(got: Array, expected: Array, *, atol: float = 0.0, rtol: float = 0.0) -> Smallest:
    """What would have passed; atol and rtol are the tolerances in force. Raises ShapeError."""
    a, b = _pair(got, expected)
    if not a.size:
        return Smallest(0.0, 0.0, 0.0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))
        size = np.abs(b)
        over_rtol = np.where(difference == 0, 0.0, difference - rtol * size)
        over_atol = np.where(difference <= atol, 0.0, (difference - atol) / size)
        agreement = float(difference.max()) / max(1.0, float(size.max()))
    return Smallest(agreement, _no_less(over_rtol), _no_less(over_atol))


def _no_less(values: Array) -> float:
    largest = float(values.max())  # a NaN stays one
    return math.inf if math.isnan(largest) else max(0.0, largest)


def _pair(got: Array, expected: Array) -> tuple[Array, Array]:
    if got.shape != expected.shape or got.ndim == 0:
        raise ShapeError(f"compared arrays: got {got.shape}, expected {expected.shape}, with rows")
    return got.astype(np.float64), expected.astype(np.float64)


def _scaled(rows: Array) -> Array:
    """Rows divided by their largest magnitude, so that squares neither overflow nor vanish."""
    with np.errstate(invalid="ignore"):
        largest = np.abs(rows).max(-1, keepdims=True, initial=0.0)
        return np.asarray(rows / np.where(largest == 0, 1.0, largest))


def _log_softmax(rows: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = rows - rows.max(-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
