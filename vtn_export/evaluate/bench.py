"""Latency of a bundle's parts and modes, by a stated protocol, with what it was measured on.

Protocol (`timing`): warm up until two windows of five runs agree within 5 %, then at least 20 runs and
the duration. Parts run on the golden frames and seeded features; modes run on a real video and are
split into decoding (time spent waiting for frames), backbone and temporal part. Beside each part stand its
FLOPs and bytes, and its share of the roofline under this machine's measured ceilings (`roofline`).
"""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.backends import Backend, Sessions
from vtn_export.bundle import GOLDEN, Bundle
from vtn_export.errors import UsageError
from vtn_export.evaluate.context import machine_context
from vtn_export.evaluate.roofline import measure_ceilings, share
from vtn_export.evaluate.timing import MIN_RUNS, Timing, measure
from vtn_export.onnx.cost import graph_cost
from vtn_export.runtime.golden import graph_frames
from vtn_export.runtime.inference import classify_chunked, classify_full, require_memory_for_full
from vtn_export.runtime.session import Session
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, Array, Part
from vtn_export.video import ClipReader

SCHEMA = "vtn-export/bench"
SCHEMA_VERSION = 1

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What to measure: parts with their shapes, modes with their frame counts."""

    parts: Sequence[Part]
    modes: Sequence[str]
    frames: Sequence[int]
    chunks: Sequence[int]
    batches: Sequence[int]
    streams: int
    duration: float
    min_runs: int = MIN_RUNS


def bench(
    bundle: Bundle,
    plan: Plan,
    backend: Backend,
    *,
    video: Path,
    threads: int | None = None,
    checkpoint: Path | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """Measure everything in the plan. Returns the result document (schema `vtn-export/bench`, version 1)."""
    if plan.duration <= 0:
        raise UsageError(f"--duration: got {plan.duration:g} s, expected more than 0")
    context = machine_context(threads)  # before the measurement: its own load must not be in it
    notify("this machine's ceilings")
    ceilings = measure_ceilings(threads)
    results: list[dict[str, Any]] = []
    load_seconds: dict[str, float] = {}
    with Sessions(bundle, backend, checkpoint=checkpoint, threads=threads) as sessions:

        def opened(part: Part) -> Session:
            start = time.perf_counter()
            session = sessions[part]
            load_seconds.setdefault(part, time.perf_counter() - start)
            return session

        for part in plan.parts:
            session = opened(part)
            for shape, inputs, count in part_inputs(bundle, part, plan):
                notify(f"{part} {_words(shape)}")
                timing = measure(partial(session.run, inputs), plan.duration, plan.min_runs)
                result = _result({"part": part, **shape}, timing, frames=count, videos=_videos(part, shape))
                cost = graph_cost(bundle.graph_path(part), bundle.graph(part).spec, shape)
                result["work"] = share(cost, timing.median, ceilings)
                results.append(result)
        for mode in plan.modes:
            for frames in plan.frames:
                notify(f"mode {mode}, {frames} frames")
                results.append(_mode(bundle, opened, mode, frames, video, plan))
    if plan.streams > 1:
        for part in plan.parts:
            notify(f"{plan.streams} streams, {part}")
            results.append(_streams(bundle, backend, part, plan, checkpoint))
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "bundle": {
            "path": str(bundle.path),
            "name": bundle.manifest.name,
            "precision": bundle.manifest.precision,
            "files": dict(bundle.manifest.files),
        },
        "backend": backend,
        "protocol": {
            "warmup": "until the medians of two windows of 5 runs agree within 5 %",
            "min_runs": plan.min_runs,
            "duration_seconds": plan.duration,
            "streams": plan.streams,
        },
        "context": context,
        "ceilings": ceilings.to_json(),
        "load_seconds": load_seconds,
        "peak_host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "results": results,
    }


def part_inputs(bundle: Bundle, part: Part, plan: Plan) -> Iterator[tuple[dict[str, int], dict[str, Array], int]]:
    """(shape, inputs, frames in the call) of every case of a part."""
    manifest = bundle.manifest
    if part == "temporal":
        width = bundle.graph(part).spec.inputs[0].shape[-1]
        generator = np.random.default_rng(0)
        for batch in plan.batches:
            for frames in plan.frames:
                features = generator.standard_normal((batch, frames, int(width)), dtype=np.float32)
                yield (
                    {"batch": batch, "frames": frames},
                    {FEATURES: features, **_positions(batch, frames)},
                    batch * frames,
                )
        return
    with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
        stored = golden["frames"]

    def repeated(count: int) -> Array:
        frames: Array = np.resize(stored, (count, *stored.shape[1:]))
        return graph_frames(frames, manifest.preprocessing, manifest.input_type)

    if part == "backbone":
        for chunk in plan.chunks:
            yield {"chunk": chunk}, {FRAMES: repeated(chunk)}, chunk
        return
    for batch in plan.batches:
        for frames in plan.frames:
            require_memory_for_full(bundle, batch * frames)
            pixels = repeated(batch * frames)
            inputs = {FRAMES: pixels.reshape(batch, frames, *pixels.shape[1:]), **_positions(batch, frames)}
            yield {"batch": batch, "frames": frames}, inputs, batch * frames


def _positions(batch: int, frames: int) -> dict[str, Array]:
    index = np.broadcast_to(np.arange(frames, dtype=np.int32), (batch, frames)).copy()
    return {FRAME_INDEX: index, LENGTHS: np.full(batch, frames, dtype=np.int32)}


def _videos(part: Part, shape: dict[str, int]) -> int:
    return shape.get("batch", 0) if part != "backbone" else 0


def _mode(
    bundle: Bundle, opened: Callable[[Part], Session], mode: str, frames: int, video: Path, plan: Plan
) -> dict[str, Any]:
    stages: dict[str, list[float]] = {}

    def call() -> None:
        with ClipReader(video, bundle.manifest.preprocessing, frames) as reader:
            if mode == "full":
                outcome = classify_full(opened("full"), reader)
            else:
                outcome = classify_chunked(opened("backbone"), opened("temporal"), reader)
        for stage, seconds in outcome.seconds.items():
            stages.setdefault(stage, []).append(seconds)

    if mode == "full":
        require_memory_for_full(bundle, frames)
    timing = measure(call, plan.duration, max(plan.min_runs // 4, 5))
    counted = len(timing.seconds)
    split = {stage: float(np.median(values[-counted:])) for stage, values in stages.items()}
    return _result({"mode": mode, "frames": frames}, timing, frames=frames, videos=1, split=split)


def _streams(bundle: Bundle, backend: Backend, part: Part, plan: Plan, checkpoint: Path | None) -> dict[str, Any]:
    """`plan.streams` sessions of one thread each, side by side: what the whole machine gets through."""
    shape, inputs, count = next(part_inputs(bundle, part, plan))
    with _side_by_side(bundle, backend, part, plan.streams, checkpoint) as sessions:
        for session in sessions:
            session.run(inputs)
        done = [0] * plan.streams
        stop = time.perf_counter() + plan.duration

        def work(index: int) -> None:
            while time.perf_counter() < stop:
                sessions[index].run(inputs)
                done[index] += 1

        workers = [threading.Thread(target=work, args=(index,)) for index in range(plan.streams)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        elapsed = time.perf_counter() - start
    return {
        "case": {"part": part, "streams": plan.streams, **shape},
        "runs": sum(done),
        "seconds": elapsed,
        "frames_per_second": sum(done) * count / elapsed,
    }


@contextmanager
def _side_by_side(
    bundle: Bundle, backend: Backend, part: Part, count: int, checkpoint: Path | None
) -> Iterator[list[Session]]:
    """Several sessions of one part, of one thread each, closed together."""
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Sessions(bundle, backend, checkpoint=checkpoint, threads=1)) for _ in range(count)
        ]
        yield [sessions[part] for sessions in opened]


def _result(
    case: dict[str, Any], timing: Timing, *, frames: int, videos: int, split: dict[str, float] | None = None
) -> dict[str, Any]:
    result = {"case": case, **timing.to_json(), "frames_per_second": frames / timing.median}
    if videos:
        result["videos_per_second"] = videos / timing.median
    if split is not None:
        result["split_seconds"] = split
    return result


def _words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())
