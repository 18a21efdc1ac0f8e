"""How the benchmarks measure: interleaved rounds, medians with their spread, memory in a process of its own.

Machines that run this are shared. Every round runs all candidates one after the other, so that noise meets
them alike; ratios are taken round by round; the spread stands beside every median.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from tables import RESULTS

from vtn_export.bundle import writing_file
from vtn_export.evaluate.context import machine_context

THREADS = 2


def interleave(runs: Mapping[str, Callable[[], Any]], rounds: int, *, pause: float = 0.02) -> dict[str, list[float]]:
    """Seconds of every run in every round; the order turns, so that none always follows the same."""
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        start_at = turn % len(names)
        for name in names[start_at:] + names[:start_at]:
            time.sleep(pause)  # the other runtime's threads stop spinning
            start = time.perf_counter()
            runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of the ratios round by round; and that of the least disturbed times."""
    values = sorted(a / b for a, b in zip(above, below, strict=True))
    return {"median": median(values), "min": values[0], "max": values[-1], "best": min(above) / min(below)}


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, smallest, largest, and how far they lie apart: (max - min) / median."""
    middle = median(seconds)
    low, high = min(seconds), max(seconds)
    return {
        "median_seconds": middle,
        "min_seconds": low,
        "max_seconds": high,
        "spread": (high - low) / middle if middle else 0.0,
        "runs": len(seconds),
    }


def slope(points: Mapping[int, float]) -> float:
    """How the time grows: the exponent p of time ~ frames^p, least squares in logarithms. 1 is linear, 2 quadratic."""
    import numpy as np

    if len(points) < 2:
        raise ValueError(f"slope: got {len(points)} lengths, expected at least 2")
    return float(np.polyfit(np.log(list(points)), np.log(list(points.values())), 1)[0])


def context() -> dict[str, Any]:
    """The machine, versions, and how busy it was."""
    found = machine_context(THREADS)
    found["nice"] = os.nice(0)
    found["date"] = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    return found


def noise(results: Sequence[Mapping[str, Any]], bound: float = 0.2) -> str:
    """One sentence: how far the runs of a median lie apart, and how many more than `bound`."""
    spreads = [entry["spread"] for entry in results if entry.get("runs", 0) > 1]
    if not spreads:
        return "One run each: no spread to state."
    wide = sum(spread > bound for spread in spreads)
    return (
        f"Noise: largest minus smallest run over the median is {median(spreads):.0%} in the middle, "
        f"{max(spreads):.0%} at worst; {wide} of {len(spreads)} medians beyond {bound:.0%}."
    )


def store(name: str, data: Mapping[str, Any]) -> Path:
    """Write results/NAME.json in one step."""
    path = RESULTS / f"{name}.json"
    with writing_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return path


class Worker:
    """A candidate in a process of its own, which answers one JSON line a request.

    Its memory is its own, its threads disturb nobody between runs, and rounds can still take turns.
    """

    def __init__(self, script: str, *arguments: object) -> None:
        command = [sys.executable, script, *(str(argument) for argument in arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The worker's answer; {"error": …} when it could not, or is gone (killed for memory, say)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"its process ended with {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(handle: Callable[..., dict[str, Any]]) -> None:
    """A worker's side: answer every line of stdin. What other libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # where memory ends, a candidate goes (which is a result, too), not the benchmark around it
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for line in sys.stdin:
        try:
            answer = handle(**json.loads(line))
        except Exception as error:  # a peer may fail in any way; that is a result, too
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
