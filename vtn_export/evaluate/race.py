"""`--backend auto`: a short measured race of the backends that are here. Only run when it is asked for.

An engine that fits this machine's GPU wins without a race. On the CPU every installed backend runs the
bundle's own graphs, turn by turn, and the one with the least time a video wins.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from vtn_export.backends import Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.errors import BundleError, VtnError
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, Array, GraphSpec, Part

CPU_BACKENDS: tuple[Backend, ...] = ("ort", "openvino")
_ROUNDS, _BUDGET = 5, 3.0  # of every backend and part: at most five runs, at most three seconds
_CHUNK = 4


@dataclass(frozen=True)
class Choice:
    """The winner; seconds a video by backend (empty where nothing was raced); why, in words."""

    backend: Backend
    seconds: dict[Backend, float] = field(default_factory=dict)
    why: str = ""

    def describe(self) -> str:
        if not self.seconds:
            return f"--backend auto: {self.backend} ({self.why})"
        times = ", ".join(f"{name} {value:.3g} s" for name, value in self.seconds.items())
        return f"--backend auto: {self.backend} ({self.why}: {times})"


def choose(bundle: Bundle, parts: Sequence[Part] | None = None, *, threads: int | None = None) -> Choice:
    """The backend to run `parts` with (default: backbone and temporal, or what the bundle has).

    Raises BundleError for a part that the bundle has not.
    """
    wanted = tuple(parts) if parts is not None else _default_parts(bundle)
    for part in wanted:
        bundle.graph(part)
    if _engines_fit(bundle, wanted):
        return Choice("trt", why="engines for this GPU are there")
    if bundle.manifest.precision == "int8":
        return Choice("ort", why="the only CPU backend whose int8 numbers are the engine's")
    runners = [name for name in CPU_BACKENDS if name == "ort" or is_installed(name)]
    if len(runners) == 1:
        return Choice(runners[0], why="the only CPU backend installed; another comes with the extra openvino")
    frames = bundle.manifest.preprocessing.num_frames
    totals = dict.fromkeys(runners, 0.0)
    for part in wanted:
        spec = bundle.graph(part).spec
        chunk = _CHUNK if part != "temporal" else frames
        inputs = example(spec, part, chunk)
        for name, median_run in _race(bundle, part, inputs, runners, threads).items():
            totals[name] += median_run * (frames / chunk)
    seconds = dict(sorted(totals.items(), key=lambda item: item[1]))
    return Choice(next(iter(seconds)), seconds, f"measured, {' + '.join(wanted)}, a video of {frames} frames")


def example(spec: GraphSpec, part: Part, frames: int, batch: int = 1) -> dict[str, Array]:
    """Seeded inputs of a part: `frames` frames (backbone: the chunk), all valid, indices 0, 1, …"""
    generator = np.random.default_rng(0)
    sizes = {"chunk": frames, "frames": frames, "batch": batch}
    inputs: dict[str, Array] = {}
    for tensor in spec.inputs:
        shape = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)
        if tensor.name == FRAME_INDEX:
            inputs[tensor.name] = np.broadcast_to(np.arange(frames, dtype=np.int32), shape).copy()
        elif tensor.name == LENGTHS:
            inputs[tensor.name] = np.full(shape, frames, np.int32)
        elif tensor.dtype == "uint8":
            inputs[tensor.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            assert tensor.name in (FEATURES, FRAMES)
            inputs[tensor.name] = generator.standard_normal(shape).astype(np.float32)
    return inputs


def _default_parts(bundle: Bundle) -> tuple[Part, ...]:
    have = bundle.manifest.graphs
    halves: tuple[Part, ...] = ("backbone", "temporal")
    return halves if set(halves) <= set(have) else tuple(have)


def _engines_fit(bundle: Bundle, parts: Sequence[Part]) -> bool:
    from vtn_export.trt.gpu import require_gpu
    from vtn_export.trt.session import find_engine

    try:
        gpu = require_gpu()
        for part in parts:
            find_engine(bundle, part, gpu)
    except BundleError:
        raise
    except VtnError:
        return False  # no GPU, no driver's package, or no engine that fits: the CPU it is
    return True


def _race(
    bundle: Bundle, part: Part, inputs: dict[str, Array], runners: Sequence[Backend], threads: int | None
) -> dict[Backend, float]:
    """Median seconds of a run by backend; turn by turn, after a first run that is not counted."""
    opened = {name: Sessions(bundle, name, threads=threads) for name in runners}
    try:
        for sessions in opened.values():
            sessions[part].run(inputs)
        seconds: dict[Backend, list[float]] = {name: [] for name in runners}
        begin = time.perf_counter()
        for _ in range(_ROUNDS):
            for name, sessions in opened.items():
                time.sleep(0.005)  # the other runtime's threads stop spinning
                start = time.perf_counter()
                sessions[part].run(inputs)
                seconds[name].append(time.perf_counter() - start)
            if time.perf_counter() - begin > _BUDGET * len(runners):
                break
        return {name: median(times) for name, times in seconds.items()}
    finally:
        for sessions in opened.values():
            sessions.close()
