"""A sample video for the report: thumbnails, and the probabilities of its likeliest classes as it goes on."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.backends import Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.errors import UsageError
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import classify_features
from vtn_export.spec import FEATURES, FRAMES, Array
from vtn_export.video import ClipReader
from vtn_export.video.preprocess import Preprocessor

THUMBNAILS, POINTS, TOP = 8, 16, 5
_SIDE = 96  # pixels of a thumbnail


@dataclass(frozen=True)
class Strip:
    """seconds `[points]`: how much of the video was seen; probabilities `[TOP, points]` of `labels`, likeliest first.

    thumbnails: (second, JPEG as a data URI) of the frames as the model sees them.
    """

    video: str
    frames: int
    labels: list[str]
    seconds: list[float]
    probabilities: list[list[float]]
    thumbnails: list[tuple[float, str]]
    random_weights: bool


def sample_strip(
    bundle: Bundle, backend: Backend, video: Path, frames: int, *, threads: int | None, checkpoint: Path | None
) -> Strip:
    """Features of `frames` frames once; then the temporal part on the first n of them, n rising to all.

    Raises UsageError for a bundle without backbone or temporal part, VideoError.
    """
    have = bundle.manifest.graphs
    if "backbone" not in have or "temporal" not in have:
        raise UsageError("the strip needs the backbone and the temporal graph; export with --part all")
    labels = bundle.labels()
    with (
        Sessions(bundle, backend, threads=threads, checkpoint=checkpoint) as sessions,
        ClipReader(video, bundle.manifest.preprocessing, frames) as reader,
    ):
        normalise = Preprocessor(reader.preprocessing).normalise
        as_float = sessions["backbone"].spec.inputs[0].dtype == "float32"
        features: list[Array] = []
        indices: list[Array] = []
        kept: list[Array] = []
        wanted = set(np.linspace(0, frames - 1, min(THUMBNAILS, frames)).round().astype(int).tolist())
        for pixels, index in reader:
            start = sum(len(part) for part in indices)
            kept += [pixels[i].copy() for i in range(len(index)) if start + i in wanted]
            given = normalise(pixels) if as_float else pixels
            features.append(sessions["backbone"].run({FRAMES: given})[FEATURES])
            indices.append(index)
        every, numbers = np.concatenate(features), np.concatenate(indices)
        rate = reader.info.average_rate or 25.0
        counts = sorted(set(np.linspace(1, len(every), min(POINTS, len(every))).round().astype(int).tolist()))
        results = [
            classify_features(sessions["temporal"], Features(every[:n], numbers[:n], "", str(video))).probabilities()
            for n in counts
        ]
    chosen = likeliest(np.stack(results))
    shown = sorted(wanted)[: len(kept)]
    return Strip(
        video=video.name,
        frames=len(every),
        labels=[labels[i] for i in chosen],
        seconds=[float(numbers[n - 1] + 1) / rate for n in counts],
        probabilities=[[float(p[i]) for p in results] for i in chosen],
        thumbnails=[(float(numbers[at]) / rate, jpeg(picture)) for at, picture in zip(shown, kept, strict=True)],
        random_weights=bundle.manifest.random_weights,
    )


def likeliest(probabilities: Array) -> list[int]:
    """Of `[points, classes]` the TOP classes: the likeliest at the end, then those that were likeliest at some time."""
    end = probabilities[-1]
    peak = probabilities.max(axis=0)
    peak[int(np.argmax(end))] = np.inf
    chosen = np.lexsort((-end, -peak))[:TOP]
    return sorted(map(int, chosen), key=lambda at: (-end[at], at))


def jpeg(pixels: Array, side: int = _SIDE) -> str:
    """uint8 `[H, W, 3]` as a small JPEG, a data URI."""
    av: Any = require("av")
    codec = av.CodecContext.create("mjpeg", "w")
    codec.width = codec.height = side
    codec.pix_fmt, codec.time_base = "yuvj420p", Fraction(1, 25)
    codec.options = {"qscale": "4"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    small = frame.reformat(width=side, height=side, format="yuvj420p")
    data = b"".join(bytes(packet) for packet in [*codec.encode(small), *codec.encode(None)])
    return "data:image/jpeg;base64," + base64.b64encode(data).decode("ascii")
