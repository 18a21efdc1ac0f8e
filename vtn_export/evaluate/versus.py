"""`bench --vs`: two bundles, backends or forms in turn, in one run, so that what disturbs the machine meets both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from vtn_export.backends import BACKENDS, Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import UsageError
from vtn_export.evaluate.bench import Notify, Plan, part_inputs
from vtn_export.evaluate.context import machine_context
from vtn_export.evaluate.forms import REWRITE, TYPED, Form
from vtn_export.evaluate.timing import measure_pair, ratio_interval

SCHEMA = "vtn-export/bench-vs"
SCHEMA_VERSION = 1
SIDES = (*BACKENDS, REWRITE)  # what runs at its own speed


def versus(
    a: tuple[Bundle, str],
    b: tuple[Bundle, str],
    plan: Plan,
    *,
    threads: int | None = None,
    checkpoint: Path | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Every case of the plan's parts on both sides, A B B A …; `ratio` is the time of b over that of a.

    A side is a bundle and one of SIDES. Above 1, a is the faster. Its 95 % interval resamples the interleaved pairs.
    Raises UsageError where the sides have no part of the plan in common or it asks for no time.
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
        _sessions(*a, checkpoint, threads) as first,
        _sessions(*b, checkpoint, threads) as second,
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


def check_side(name: str) -> None:
    """Raises UsageError for what has no speed of its own, or is unknown."""
    if name in TYPED:
        raise UsageError(
            f"--vs {name}: here it is a float32 copy that rounds, whose time says nothing about {name}; "
            f"build engines (vtn-export trt --{name}) and give --vs trt on their GPU"
        )
    if name not in SIDES:
        raise UsageError(f"--vs: got {name!r}, expected a bundle's folder or one of {', '.join(SIDES)}")


def _sessions(bundle: Bundle, name: str, checkpoint: Path | None, threads: int | None) -> Sessions | Form:
    if name == REWRITE:
        return Form(bundle, name, checkpoint=checkpoint, threads=threads)
    return Sessions(bundle, cast(Backend, name), checkpoint=checkpoint, threads=threads)


def _side(bundle: Bundle, backend: str) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": manifest.name,
        "precision": manifest.precision,
        "files": dict(manifest.files),
        "backend": backend,
    }
