"""`bench --vs`: two bundles or backends in turn, in one run, so that whatever disturbs the machine meets both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from vtn_export.backends import Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import UsageError
from vtn_export.evaluate.bench import Notify, Plan, part_inputs
from vtn_export.evaluate.context import machine_context
from vtn_export.evaluate.timing import measure_pair, ratio_interval

SCHEMA = "vtn-export/bench-vs"
SCHEMA_VERSION = 1


def versus(
    a: tuple[Bundle, Backend],
    b: tuple[Bundle, Backend],
    plan: Plan,
    *,
    threads: int | None = None,
    checkpoint: Path | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Every case of the plan's parts on both sides, A B B A …; `ratio` is the time of b over that of a.

    Above 1, a is the faster. Its 95 % interval resamples the interleaved pairs. Raises UsageError where the
    sides have no part of the plan in common or it asks for no time.
    """
    if plan.duration <= 0:
        raise UsageError(f"--duration: got {plan.duration:g} s, expected more than 0")
    parts = [part for part in plan.parts if all(part in bundle.manifest.graphs for bundle, _ in (a, b))]
    if not parts:
        have = [", ".join(bundle.manifest.graphs) for bundle, _ in (a, b)]
        raise UsageError(f"--vs: got bundles with {have[0]} and with {have[1]}, expected a part that both have")
    context = machine_context(threads)
    results = []
    with (
        Sessions(*a, checkpoint=checkpoint, threads=threads) as first,
        Sessions(*b, checkpoint=checkpoint, threads=threads) as second,
    ):
        for part in parts:
            cases = zip(part_inputs(a[0], part, plan), part_inputs(b[0], part, plan), strict=True)
            for (shape, inputs, _), (_, other, _) in cases:
                notify(f"{part} {', '.join(f'{name} {value}' for name, value in shape.items())}")
                sides = (partial(first[part].run, inputs), partial(second[part].run, other))
                times = measure_pair(*sides, plan.duration, plan.min_runs)
                ratio, low, high = ratio_interval(times[1].seconds, times[0].seconds)
                results.append(
                    {
                        "case": {"part": part, **shape},
                        "a": times[0].to_json(),
                        "b": times[1].to_json(),
                        "ratio": {"median": ratio, "ci95": [low, high]},
                    }
                )
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "a": _side(*a),
        "b": _side(*b),
        "protocol": {
            "order": "A B B A, both warmed up before",
            "min_runs": plan.min_runs,
            "duration_seconds": plan.duration,
        },
        "context": context,
        "results": results,
    }


def _side(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "precision": manifest.precision,
        "files": dict(manifest.files),
        "backend": backend,
    }
