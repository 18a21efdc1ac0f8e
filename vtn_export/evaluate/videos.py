"""Videos through a form and its reference: the three modes against each other, features and logits apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtn_export.errors import MemoryForecastError, VideoError
from vtn_export.evaluate.forms import TYPED, Bound, Form
from vtn_export.evaluate.rule import Compared, OutputCheck, Rule, check_output, pair_bound
from vtn_export.evaluate.validate import Validator
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import classify_features, classify_full, extract_features, require_memory_for_full
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS, Array, Part
from vtn_export.video import ClipReader

# The three modes run the same arithmetic on other shapes: what is left is the order of sums.
MODES_TOLERANCE = 1e-4
SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp"})

Progress = Callable[[int], None]


@dataclass(frozen=True)
class _Run:
    features: Features
    logits: Array  # [1, classes]


def videos_of(folder: Path) -> list[Path]:
    """The videos of a folder by name (its own files only). Raises VideoError for none."""
    if not folder.is_dir():
        raise VideoError(f"--videos {folder}: not a folder; --video takes one file")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise VideoError(f"--videos {folder}: no videos in it ({', '.join(sorted(SUFFIXES))})")
    return found


class VideoValidator:
    """Collects over videos; `checks` makes one row an output."""

    def __init__(self, validator: Validator, counts: Sequence[int | None], *, skip_unreadable: bool) -> None:
        """counts: frames sampled from each video, None for all. skip_unreadable: note broken ones and go on."""
        self.validator, self.counts, self.skip_unreadable = validator, counts, skip_unreadable
        self.form: Form = validator.form
        self.reference: Form | None = validator.reference
        self.unreadable: list[dict[str, str]] = []
        self._compared: dict[tuple[str, str], list[Compared]] = {}

    def add(self, video: Path, progress: Progress = lambda _frames: None) -> None:
        """One video in every count of frames. Raises VideoError unless unreadable ones are skipped."""
        for count in self.counts:
            try:
                self._add(video, count, progress)
            except VideoError as error:
                if not self.skip_unreadable:
                    raise
                self.unreadable.append({"what": video.name, "why": str(error)})
                return

    def checks(self) -> list[OutputCheck]:
        """`mode …` rows against mode chunked; `video` rows against the reference, if there is one."""
        rows = []
        for (part, output), compared in self._compared.items():
            if part == "video":
                bound, against = self._pair_bound(output, compared), self.validator.against
                rows.append(check_output(part, output, "video", compared, bound, self.validator.rule, against))
            else:  # of the bundle with itself: the caller's tolerances are for the reference
                bound = self._modes_bound(part)
                rows.append(check_output(part, output, "video", compared, bound, Rule(), "mode chunked"))
        return rows

    def _add(self, video: Path, count: int | None, progress: Progress) -> None:
        manifest = self.form.bundle.manifest
        ours = self._chunked(self.form, video, count, progress)
        frames = len(ours.features.frame_index)
        name = f"{video.name}: {frames} frames"
        again = classify_features(self.form["temporal"], ours.features).logits[None]
        self._compare("mode features", LOGITS, name, frames, again, ours.logits)
        if "full" in manifest.graphs:
            try:
                require_memory_for_full(self.form.bundle, frames)
                with ClipReader(video, manifest.preprocessing, count) as reader:
                    whole = classify_full(self.form["full"], reader, progress).logits[None]
                self._compare("mode full", LOGITS, name, frames, whole, ours.logits)
            except MemoryForecastError as error:
                self.validator.skipped.append({"what": f"mode full, {name}", "why": str(error)})
        sides = [ours.features.features, ours.logits]
        if self.reference is not None:
            theirs = self._chunked(self.reference, video, count, progress)
            self._compare("video", FEATURES, name, frames, ours.features.features, theirs.features.features)
            self._compare("video", LOGITS, name, frames, ours.logits, theirs.logits)
            sides += [theirs.features.features, theirs.logits]
        if not all(np.isfinite(side).all() for side in sides):
            self._origin(video, count, name, ours.features)

    def _chunked(self, form: Form, video: Path, count: int | None, progress: Progress) -> _Run:
        with ClipReader(video, form.bundle.manifest.preprocessing, count) as reader:
            features, _ = extract_features(form["backbone"], reader, progress)
        return _Run(features, classify_features(form["temporal"], features).logits[None])

    def _compare(self, part: str, output: str, name: str, frames: int, got: Array, expected: Array) -> None:
        self._compared.setdefault((part, output), []).append(Compared(name, frames, got, expected))

    def _origin(self, video: Path, count: int | None, name: str, features: Features) -> None:
        if np.isfinite(features.features).all():
            inputs = {
                FEATURES: features.features[None],
                FRAME_INDEX: features.frame_index[None],
                LENGTHS: np.array([len(features.features)], dtype=np.int32),
            }
            self.validator.look_for_origin("temporal", name, inputs)
            return
        bad = int(np.flatnonzero(~np.isfinite(features.features).all(1))[0])
        preprocessing = self.form.bundle.manifest.preprocessing
        spec = self.form.bundle.graph("backbone").spec
        from vtn_export.runtime.golden import graph_frames

        with ClipReader(video, preprocessing, count) as reader:
            seen = 0
            for frames, _index in reader:
                if bad < seen + len(frames):
                    frame = frames[bad - seen : bad - seen + 1]
                    call = graph_frames(frame, preprocessing, self.form.bundle.manifest.input_type)
                    self.validator.look_for_origin("backbone", f"{name}, frame {bad}", {spec.inputs[0].name: call})
                    return
                seen += len(frames)

    def _pair_bound(self, output: str, compared: Sequence[Compared]) -> Bound:
        largest = max((float(np.max(np.abs(one.expected))) for one in compared), default=1.0)
        part = self._part(output)
        assert self.reference is not None
        own, other = self.form.bound(part), self.reference.bound(part)
        if own.relative and other.relative:
            return Bound(True, MODES_TOLERANCE)
        return pair_bound(own, other, largest if np.isfinite(largest) else 1.0)

    def _modes_bound(self, mode: str) -> Bound:
        if self.form.name in TYPED and mode == "mode full":
            # typed apart from its halves: between them their features are float32, inside `full` they are not
            return Bound(False, self.form.bound("full").tolerance + self.form.bound("temporal").tolerance)
        if self.form.name != "trt":
            return Bound(True, MODES_TOLERANCE)
        # engines of several shapes round differently: at most as far as they may at all
        bounds = [self.form.bound(part).tolerance for part in self.form.bundle.manifest.graphs]
        return Bound(True, max(MODES_TOLERANCE, *bounds))

    def _part(self, output: str) -> Part:
        """The graph whose bound holds for a whole video's output."""
        if output == FEATURES:
            return "backbone"
        return "full" if "full" in self.form.bundle.manifest.graphs else "temporal"
