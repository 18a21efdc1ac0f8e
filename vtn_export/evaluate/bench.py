"""Latency of a bundle's parts and modes, by a stated protocol, with what it was measured on.

Protocol (`timing`): warm up until two windows of five runs agree within 5 %, then at least 20 runs and
the duration. Parts run on the golden frames and seeded features; modes run on a real video. Beside each part
stand its FLOPs and bytes, and its share of the roofline under this machine's measured ceilings (`roofline`).

A mode is split twice: what the call waited for, which adds up to its time (decoding runs ahead in a thread of
its own, so `decode` there is waiting for frames), and what each stage takes alone (decode, preprocess, transfer,
backbone, temporal). The document's fields are checked by `bench_schema`.
"""

from __future__ import annotations

import dataclasses
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
from vtn_export.evaluate.bench_schema import SCHEMA, SCHEMA_VERSION
from vtn_export.evaluate.context import machine_context
from vtn_export.evaluate.footprint import Device, device_of, forget_peak, held, peak
from vtn_export.evaluate.roofline import measure_ceilings, share
from vtn_export.evaluate.timing import MIN_RUNS, Timing, measure
from vtn_export.onnx.cost import graph_cost
from vtn_export.runtime.golden import graph_frames
from vtn_export.runtime.inference import classify_chunked, classify_full, require_memory_for_full
from vtn_export.runtime.session import Session
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, Array, Part
from vtn_export.trt.profile import choose
from vtn_export.video import ClipReader, Preprocessor, decode

CHUNK = 16  # frames a call of the backbone in the modes
PARTS_OF: dict[str, tuple[Part, ...]] = {"full": ("full",), "chunked": ("backbone", "temporal")}
_STAGE_PASSES = 3
_CEILING_SECONDS = 0.5

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
    device = device_of(backend)
    results: list[dict[str, Any]] = []
    with _Measured(bundle, backend, device, checkpoint, threads) as measured:
        measured.require_covered(plan)
        notify("this machine's ceilings")
        ceilings = measure_ceilings(threads, min(_CEILING_SECONDS, plan.duration))
        for part in plan.parts:
            for shape, inputs, count in part_inputs(bundle, part, plan):
                notify(f"{part} {_words(shape)}")
                result = measured.part(part, shape, inputs, count, plan)
                cost = graph_cost(bundle.graph_path(part), bundle.graph(part).spec, shape)
                result["work"] = share(cost, result["p50_seconds"], ceilings)
                results.append(result)
        for mode in plan.modes:
            for frames in sorted(plan.frames):
                notify(f"mode {mode}, {frames} frames")
                results.append(measured.mode(mode, frames, video, plan))
        engines = measured.engines()
        load_seconds = measured.load_seconds
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
        "engines": engines,
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
        "peak_host_bytes": max((r["peak_host_bytes"] for r in results if "peak_host_bytes" in r), default=None),
        "peak_device_bytes": None if device is None else device.most - device.before,
        "results": results,
    }


