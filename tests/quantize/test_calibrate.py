"""Ranges, clips and the gate's search, each by itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vtn_export.quantize.calibrate import METHODS, Method, Observer
from vtn_export.quantize.gate import fewest_restored
from vtn_export.quantize.histogram import BINS, LEVELS, Histogram


@pytest.mark.parametrize("method", METHODS)
def test_ranges_of_each_rule(method: Method) -> None:
    """A bell with one far outlier: max takes it whole, the others clip it and keep the bell."""
    rng = np.random.default_rng(0)
    observer = Observer(method)
    observer.add({"x": rng.standard_normal(50_000).astype(np.float32), "zero": np.zeros(4, np.float32)})
    observer.add(
        {"x": np.append(rng.standard_normal(50_000), -60.0).astype(np.float32), "zero": np.zeros(4, np.float32)}
    )
    observer.active = False
    observer.add({"x": np.array([1e6], np.float32)})
    found = observer.result()
    assert found["zero"] == 0.0
    if method == "max":
        assert found["x"] == 60.0
    else:
        assert 2.5 < found["x"] < 20


def test_percentile_is_the_share_of_magnitudes() -> None:
    observer = Observer("percentile")
    values = np.linspace(0, 1, 100_001).astype(np.float32)
    observer.add({"x": values * np.where(np.arange(len(values)) % 2, 1, -1).astype(np.float32)})
    assert observer.result()["x"] == pytest.approx(0.9999, abs=1e-3)


@pytest.mark.parametrize("count", range(1, 20))
def test_fewest_restored_is_the_least(count: int) -> None:
    for least in [*range(1, count), None]:
        tried: list[int] = []

        def holds(k: int, least: int | None = least, tried: list[int] = tried) -> bool:
            assert 0 < k < count  # every layer restored is not a quantized graph
            tried.append(k)
            return least is not None and k >= least

        assert fewest_restored(count, holds) == least
        assert len(tried) == len(set(tried)) <= 2 * math.log2(count) + 3


def test_a_histogram_counts_every_value_whatever_the_order() -> None:
    """A top that doubles loses no value: the same counts as from the largest first."""
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal(1000).astype(np.float32) * 2.0**k for k in (0, 3, 1, 5)]
    parts[-1][0] = parts[0].__abs__().max() * 64  # a power of two times the first top: bins fall together
    growing, whole = Histogram(), Histogram()
    for part in parts:
        growing.add(part)
    whole.add(parts[-1])
    for part in parts[:-1]:
        whole.add(part)
    assert growing.top == whole.top and growing.counts.sum() == 4000
    assert np.abs(np.cumsum(growing.counts) - np.cumsum(whole.counts)).max() <= 1  # float32 edges


def test_entropy_beats_its_neighbours() -> None:
    """The clipping found has the least KL divergence, computed here the slow way."""
    rng = np.random.default_rng(4)
    histogram = Histogram()
    histogram.add(np.append(rng.laplace(size=30_000), 40.0).astype(np.float32))
    found = round(histogram.entropy() / histogram.top * BINS)

    def loss(end: int) -> float:
        counts = [float(c) for c in histogram.counts]
        counts[0] = counts[1]
        p = [*counts[: end - 1], sum(counts[end - 1 :])]
        q = [0.0] * end
        for level in range(LEVELS):
            members = [i for i in range(end) if i * LEVELS // end == level]
            full = [i for i in members if counts[i] > 0]
            for i in full:
                q[i] = sum(counts[j] for j in members) / len(full)
        if any(a > 0 and b == 0 for a, b in zip(p, q, strict=True)):
            return math.inf
        total_p, total_q = sum(p), sum(q)
        pairs = [(a / total_p, b / total_q) for a, b in zip(p, q, strict=True) if a > 0]
        return sum(a * math.log(a / b) for a, b in pairs)

    best = loss(found)
    assert math.isfinite(best)
    assert best <= min(loss(end) for end in range(LEVELS, BINS + 1, 64)) + 1e-9
