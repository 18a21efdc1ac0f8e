"""Two bench results: what moved beyond noise, and whether anything got slower than allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vtn_export.evaluate.bench_schema import case_name, timed
from vtn_export.evaluate.context import same_machine
from vtn_export.evaluate.documents import printable

SCHEMA, SCHEMA_VERSION = "vtn-export/compare", 1


@dataclass(frozen=True)
class Change:
    """One case in both results: median seconds, their ratio (after / before) and its 95 % interval.

    noisy: one of the results called the case so; the interval knows the noise within a run, not between runs.
    """

    case: str
    before: float
    after: float
    ratio: float
    low: float
    high: float
    noisy: bool

    def verdict(self, threshold: float) -> str:
        """slower (beyond the threshold), faster, moved (real but within it), or noise (interval holds 1)."""
        if self.low <= 1 <= self.high:
            return "noise"
        if self.ratio > 1 + threshold:
            return "slower"
        return "faster" if self.ratio < 1 - threshold else "moved"


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Changes of the cases that both have, and remarks: another machine, backend or bundle, cases of one alone."""
    old = {case_name(result): result for result in timed(before)}
    new = {case_name(result): result for result in timed(after)}
    remarks = [f"another machine: {difference}" for difference in same_machine(before["context"], after["context"])]
    remarks += [f"another {what}: {a} and {b}" for what, a, b in _subjects(before, after) if a != b]
    remarks += [f"only before: {name}" for name in old if name not in new]
    remarks += [f"only after: {name}" for name in new if name not in old]
    changes = [_change(name, old[name], new[name]) for name in old if name in new]
    return changes, [printable(remark) for remark in remarks]


def _subjects(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    sides = [(d["backend"], d["bundle"]["name"], d["bundle"]["precision"]) for d in (before, after)]
    found = [
        (what, *pair) for what, pair in zip(("backend", "model", "precision"), zip(*sides, strict=True), strict=True)
    ]
    files = [{name: digest[:12] for name, digest in d["bundle"]["files"].items()} for d in (before, after)]
    changed = sorted(name for name in files[0].keys() & files[1].keys() if files[0][name] != files[1][name])
    return [*found, *((name, files[0][name], files[1][name]) for name in changed)]


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    a, b = np.asarray(before["seconds"]), np.asarray(after["seconds"])
    generator = np.random.default_rng(0)
    ratios = np.median(b[generator.integers(0, len(b), (2000, len(b)))], axis=1) / np.median(
        a[generator.integers(0, len(a), (2000, len(a)))], axis=1
    )
    low, high = np.percentile(ratios, (2.5, 97.5))
    ratio = float(np.median(b) / np.median(a))
    noisy = bool(before["noisy"] or after["noisy"])
    return Change(printable(name), float(np.median(a)), float(np.median(b)), ratio, float(low), float(high), noisy)