class _Measured:
    """The sessions of one bundle, what loading them took, and the measurements on them."""

    def __init__(
        self, bundle: Bundle, backend: Backend, device: Device | None, checkpoint: Path | None, threads: int | None
    ) -> None:
        self.bundle, self.device = bundle, device
        self.load_seconds: dict[str, float] = {}
        self._sessions = Sessions(bundle, backend, checkpoint=checkpoint, threads=threads)
        self._loaded: dict[Part, Session] = {}
        self._held: dict[Part, int] = {}  # bytes of the process when the part was loaded and had not run

    def session(self, part: Part) -> Session:
        if part not in self._loaded:
            start = time.perf_counter()
            self._loaded[part] = self._sessions[part]
            self.load_seconds[part] = time.perf_counter() - start
            self._held[part] = held()
        return self._loaded[part]

    def require_covered(self, plan: Plan) -> None:
        """Raises ShapeError for a case that an engine's profiles do not take: before anything is measured."""
        one = dataclasses.replace(plan, batches=(1,), chunks=_chunks_of(plan.frames))
        wanted = [(part, plan) for part in plan.parts] + [(part, one) for mode in plan.modes for part in PARTS_OF[mode]]
        for part, cases in wanted:
            record = getattr(self.session(part), "record", None)
            if record is not None:
                for _, inputs, _ in part_inputs(self.bundle, part, cases):
                    choose(record.spec, record.profiles, inputs)

    def part(
        self, part: Part, shape: dict[str, int], inputs: dict[str, Array], count: int, plan: Plan
    ) -> dict[str, Any]:
        session = self.session(part)
        held()
        forget_peak()
        timing = measure(partial(session.run, inputs), plan.duration, plan.min_runs)
        most = peak()
        videos = shape.get("batch", 0) if part != "backbone" else 0
        result = _result({"part": part, **shape}, timing, frames=count, videos=videos)
        result["peak_host_bytes"] = most
        result["added_host_bytes"] = max(0, most - self._held[part])
        result["transfer_seconds"] = None if self.device is None else self._transfer(part, inputs)
        return result

    def mode(self, mode: str, frames: int, video: Path, plan: Plan) -> dict[str, Any]:
        stages: dict[str, list[float]] = {}
        parts = PARTS_OF[mode]

        def call() -> None:
            with ClipReader(video, self.bundle.manifest.preprocessing, frames, chunk=CHUNK) as reader:
                if mode == "full":
                    outcome = classify_full(self.session("full"), reader)
                else:
                    outcome = classify_chunked(self.session("backbone"), self.session("temporal"), reader)
            for stage, seconds in outcome.seconds.items():
                stages.setdefault(stage, []).append(seconds)

        if mode == "full":
            require_memory_for_full(self.bundle, frames)
        for part in parts:
            self.session(part)
        held()
        forget_peak()
        timing = measure(call, plan.duration, max(plan.min_runs // 4, 5))
        most, counted = peak(), len(timing.seconds)
        split = {stage: float(np.median(values[-counted:])) for stage, values in stages.items()}
        result = _result({"mode": mode, "frames": frames}, timing, frames=frames, videos=1)
        transfer = None
        if self.device is not None:
            one = dataclasses.replace(plan, frames=(frames,), chunks=(min(CHUNK, frames),), batches=(1,))
            calls = {part: next(part_inputs(self.bundle, part, one))[1] for part in parts}
            runs = {part: -(-frames // CHUNK) if part == "backbone" else 1 for part in parts}
            transfer = sum(runs[part] * self._transfer(part, inputs) for part, inputs in calls.items())
        result["split_seconds"] = split
        result["stage_seconds"] = {
            **stages_alone(video, self.bundle, frames),
            "transfer": transfer,
            **{part: split[part] for part in parts},
        }
        result["peak_host_bytes"] = most
        return result

    def _transfer(self, part: Part, inputs: dict[str, Array]) -> float:
        assert self.device is not None
        self.device.used()
        return self.device.transfer_seconds(inputs, self.session(part).run(inputs))

    def engines(self) -> dict[str, dict[str, str]]:
        """Name and SHA-256 of the engine of every part that ran as one."""
        records = {part: getattr(session, "record", None) for part, session in self._loaded.items()}
        return {p: {"name": r.name, "sha256": r.engine_sha256} for p, r in records.items() if r is not None}

    def __enter__(self) -> _Measured:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.clear()
        self._sessions.close()


def stages_alone(video: Path, bundle: Bundle, frames: int) -> dict[str, float]:
    """Seconds of decoding and of preprocessing a video's frames, one thread, nothing beside it; median of three."""
    preprocessing = bundle.manifest.preprocessing
    preprocess = Preprocessor(preprocessing)
    with ClipReader(video, preprocessing, frames) as reader:
        wanted = reader.frame_index
    passes: list[tuple[float, float]] = []
    for _ in range(_STAGE_PASSES):
        start = time.perf_counter()
        spent, last = 0.0, None
        for _number, image in decode(video, wanted):
            if image is not last:  # a frame that is repeated is the same array again
                before = time.perf_counter()
                preprocess(image)
                spent += time.perf_counter() - before
            last = image
        passes.append((time.perf_counter() - start - spent, spent))
    decoded, preprocessed = (float(np.median(column)) for column in zip(*passes, strict=True))
    return {"decode": decoded, "preprocess": preprocessed}


def part_inputs(bundle: Bundle, part: Part, plan: Plan) -> Iterator[tuple[dict[str, int], dict[str, Array], int]]:
    """(shape, inputs, frames in the call) of every case of a part, smallest first.

    In that order, a runtime that keeps what it once took shows in every case what this case takes.
    """
    manifest = bundle.manifest
    sizes = sorted(((batch, frames) for batch in plan.batches for frames in plan.frames), key=lambda s: s[0] * s[1])
    if part == "temporal":
        width = bundle.graph(part).spec.inputs[0].shape[-1]
        generator = np.random.default_rng(0)
        for batch, frames in sizes:
            features = generator.standard_normal((batch, frames, int(width)), dtype=np.float32)
            inputs = {FEATURES: features, **_positions(batch, frames)}
            yield {"batch": batch, "frames": frames}, inputs, batch * frames
        return
    with np.load(bundle.file(GOLDEN), allow_pickle=False) as golden:
        stored = golden["frames"]

    def repeated(count: int) -> Array:
        frames: Array = np.resize(stored, (count, *stored.shape[1:]))
        return graph_frames(frames, manifest.preprocessing, manifest.input_type)

    if part == "backbone":
        for chunk in sorted(plan.chunks):
            yield {"chunk": chunk}, {FRAMES: repeated(chunk)}, chunk
        return
    for batch, frames in sizes:
        require_memory_for_full(bundle, batch * frames)
        pixels = repeated(batch * frames)
        inputs = {FRAMES: pixels.reshape(batch, frames, *pixels.shape[1:]), **_positions(batch, frames)}
        yield {"batch": batch, "frames": frames}, inputs, batch * frames


def _chunks_of(counts: Sequence[int]) -> tuple[int, ...]:
    """The sizes that videos of these frame counts are cut into."""
    sizes = {size for frames in counts for size in (min(frames, CHUNK), frames % CHUNK) if size}
    return tuple(sorted(sizes))


def _positions(batch: int, frames: int) -> dict[str, Array]:
    index = np.broadcast_to(np.arange(frames, dtype=np.int32), (batch, frames)).copy()
    return {FRAME_INDEX: index, LENGTHS: np.full(batch, frames, dtype=np.int32)}


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


def _result(case: dict[str, Any], timing: Timing, *, frames: int, videos: int) -> dict[str, Any]:
    result = {"case": case, **timing.to_json(), "frames_per_second": frames / timing.median}
    if videos:
        result["videos_per_second"] = videos / timing.median
    return result


def _words(shape: dict[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in shape.items())
