"""Every measure against its formula written out in plain Python, and at the edges: NaN, infinity, ties, zero."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vtn_export.errors import ShapeError
from vtn_export.evaluate import metrics
from vtn_export.spec import Array

SHAPES = [(1, 1), (2, 5), (3, 17), (7, 400)]


def _arrays(shape: tuple[int, ...], noise: float = 0.1) -> tuple[Array, Array]:
    generator = np.random.default_rng(shape[0] * 1000 + shape[-1])
    expected = generator.standard_normal(shape) * 3
    return (expected + noise * generator.standard_normal(shape)).astype(np.float32), expected.astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_their_formulas(shape: tuple[int, ...]) -> None:
    got, expected = _arrays(shape)
    pairs = [(float(a), float(b)) for a, b in zip(got.ravel(), expected.ravel(), strict=True)]
    largest = max(abs(b) for _, b in pairs)
    absolute = [abs(a - b) for a, b in pairs]
    relative = [abs(a - b) / max(abs(b), metrics.RELATIVE_FLOOR * largest) for a, b in pairs]
    found = metrics.errors(got, expected)
    assert found.count == len(pairs)
    assert found.max_abs == max(absolute)
    assert found.mean_abs == pytest.approx(math.fsum(absolute) / len(pairs), rel=1e-12)
    assert found.max_rel == pytest.approx(max(relative), rel=1e-12)
    assert found.mean_rel == pytest.approx(math.fsum(relative) / len(pairs), rel=1e-12)
    assert found.agreement == max(absolute) / max(1.0, largest)
    assert sum(found.histogram) + found.exact + found.not_finite == len(pairs)
    edges = metrics.HISTOGRAM_LOG10_EDGES
    for index, count in enumerate(found.histogram[:-1]):
        assert count == sum(edges[index] <= math.log10(e) < edges[index + 1] for e in absolute if e)


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32)),
    arrays(np.float32, (4, 6), elements=st.floats(-1e3, 1e3, width=32)),
)
def test_merging_samples_is_measuring_them_together(got: Array, expected: Array) -> None:
    whole = metrics.errors(got, expected)
    merged = metrics.merge([metrics.errors(got[:1], expected[:1]), metrics.errors(got[1:], expected[1:])])
    assert (merged.count, merged.max_abs, merged.max_expected) == (whole.count, whole.max_abs, whole.max_expected)
    assert merged.mean_abs == pytest.approx(whole.mean_abs)
    assert (merged.histogram, merged.exact) == (whole.histogram, whole.exact)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_hidden(bad: float) -> None:
    got, expected = _arrays((3, 17))
    got[1, 4] = bad
    found = metrics.errors(got, expected)
    assert found.not_finite == 1 and not math.isfinite(found.max_abs) and not math.isfinite(found.agreement)
    merged = metrics.merge([found, metrics.errors(expected, expected)])
    assert not math.isfinite(merged.max_abs) and merged.not_finite == 1
    assert metrics.topk_agreement(got, got, 1) == pytest.approx(2 / 3)
    assert np.isnan(metrics.cosine(got, expected)).tolist() == [False, True, False]
    smallest = metrics.smallest_tolerance(got, expected)
    assert smallest.atol == smallest.rtol == math.inf
    assert not np.isfinite(metrics.kl(got, expected)[1])


def test_equal_infinities_are_equal() -> None:
    masked = np.array([[-math.inf, 1.0]])
    assert metrics.errors(masked, masked).max_abs == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_cosine_is_its_formula(shape: tuple[int, ...]) -> None:
    got, expected = _arrays(shape, noise=2.0)
    for row, (a, b) in enumerate(zip(got.tolist(), expected.tolist(), strict=True)):
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(y * y for y in b))
        assert metrics.cosine(got, expected)[row] == pytest.approx(dot / norms, abs=1e-12)


def test_cosine_of_zero_and_of_huge_rows() -> None:
    zero, one, huge = np.zeros((1, 3)), np.ones((1, 3)), np.full((1, 3), 1e300)
    assert metrics.cosine(zero, zero) == [1.0] and metrics.cosine(zero, one) == [0.0]
    assert metrics.cosine(huge, huge) == pytest.approx([1.0])
    assert metrics.cosine(one, -one) == pytest.approx([-1.0])


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_topk_agreement_is_the_share_of_shared_classes(k: int) -> None:
    got, expected = _arrays((7, 40), noise=1.0)
    shares = []
    for a, b in zip(got.tolist(), expected.tolist(), strict=True):
        tops = [set(sorted(range(40), key=lambda i, row=row: -row[i])[:k]) for row in (a, b)]  # type: ignore[misc]
        shares.append(len(tops[0] & tops[1]) / k)
    assert metrics.topk_agreement(got, expected, k) == pytest.approx(sum(shares) / 7)
    assert 0 < sum(shares) / 7 < 1 or k == 1


def test_topk_of_ties_and_of_few_classes() -> None:
    tied = np.zeros((2, 3))
    assert metrics.topk_agreement(tied, tied, 1) == 1.0
    got, expected = np.array([[1.0, 2.0]]), np.array([[2.0, 1.0]])
    assert metrics.topk_agreement(got, expected, 1) == 0.0
    assert metrics.topk_agreement(got, expected, 5) == 1.0
    with pytest.raises(ShapeError, match="k = 0"):
        metrics.topk_agreement(got, expected, 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_kl_is_its_formula(shape: tuple[int, ...]) -> None:
    got, expected = _arrays(shape, noise=1.0)

    def softmax(row: list[float]) -> list[float]:
        top = max(row)
        weights = [math.exp(x - top) for x in row]
        return [w / math.fsum(weights) for w in weights]

    for row, (a, b) in enumerate(zip(got.tolist(), expected.tolist(), strict=True)):
        p, q = softmax(b), softmax(a)
        divergence = math.fsum(x * (math.log(x) - math.log(y)) for x, y in zip(p, q, strict=True) if x)
        assert metrics.kl(got, expected)[row] == pytest.approx(max(divergence, 0.0), abs=1e-12)
    assert metrics.kl(expected, expected + np.float32(0)) == pytest.approx(np.zeros(shape[0]))


@pytest.mark.parametrize(("atol", "rtol"), [(0.0, 0.0), (0.05, 0.0), (0.0, 0.02), (0.03, 0.01)])
def test_the_smallest_tolerance_passes_and_a_smaller_one_does_not(atol: float, rtol: float) -> None:
    got, expected = _arrays((3, 17))
    found = metrics.smallest_tolerance(got, expected, atol=atol, rtol=rtol)

    def passes(a: float, r: float) -> bool:
        b = expected.astype(np.float64)
        return bool((np.abs(got.astype(np.float64) - b) <= a + r * np.abs(b)).all())

    more, less = 1 + 1e-9, 1 - 1e-6
    assert passes(found.atol * more, rtol) and not passes(found.atol * less, rtol)
    assert passes(atol, found.rtol * more) and not passes(atol, found.rtol * less)
    assert found.agreement == metrics.errors(got, expected).agreement


def test_shapes_must_agree() -> None:
    with pytest.raises(ShapeError, match=r"got \(2, 3\), expected \(3, 2\)"):
        metrics.errors(np.zeros((2, 3)), np.zeros((3, 2)))
