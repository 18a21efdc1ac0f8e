"""The protocol: percentiles as numpy's, intervals that cover, warm-ups that end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.evaluate import timing
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


class Clock:
    """Time that passes only where a test says so: a busy machine has no say."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_measure_counts_what_it_promises(clock: Clock) -> None:
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        clock.now += 2**-6 if calls < 4 else 2**-9

    found = measure(call, duration=0.125, min_runs=20)
    assert len(found.seconds) == 64 and sum(found.seconds) == 0.125
    assert calls == len(found.seconds) + found.warmup_runs
    assert found.first == 2**-6 and found.median == 2**-9 and found.stable
    data = found.to_json()
    assert data["runs"] == 64 and data["p50_seconds"] == 2**-9 and not data["noisy"]


def test_slow_calls_run_often_enough(clock: Clock) -> None:
    def call() -> None:
        clock.now += 7.0

    found = measure(call, duration=0.1, min_runs=20)
    assert len(found.seconds) == 20 and found.warmup_runs == 2 and not found.stable


def test_pauses_between_runs_are_not_the_runs_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run takes 1/512 s and the machine is away for 0.5 s before each: 64 runs make 1/8 s all the same."""
    readings = iter(range(10_000))
    pausing = Clock()

    def perf_counter() -> float:
        pausing.now += 2**-9 if next(readings) % 2 else 0.5
        return pausing.now

    pausing.perf_counter = perf_counter  # type: ignore[method-assign]
    monkeypatch.setattr(timing, "warm_up", lambda *_: (2**-9, 2, True))
    monkeypatch.setattr(timing, "time", pausing)
    found = measure(lambda: None, duration=0.125, min_runs=5)
    assert len(found.seconds) == 64 and found.median == 2**-9


def test_a_machine_that_never_settles_is_measured_and_said(clock: Clock) -> None:
    generator = np.random.default_rng(7)

    def call() -> None:
        clock.now += float(generator.exponential(0.004))

    found = measure(call, duration=0.05, min_runs=5)
    assert found.to_json()["noisy"]


def test_pairs_have_as_many_runs_of_each(clock: Clock) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> None:
        order.append(name)
        clock.now += seconds

    a, b = measure_pair(lambda: side("a", 0.008), lambda: side("b", 0.001), duration=0.05, min_runs=10)
    assert len(a.seconds) == len(b.seconds) == 10
    assert "".join(order[-8:]) == "abbaabba"
    ratio, low, high = ratio_interval(a.seconds, b.seconds)
    assert (ratio, low, high) == (pytest.approx(8), pytest.approx(8), pytest.approx(8))


def test_one_run_has_no_spread() -> None:
    assert Timing((0.5,), 0.5, 2, True).variation == 0.0
