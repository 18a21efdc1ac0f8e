"""The accuracy gate: is a quantized graph still right often enough, and which layers cost most when it is not.

On labelled videos top-1 is compared with the float32 bundle's; without labels, the share of clips whose likeliest
class is float32's. Graphs run as their rounding copies in ONNX Runtime, Q/DQ unfused (runtime/session.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import DatasetError
from vtn_export.evaluate.eval import Evaluation, Parts, evaluate
from vtn_export.evaluate.labelled import LabelledSet
from vtn_export.quantize.calibrate import ClipRunner
from vtn_export.quantize.clips import Clip
from vtn_export.spec import Array

LABELLED, AGREEMENT = "top-1 on labelled clips", "top-1 agreement with fp32"
SENSITIVITY_CLIPS, SENSITIVITY_FRAMES = 8, 8

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Verdict:
    """How a candidate did. drop: points of top-1; logits errors against float32, over `clips`."""

    measure: str
    clips: int
    reference: float
    top1: float
    drop: float
    logits_max_abs: float
    logits_mean_abs: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def describe(self) -> str:
        return (
            f"{self.measure}: {self.top1:.1%} of {self.clips} clips (fp32: {self.reference:.1%}), "
            f"{self.drop:.2f} points lost; logits off by at most {self.logits_max_abs:.3g}"
        )


class Gate:
    """Holds what float32 gives once; `judge` compares a candidate's sessions with it."""

    def __init__(
        self, bundle: Bundle, clips: Sequence[Clip], references: Sequence[Array], labelled: LabelledSet | None
    ) -> None:
        """references: float32's logits of the clips. With labelled videos the clips are not looked at again."""
        self.bundle, self.clips, self.references, self.labelled = bundle, clips, references, labelled
        self.runner = ClipRunner(bundle)
        self._own: Evaluation | None = None

    @property
    def steps(self) -> int:
        """Clips of a pass."""
        return len(self.clips) if self.labelled is None else len(self.labelled.videos)

    def prepare(self, progress: Progress) -> None:
        """float32 on the labelled videos, if there are any. Raises DatasetError when none can be read."""
        if self.labelled is None:
            return
        with Sessions(self.bundle, "ort") as sessions:
            self._own = self._evaluate(sessions, progress)
        if not self._own.predictions:
            raise DatasetError(
                f"dataset {self.labelled.source}: none of {len(self.labelled.videos)} videos can be read "
                f"({self._own.unreadable[0]['why']})"
            )

    def judge(self, sessions: Parts, progress: Progress) -> Verdict:
        """One pass over all clips."""
        if self._own is not None:
            found = self._evaluate(sessions, progress)
            pairs = [(a.logits, b.logits) for a, b in zip(found.predictions, self._own.predictions, strict=True)]
            return _verdict(LABELLED, self._own.top(1), found.top(1), pairs)
        pairs = []
        for clip, reference in zip(self.clips, self.references, strict=True):
            pairs.append((self.runner.logits(sessions, clip), reference))
            progress(1)
        same = [bool(np.isfinite(a).all()) and int(np.argmax(a)) == int(np.argmax(b)) for a, b in pairs]
        return _verdict(AGREEMENT, 1.0, float(np.mean(same)), pairs)

    def _evaluate(self, sessions: Parts, progress: Progress) -> Evaluation:
        assert self.labelled is not None
        frames = self.bundle.manifest.preprocessing.num_frames
        return evaluate(self.bundle, sessions, self.labelled, frames=frames, progress=progress)

    def sensitivity(
        self, run: Callable[[Clip, slice, Array], Array], layers: Sequence[str], progress: Progress
    ) -> dict[str, float]:
        """Layer -> relative error of the logits when it alone is quantized, the most harmful first.

        run: logits of a clip's frames with these layers quantized (bool `[layers]`), the others float32.
        """
        chosen = [self.clips[i] for i in np.linspace(0, len(self.clips) - 1, SENSITIVITY_CLIPS).astype(int)]
        frames = slice(None, SENSITIVITY_FRAMES)
        plain = [run(clip, frames, np.zeros(len(layers), bool)) for clip in chosen]
        scores = {}
        for index, layer in enumerate(layers):
            only = np.arange(len(layers)) == index
            errors = [_relative(run(clip, frames, only), own) for clip, own in zip(chosen, plain, strict=True)]
            scores[layer] = float(np.mean(errors))
            progress(1)
        return dict(sorted(scores.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf))


def fewest_restored(count: int, holds: Callable[[int], bool]) -> int | None:
    """The least k in 1..count - 1 for which `holds(k)`, taken to be monotone: doubling, then halving; None if none."""
    low, k = 0, 1
    while k < count and not holds(k):
        low, k = k, 2 * k
    if k >= count:
        if low >= count - 1 or not holds(count - 1):
            return None
        k = count - 1
    while k - low > 1:
        middle = (low + k) // 2
        low, k = (low, middle) if holds(middle) else (middle, k)
    return k


def _verdict(measure: str, reference: float, top1: float, pairs: Sequence[tuple[Array, Array]]) -> Verdict:
    errors = [np.abs(a.astype(np.float64) - b.astype(np.float64)) for a, b in pairs]
    worst = float(np.max([error.max() for error in errors]))
    mean = float(np.mean([error.mean() for error in errors]))
    return Verdict(measure, len(pairs), reference, top1, max(0.0, 100 * (reference - top1)), worst, mean)


def _relative(got: Array, expected: Array) -> float:
    size = float(np.linalg.norm(expected.astype(np.float64)))
    return float(np.linalg.norm(got.astype(np.float64) - expected.astype(np.float64))) / max(size, 1e-12)
