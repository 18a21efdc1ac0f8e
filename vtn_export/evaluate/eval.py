"""`vtn-export eval`: how often a bundle is right on labelled videos. The JSON of it is in docs/cli.md."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.errors import VideoError
from vtn_export.evaluate.labelled import LabelledSet
from vtn_export.evaluate.metrics import rank_of
from vtn_export.runtime.inference import (
    Classification,
    classify_chunked,
    classify_full,
    require_memory_for_full,
)
from vtn_export.runtime.session import Session
from vtn_export.spec import Array, Part
from vtn_export.video import ClipReader, count_frames

SCHEMA, SCHEMA_VERSION = "vtn-export/eval", 1

Progress = Callable[[int], None]  # called with the videos done since the last call


class Parts(Protocol):
    """Sessions by part: a bundle's, or those of graphs that are in no bundle yet."""

    def __getitem__(self, part: Part, /) -> Session: ...


@dataclass(frozen=True)
class Prediction:
    """One video: float32 logits `[classes]`; rank 0 is right, `classes` is a result that is no number."""

    video: Path
    label: int
    frames: int
    logits: Array
    rank: int

    @property
    def predicted(self) -> int | None:
        return int(np.argmax(self.logits)) if np.isfinite(self.logits).all() else None


@dataclass(frozen=True)
class Evaluation:
    """What a labelled set came to. unreadable: videos that could not be decoded, which count nowhere."""

    labels: Sequence[str]
    missing: Sequence[str]
    predictions: Sequence[Prediction]
    unreadable: Sequence[Mapping[str, str]] = field(default_factory=tuple)

    def top(self, k: int) -> float:
        """Share of the videos whose label is among the k likeliest; NaN without videos."""
        ranks = [prediction.rank for prediction in self.predictions]
        return float(np.mean([rank < k for rank in ranks])) if ranks else math.nan

    def confusion(self) -> Array:
        """int64 `[classes, classes]`: videos by label (rows) and prediction (columns)."""
        counts = np.zeros((len(self.labels), len(self.labels)), np.int64)
        for one in self.predictions:
            if one.predicted is not None:
                counts[one.label, one.predicted] += 1
        return counts

    def classes(self) -> list[dict[str, Any]]:
        """Per class: support (its videos), predicted (how often it was named), recall, precision, f1."""
        counts = self.confusion()
        support = np.bincount([one.label for one in self.predictions], minlength=len(self.labels))
        rows = []
        for index, label in enumerate(self.labels):
            right, named = int(counts[index, index]), int(counts[:, index].sum())
            recall = right / int(support[index]) if support[index] else None
            precision = right / named if named else None
            f1 = 2 * right / (int(support[index]) + named) if support[index] else None
            rows.append(
                {
                    "label": label,
                    "support": int(support[index]),
                    "predicted": named,
                    "recall": recall,
                    "precision": precision,
                    "f1": f1,
                }
            )
        return rows

    def to_json(self) -> dict[str, Any]:
        """The part of the document that does not depend on how it was run."""
        videos = len(self.predictions)
        return {
            "labels": list(self.labels),
            "videos": videos,
            "top1": self.top(1) if videos else None,
            "top1_interval": list(wilson(self.top(1), videos)) if videos else None,
            "top5": self.top(5) if videos else None,
            "confusion": self.confusion().tolist(),
            "classes": self.classes(),
            "classes_missing": list(self.missing),
            "not_finite": [str(one.video) for one in self.predictions if one.predicted is None],
            "unreadable": [dict(entry) for entry in self.unreadable],
            "predictions": [
                {
                    "video": str(one.video),
                    "frames": one.frames,
                    "label": one.label,
                    "predicted": one.predicted,
                    "rank": one.rank,
                    "probability": _probability(one),
                }
                for one in self.predictions
            ],
        }


def evaluate(
    bundle: Bundle,
    sessions: Parts,
    dataset: LabelledSet,
    *,
    frames: int | None,
    chunk: int = 16,
    progress: Progress = lambda _videos: None,
) -> Evaluation:
    """Classify every video as `vtn-export run` does. frames: sampled from each, None for all.

    A video that cannot be decoded is listed and left out. Raises what a session raises, and MemoryForecastError
    where the bundle has the full graph alone.
    """
    predictions: list[Prediction] = []
    unreadable: list[dict[str, str]] = []
    for one in dataset.videos:
        try:
            found = classify(bundle, sessions, one.path, frames, chunk)
        except VideoError as error:
            unreadable.append({"video": str(one.path), "why": " ".join(str(error).split())})
        else:
            rank = int(rank_of(found.logits[None], np.array([one.label]))[0])
            predictions.append(Prediction(one.path, one.label, len(found.frame_index), found.logits, rank))
        progress(1)
    return Evaluation(dataset.labels, dataset.missing, predictions, unreadable)


def classify(bundle: Bundle, sessions: Parts, video: Path, frames: int | None, chunk: int) -> Classification:
    """One video in mode chunked, or full where the bundle has nothing else."""
    with ClipReader(video, bundle.manifest.preprocessing, frames, chunk=chunk) as reader:
        if "backbone" in bundle.manifest.graphs and "temporal" in bundle.manifest.graphs:
            return classify_chunked(sessions["backbone"], sessions["temporal"], reader)
        require_memory_for_full(bundle, reader.num_frames or count_frames(video))
        return classify_full(sessions["full"], reader)


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % score interval of a share that was seen in `count` trials (Wilson, 1927)."""
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def _probability(one: Prediction) -> float | None:
    """Of the class that was predicted."""
    if one.predicted is None:
        return None
    return float(Classification(one.logits, one.logits).probabilities()[one.predicted])
