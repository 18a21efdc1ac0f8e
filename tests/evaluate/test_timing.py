"""The protocol: percentiles as numpy's, intervals that cover, warm-ups that end."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.evaluate.timing import Timing, mean_interval, measure, measure_pair, percentile, ratio_interval

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


@given(TIMES, st.sampled_from([0, 1, 50, 90, 95, 99, 100]))
def test_percentiles_are_numpys(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), rel=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        low, high = mean_interval(generator.gamma(4, 1, 40))
        covered += low <= 4 <= high
    assert 180 <= covered <= 199, covered


def test_ratio_of_interleaved_runs_survives_a_drift() -> None:
    generator = np.random.default_rng(6)
    drift = np.linspace(1, 3, 100)
    b = drift * generator.normal(1, 0.02, 100)
    a = 1.5 * drift * generator.normal(1, 0.02, 100)
    ratio, low, high = ratio_interval(a.tolist(), b.tolist())
    assert low <= 1.5 <= high and high - low < 0.3 and ratio == pytest.approx(1.5, rel=0.05)


def test_measure_counts_what_it_promises() -> None:
    calls: list[float] = []

    def call() -> None:
        calls.append(time.perf_counter())
        time.sleep(0.02 if len(calls) < 4 else 0.002)

    timing = measure(call, duration=0.1, min_runs=20)
    assert len(timing.seconds) >= 20 and sum(timing.seconds) >= 0.1 * (1 - 1e-9)  # the order of adding
    assert len(calls) == len(timing.seconds) + timing.warmup_runs
    assert timing.first >= 0.02 and timing.median < 0.01
    data = timing.to_json()
    assert data["runs"] == len(timing.seconds) and data["p50_seconds"] == pytest.approx(timing.median)


def test_a_machine_that_never_settles_is_measured_and_said() -> None:
    generator = np.random.default_rng(7)
    timing = measure(lambda: time.sleep(float(generator.exponential(0.004))), duration=0.05, min_runs=5)
    assert timing.to_json()["noisy"]


def test_pairs_have_as_many_runs_of_each() -> None:
    a, b = measure_pair(lambda: time.sleep(0.008), lambda: time.sleep(0.001), duration=0.05, min_runs=10)
    assert len(a.seconds) == len(b.seconds) >= 10 and sum(a.seconds + b.seconds) >= 0.05 * (1 - 1e-9)
    assert ratio_interval(a.seconds, b.seconds)[0] > 1.2


def test_one_run_has_no_spread() -> None:
    assert Timing((0.5,), 0.5, 2, True).variation == 0.0
