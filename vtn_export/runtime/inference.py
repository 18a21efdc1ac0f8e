"""The three ways to infer: end to end, chunked, precomputed features. They give the same logits.

- full: all frames in one call of one graph; memory grows with the frames' pixels and activations;
- chunked: frames pass the backbone chunk by chunk, the features go through the temporal graph at once;
- features: only the temporal graph runs, on features stored earlier.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.errors import MemoryForecastError, VideoError
from vtn_export.runtime.features import Features
from vtn_export.runtime.session import Session
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array
from vtn_export.video import ClipReader, Preprocessor

# ONNX Runtime's arena grows by doubling and keeps its holes: runs took 1.8 to 2.3 times the bytes that
# were alive at once (three backbones, 64 to 400 frames).
_ARENA_OVERHEAD = 2.5

Progress = Callable[[int], None]  # called with the frames done since the last call


@dataclass(frozen=True)
class Classification:
    """logits float32 `[classes]` of one video; seconds by stage (decoding waits, backbone, temporal, full)."""

    logits: Array
    frame_index: Array
    seconds: dict[str, float] = field(default_factory=dict)

    def probabilities(self) -> Array:
        """float64 `[classes]`, softmax of the logits."""
        shifted = self.logits.astype(np.float64) - float(self.logits.max())
        weights = np.exp(shifted)
        result: Array = weights / weights.sum()
        return result

    def top(self, count: int, labels: list[str]) -> list[tuple[str, float]]:
        """The `count` likeliest labels with their probabilities, likeliest first."""
        probabilities = self.probabilities()
        order = np.argsort(-probabilities, kind="stable")[:count]
        return [(labels[index], float(probabilities[index])) for index in order]


def extract_features(
    backbone: Session, reader: ClipReader, progress: Progress = lambda _: None
) -> tuple[Features, dict[str, float]]:
    """All frames of `reader` through the backbone, a chunk at a time; decoding runs ahead in its own thread.

    Returns the features (without a fingerprint: the caller knows the bundle) and seconds by stage.
    """
    to_graph = _to_graph(backbone, reader)
    parts: list[Array] = []
    indices: list[Array] = []
    seconds = {"decode": 0.0, "backbone": 0.0}
    mark = time.perf_counter()
    for frames, frame_index in reader:
        seconds["decode"] += (now := time.perf_counter()) - mark
        parts.append(backbone.run({FRAMES: to_graph(frames)})[FEATURES])
        indices.append(frame_index)
        seconds["backbone"] += (mark := time.perf_counter()) - now
        progress(len(frames))
    if not parts:
        raise VideoError(f"video {reader.path}: no frames")
    return Features(np.concatenate(parts), np.concatenate(indices), "", str(reader.path)), seconds


def classify_features(temporal: Session, features: Features) -> Classification:
    """Mode `features`: stored or collected features → logits."""
    start = time.perf_counter()
    inputs = {
        FEATURES: features.features[None],
        FRAME_INDEX: features.frame_index[None],
        LENGTHS: np.array([len(features.features)], dtype=np.int32),
    }
    logits = temporal.run(inputs)[LOGITS][0]
    return Classification(logits, features.frame_index, {"temporal": time.perf_counter() - start})


def classify_chunked(
    backbone: Session, temporal: Session, reader: ClipReader, progress: Progress = lambda _: None
) -> Classification:
    """Mode `chunked`."""
    features, seconds = extract_features(backbone, reader, progress)
    result = classify_features(temporal, features)
    return Classification(result.logits, result.frame_index, {**seconds, **result.seconds})


def classify_full(full: Session, reader: ClipReader, progress: Progress = lambda _: None) -> Classification:
    """Mode `full`: every frame in one call."""
    to_graph = _to_graph(full, reader)
    parts: list[Array] = []
    indices: list[Array] = []
    start = time.perf_counter()
    for frames, frame_index in reader:
        parts.append(frames)
        indices.append(frame_index)
        progress(len(frames))
    if not parts:
        raise VideoError(f"video {reader.path}: no frames")
    decoded = time.perf_counter()
    frame_index = np.concatenate(indices)
    inputs = {
        FRAMES: to_graph(np.concatenate(parts))[None],
        FRAME_INDEX: frame_index[None],
        LENGTHS: np.array([len(frame_index)], dtype=np.int32),
    }
    logits = full.run(inputs)[LOGITS][0]
    return Classification(logits, frame_index, {"decode": decoded - start, "full": time.perf_counter() - decoded})


def require_memory_for_full(bundle: Bundle, num_frames: int, available: int | None = None) -> int:
    """Forecast of `full` for one video of `num_frames`, in bytes. Raises MemoryForecastError beyond what is free."""
    entry = bundle.graph("full")
    pixels = entry.spec.inputs[0]
    frame_bytes = int(np.prod([axis for axis in pixels.shape[2:] if isinstance(axis, int)]))
    frame_bytes *= np.dtype(pixels.dtype).itemsize
    weights = sum((bundle.path / name).stat().st_size for name in bundle.manifest.files if name.startswith(entry.file))
    alive = entry.fixed_bytes + num_frames * (entry.bytes_per_frame + 2 * frame_bytes)
    forecast = weights + int(_ARENA_OVERHEAD * alive)
    available = available_memory() if available is None else available
    if available is not None and forecast > available:
        raise MemoryForecastError(
            f"--mode full with {num_frames} frames needs about {forecast / 1e9:.1f} GB, {available / 1e9:.1f} GB are "
            f"free; use --mode chunked, which needs memory for one chunk at a time"
        )
    return forecast


def available_memory() -> int | None:
    """Bytes that this process can still take: the system's or its control group's, whichever is less."""
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except OSError:
        return None
    try:
        group = Path("/sys/fs/cgroup")
        maximum = (group / "memory.max").read_text().strip()
        if maximum != "max":
            limits.append(int(maximum) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # not in a control group of version 2: the system's figure stands
    return min(limits) if limits else None


def _to_graph(session: Session, reader: ClipReader) -> Callable[[Array], Array]:
    """What turns uint8 `[N, H, W, 3]` into the graph's frames."""
    if session.spec.inputs[0].dtype == "uint8":
        return lambda frames: frames
    return Preprocessor(reader.preprocessing).normalise
