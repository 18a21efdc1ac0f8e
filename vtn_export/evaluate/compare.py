"""Two bench results: what moved beyond noise, and whether anything got slower than allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.errors import ShapeError
from vtn_export.evaluate.bench import SCHEMA, SCHEMA_VERSION
from vtn_export.evaluate.context import same_machine

_MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class Change:
    """One case in both results: median seconds, their ratio (after / before) and its 95 % interval."""

    case: str
    before: float
    after: float
    ratio: float
    low: float
    high: float

    def verdict(self, threshold: float) -> str:
        """slower (beyond the threshold), faster, moved (real but within it), or noise (interval holds 1)."""
        if self.low <= 1 <= self.high:
            return "noise"
        if self.ratio > 1 + threshold:
            return "slower"
        return "faster" if self.ratio < 1 - threshold else "moved"


def read_result(path: Path) -> dict[str, Any]:
    """A result document. Raises ShapeError for anything else or another schema version."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ShapeError(f"{path}: larger than {_MAX_BYTES >> 20} MiB, not a bench result")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ShapeError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ShapeError(f"{path}: not a result of `vtn-export bench --json FILE`")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ShapeError(
            f"{path}: got schema version {data.get('schema_version')}, expected {SCHEMA_VERSION}; measure again"
        )
    results = data.get("results")
    if not isinstance(results, list) or not isinstance(data.get("context"), dict):
        raise ShapeError(f"{path}: malformed: no results or no context")
    for result in results:
        _check(result, path)
    return data


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Changes of the cases that both have, and remarks: cases of one alone, contexts that differ."""
    old = {_name(result): result for result in before["results"] if "p50_seconds" in result}
    new = {_name(result): result for result in after["results"] if "p50_seconds" in result}
    remarks = [f"another machine: {difference}" for difference in same_machine(before["context"], after["context"])]
    remarks += [f"only before: {name}" for name in old if name not in new]
    remarks += [f"only after: {name}" for name in new if name not in old]
    return [_change(name, old[name]["seconds"], new[name]["seconds"]) for name in old if name in new], remarks


def _change(name: str, before: list[float], after: list[float]) -> Change:
    a, b = np.asarray(before), np.asarray(after)
    generator = np.random.default_rng(0)
    ratios = np.median(b[generator.integers(0, len(b), (2000, len(b)))], axis=1) / np.median(
        a[generator.integers(0, len(a), (2000, len(a)))], axis=1
    )
    low, high = np.percentile(ratios, (2.5, 97.5))
    ratio = float(np.median(b) / np.median(a))
    return Change(name, float(np.median(a)), float(np.median(b)), ratio, float(low), float(high))


def _name(result: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in result["case"].items())


def _check(result: Any, path: Path) -> None:
    if not isinstance(result, dict) or not isinstance(result.get("case"), dict):
        raise ShapeError(f"{path}: malformed: a result without a case")
    if "p50_seconds" not in result:
        return  # throughput of several streams: one number, nothing to resample
    seconds = result.get("seconds")
    if not isinstance(seconds, list) or not seconds:
        raise ShapeError(f"{path}: malformed: {_name(result)} has no run times")
    for value in seconds:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            raise ShapeError(f"{path}: malformed: {_name(result)} has a run time of {value!r}")
