"""How a time is measured and said: warm-up until stable, enough runs, percentiles, an interval for the mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_RUNS = 20
WARMUP_WINDOW = 5  # runs whose median must agree with that of the runs before them
WARMUP_TOLERANCE = 0.05
MAX_WARMUP_SHARE = 0.5  # of the duration; a machine that never settles is measured all the same, and said
NOISY = 0.05  # coefficient of variation above which a result is called noisy
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Timing:
    """Seconds of every counted run, of the first run ever, and how the warm-up went."""

    seconds: tuple[float, ...]
    first: float
    warmup_runs: int
    stable: bool

    @property
    def median(self) -> float:
        return float(np.median(self.seconds))

    @property
    def variation(self) -> float:
        """Coefficient of variation: standard deviation over mean."""
        return float(np.std(self.seconds, ddof=1) / np.mean(self.seconds)) if len(self.seconds) > 1 else 0.0

    def to_json(self) -> dict[str, Any]:
        low, high = mean_interval(self.seconds)
        return {
            "runs": len(self.seconds),
            "warmup_runs": self.warmup_runs,
            "warmup_stable": self.stable,
            "first_seconds": self.first,
            "mean_seconds": float(np.mean(self.seconds)),
            "mean_ci95_seconds": [low, high],
            "min_seconds": min(self.seconds),
            "max_seconds": max(self.seconds),
            **{f"p{p}_seconds": percentile(self.seconds, p) for p in PERCENTILES},
            "coefficient_of_variation": self.variation,
            "noisy": self.variation > NOISY,
            "seconds": list(self.seconds),
        }


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that `percent` % of the runs do not exceed (linear between neighbours, as numpy's default)."""
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by the bootstrap (2,000 resamples, seeded): run times are not normal."""
    data = np.asarray(values, dtype=np.float64)
    return _bootstrap(lambda rows: data[rows].mean(axis=1), len(data))


def ratio_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """median(a) / median(b) of interleaved pairs and its 95 % interval, pairs resampled together."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    low, high = _bootstrap(lambda rows: np.median(first[rows], axis=1) / np.median(second[rows], axis=1), len(first))
    return float(np.median(first) / np.median(second)), low, high


def _bootstrap(statistic: Callable[[Any], Any], count: int) -> tuple[float, float]:
    rows = np.random.default_rng(0).integers(0, count, (2000, count))
    low, high = np.percentile(statistic(rows), (2.5, 97.5))
    return float(low), float(high)


def warm_up(call: Callable[[], object], duration: float) -> tuple[float, int, bool]:
    """Run until two windows of runs agree. Returns (seconds of the first run, runs, whether it settled)."""
    seconds: list[float] = []
    start = time.perf_counter()
    while True:
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
        if len(seconds) >= 2 * WARMUP_WINDOW:
            recent = float(np.median(seconds[-WARMUP_WINDOW:]))
            earlier = float(np.median(seconds[-2 * WARMUP_WINDOW : -WARMUP_WINDOW]))
            if abs(recent - earlier) <= WARMUP_TOLERANCE * earlier:
                return seconds[0], len(seconds), True
        if time.perf_counter() - start > max(duration * MAX_WARMUP_SHARE, seconds[0]) and len(seconds) > 1:
            return seconds[0], len(seconds), False


def measure(call: Callable[[], object], duration: float, min_runs: int = MIN_RUNS) -> Timing:
    """Warm up, then run at least `min_runs` times and `duration` seconds, those between runs not counted."""
    first, warmups, stable = warm_up(call, duration)
    seconds: list[float] = []
    total = 0.0
    while len(seconds) < min_runs or total < duration:
        before = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - before)
        total += seconds[-1]
    return Timing(tuple(seconds), first, warmups, stable)


def measure_pair(
    a: Callable[[], object], b: Callable[[], object], duration: float, min_runs: int = MIN_RUNS
) -> tuple[Timing, Timing]:
    """Two calls in turn, A B B A …, so that a drift of the machine meets both alike."""
    warm = [warm_up(call, duration / 2) for call in (a, b)]
    seconds: tuple[list[float], list[float]] = ([], [])
    total = 0.0
    while len(seconds[0]) < min_runs or total < duration:
        order = (0, 1) if len(seconds[0]) % 2 == 0 else (1, 0)
        for side in order:
            before = time.perf_counter()
            (a, b)[side]()
            seconds[side].append(time.perf_counter() - before)
            total += seconds[side][-1]
    first, second = (Timing(tuple(seconds[side]), warm[side][0], warm[side][1], warm[side][2]) for side in (0, 1))
    return first, second
