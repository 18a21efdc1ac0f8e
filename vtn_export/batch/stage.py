"""The inference stage: frames of many videos in, one outcome a video out; backbone batches run across videos."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from vtn_export.backends import Sessions
from vtn_export.errors import VtnError
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import Classification, classify_features, require_memory_for_full
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, Part
from vtn_export.video.preprocess import Preprocessor

Mode = Literal["chunked", "full", "features"]
PARTS_OF: dict[Mode, tuple[Part, ...]] = {
    "chunked": ("backbone", "temporal"),
    "full": ("full",),
    "features": ("temporal",),
}


@dataclass(frozen=True)
class Outcome:
    """What became of one video: logits float32 `[classes]` and what belongs to them, or an error."""

    name: str
    content_sha256: str | None = None
    logits: Array | None = None
    frame_index: Array | None = None
    features: Array | None = None
    features_file: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    def ranking(self, count: int) -> tuple[list[int], list[float]]:
        """The `count` likeliest classes and their probabilities, likeliest first."""
        assert self.logits is not None
        probabilities = Classification(self.logits, self.logits).probabilities()
        order = np.argsort(-probabilities, kind="stable")[:count]
        return order.tolist(), probabilities[order].tolist()


@dataclass
class _Video:
    parts: list[Array] = field(default_factory=list)  # features, or frames in mode full
    indices: list[Array] = field(default_factory=list)
    queued: int = 0  # frames that wait for the backbone
    backbone: float = 0.0
    ended: tuple[str | None, float] | None = None  # content hash, seconds of decoding
    error: str | None = None


class Stage:
    """Sessions fed by many videos at once. Not for several threads.

    `feed` frames as they come, `end` a video when it has no more; both return the outcomes that became
    complete. The backbone runs on exactly `batch` frames, whichever videos they are from; `flush` runs what
    is left. Memory: `batch` frames, and the features of the videos that are under way.
    """

    def __init__(self, sessions: Sessions, mode: Mode, batch: int, keep_features: bool = False) -> None:
        """Opens the sessions, so that a backend that cannot run says so here. Raises VtnError."""
        self.sessions, self.mode, self.batch, self.keep_features = sessions, mode, batch, keep_features
        opened = [sessions[part] for part in PARTS_OF[mode]]
        spec = opened[0].spec
        self._normalise = spec.inputs[0].name == FRAMES and spec.inputs[0].dtype != "uint8"
        self._preprocessor = Preprocessor(sessions.bundle.manifest.preprocessing)
        self._videos: dict[str, _Video] = {}
        self._queue: deque[tuple[str, Array]] = deque()
        self._queued = 0

    def feed(self, name: str, frames: Array, frame_index: Array) -> list[Outcome]:
        """frames uint8 `[n, H, W, 3]`, frame_index int32 `[n]`: the next ones of a video."""
        video = self._videos.setdefault(name, _Video())
        if self.mode == "full":
            self._hold(video, frames, frame_index)
            return []
        video.indices.append(frame_index)
        video.queued += len(frames)
        self._queue.append((name, frames))
        self._queued += len(frames)
        outcomes: list[Outcome] = []
        while self._queued >= self.batch:
            outcomes += self._run(self.batch)
        return outcomes

    def _hold(self, video: _Video, frames: Array, frame_index: Array) -> None:
        """Keep the frames, unless the graph could not run on so many: then none of the video's."""
        if video.error is not None:
            return
        video.parts.append(frames)
        video.indices.append(frame_index)
        try:
            require_memory_for_full(self.sessions.bundle, sum(map(len, video.indices)))
        except VtnError as error:
            video.error = one_line(error)
            video.parts.clear()

    def end(self, name: str, content_sha256: str | None, decode_seconds: float) -> list[Outcome]:
        """No more frames of this video will come."""
        self._videos.setdefault(name, _Video()).ended = content_sha256, decode_seconds
        return self._completed([name])

    def drop(self, name: str) -> None:
        """Forget a video, as if it had never been fed: its decoder died or found it damaged."""
        if self._videos.pop(name, None) is not None:
            kept = [(other, frames) for other, frames in self._queue if other != name]
            self._queue, self._queued = deque(kept), sum(len(frames) for _, frames in kept)

    def flush(self) -> list[Outcome]:
        """Run the backbone on what is queued, in a smaller batch."""
        return self._run(self._queued) if self._queued else []

    def classify(self, features: Features, content_sha256: str | None) -> Outcome:
        """Mode `features`: stored features of one video."""
        try:
            result = classify_features(self.sessions["temporal"], features)
        except VtnError as error:
            return Outcome(features.source, content_sha256, error=one_line(error))
        return Outcome(features.source, content_sha256, result.logits, result.frame_index, seconds=result.seconds)

    def _run(self, count: int) -> list[Outcome]:
        """One call of the backbone on the first `count` queued frames."""
        taken: list[tuple[str, Array]] = []
        while count:
            name, frames = self._queue.popleft()
            if len(frames) > count:
                self._queue.appendleft((name, frames[count:]))
                frames = frames[:count]
            taken.append((name, frames))
            count -= len(frames)
            self._queued -= len(frames)
        start = time.perf_counter()
        error, features = None, None
        try:
            frames = taken[0][1] if len(taken) == 1 else np.concatenate([frames for _, frames in taken])
            features = self.sessions["backbone"].run({FRAMES: self._to_graph(frames)})[FEATURES]
        except VtnError as raised:
            error = one_line(raised)
        per_frame, at = (time.perf_counter() - start) / sum(len(frames) for _, frames in taken), 0
        for name, frames in taken:
            video = self._videos[name]
            video.queued -= len(frames)
            video.backbone += per_frame * len(frames)  # its share of the batch
            video.error = video.error or error
            if features is not None:
                # a copy: a view would keep the whole batch alive for as long as its slowest video
                video.parts.append(features[at : at + len(frames)].copy())
            at += len(frames)
        return self._completed([name for name, _ in taken])

    def _completed(self, names: list[str]) -> list[Outcome]:
        outcomes = []
        for name in dict.fromkeys(names):
            video = self._videos[name]
            if video.ended is not None and not video.queued:
                del self._videos[name]
                outcomes.append(self._classify(name, video, *video.ended))
        return outcomes

    def _classify(self, name: str, video: _Video, digest: str | None, decode: float) -> Outcome:
        if video.error is None and not video.indices:
            video.error = f"video {name}: no frames"
        if video.error is not None:
            return Outcome(name, digest, error=video.error)
        index, parts = np.concatenate(video.indices), np.concatenate(video.parts)
        seconds = {"decode": decode}
        features = None
        try:
            if self.mode == "full":
                start = time.perf_counter()
                lengths = np.array([len(index)], dtype=np.int32)
                inputs = {FRAMES: self._to_graph(parts)[None], FRAME_INDEX: index[None], LENGTHS: lengths}
                logits = self.sessions["full"].run(inputs)[LOGITS][0]
                seconds["full"] = time.perf_counter() - start
            else:
                result = classify_features(self.sessions["temporal"], Features(parts, index, "", name))
                logits, features = result.logits, parts if self.keep_features else None
                seconds |= {"backbone": video.backbone, **result.seconds}
        except VtnError as error:
            return Outcome(name, digest, error=one_line(error))
        return Outcome(name, digest, logits, index, features, seconds=seconds)

    def _to_graph(self, frames: Array) -> Array:
        return self._preprocessor.normalise(frames) if self._normalise else frames


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
