"""Live video: each frame passes the backbone once, the temporal graph runs over a ring of features.

The same words, rules and messages as vtn::Stream of libvtn (engines/runtime/include/vtn/stream.hpp). docs/streaming.md.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.errors import ShapeError, UsageError
from vtn_export.runtime.frame_queue import FrameQueue, Policy, check_policy
from vtn_export.runtime.frames import Frames, GraphFrames
from vtn_export.runtime.inference import Classification
from vtn_export.runtime.one_user import OneUser
from vtn_export.runtime.ring import Steps, Track
from vtn_export.runtime.session import Session
from vtn_export.spec import FEATURES, FRAMES, Array, Part

MAX_WINDOW, MAX_QUEUE = 1 << 16, 4096
DEFAULT_STRIDE = 8
Index = int | Sequence[int] | Array | None


class Parts(Protocol):
    """A bundle's sessions by part, as vtn_export.backends.Sessions opens them."""

    bundle: Bundle

    def __getitem__(self, part: Part) -> Session: ...


@dataclass(frozen=True)
class StreamOptions:
    """window: frames a result looks at (0: the bundle's num_frames). stride: frames from result to result.

    queue: frames that may wait (0: one stride). deadline: seconds; a result that took longer counts as late (0: none
    does). chunk: frames a call of the backbone, where more come together. preprocessed: frames are what the graph takes
    (ClipReader gives such), not pictures of any size.
    """

    window: int = 0
    stride: int = DEFAULT_STRIDE
    queue: int = 0
    policy: Policy = "drop-oldest"
    deadline: float = 0.0
    chunk: int = 16
    preprocessed: bool = False

    def checked(self, num_frames: int) -> StreamOptions:
        """Defaults filled in. Raises UsageError."""
        window = self.window or num_frames
        _within("window", window, MAX_WINDOW)
        _within("stride", self.stride, MAX_WINDOW)
        queue = self.queue or min(self.stride, MAX_QUEUE)
        _within("queue", queue, MAX_QUEUE)
        _within("chunk", self.chunk, MAX_WINDOW)
        check_policy(self.policy)
        if not self.deadline >= 0:
            raise UsageError("deadline: expected seconds, 0 or more")
        return replace(self, window=window, queue=queue)


def _within(name: str, got: int, high: int) -> None:
    if isinstance(got, bool) or not isinstance(got, int) or not 1 <= got <= high:
        raise UsageError(f"{name}: got {got}, expected 1..{high}")


@dataclass(frozen=True)
class Result:
    """logits float32 `[classes]` over a window of `frames` frames, `frame_index` the newest one's.

    latency: seconds from the newest frame's arrival to the result.
    """

    logits: Array
    frames: int
    frame_index: int
    latency: float

    def top(self, count: int, labels: list[str]) -> list[tuple[str, float]]:
        """The `count` likeliest labels with their probabilities, likeliest first."""
        return Classification(self.logits, np.array([self.frame_index])).top(count, labels)


@dataclass(frozen=True)
class Counters:
    """frames: through the backbone. results. dropped: by the queue's policy. late: results beyond the deadline."""

    frames: int = 0
    results: int = 0
    dropped: int = 0
    late: int = 0


class Core:
    """What streams do with frames, for any number of tracks; holds nothing of any of them."""

    def __init__(self, parts: Parts, options: StreamOptions) -> None:
        """Raises UsageError, and what opening a session raises."""
        manifest = parts.bundle.manifest
        self.options = options.checked(manifest.preprocessing.num_frames)
        self.backbone = parts["backbone"]
        self.frames = GraphFrames(self.backbone.spec, manifest.preprocessing, preprocessed=self.options.preprocessed)
        positions = int(manifest.config["temporal"]["max_position_embeddings"]) - 2
        self.steps = Steps(parts["temporal"], self.options.window, self.options.stride, positions)

    def track(self) -> Track:
        return Track(self.options.window, self.steps.width)

    def features(self, frames: Array) -> Array:
        """float32 `[n, E]` of n ≥ 1 frames of the graph."""
        chunk = self.options.chunk
        found = [self.backbone.run({FRAMES: frames[at : at + chunk]})[FEATURES] for at in range(0, len(frames), chunk)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def take(self, track: Track, features: Array, index: Array, arrived: Sequence[float]) -> list[Result]:
        """New features into the track, and the results that are due; if one of them fails, the track is as before.

        arrived: `time.perf_counter()` of every frame.
        """
        results = []
        for count in self.steps.due(track, len(index)):
            logits, frames = self.steps.classify(track, features[:count], index[:count])
            latency = time.perf_counter() - arrived[count - 1]
            results.append(Result(logits, frames, int(index[count - 1]), latency))
        self.steps.keep(track, features, index)
        return results

    def counted(self, before: Counters, frames: int, results: Sequence[Result]) -> Counters:
        late = sum(0 < self.options.deadline < result.latency for result in results)
        return Counters(before.frames + frames, before.results + len(results), before.dropped, before.late + late)


class Stream(OneUser):
    """Classifications of live video, one every `stride` frames over the last `window`, from a bundle's sessions.

    `push` for a caller that keeps up, `offer` and `poll` for a camera that does not wait. Any thread may use a stream,
    one at a time; `offer`, `poll` and `counters` may be called from different threads. The sessions stay the caller's,
    and only one stream at a time may run on them (StreamGroup: many).
    """

    def __init__(
        self,
        parts: Parts,
        window: int = 0,
        stride: int = DEFAULT_STRIDE,
        *,
        queue: int = 0,
        policy: Policy = "drop-oldest",
        deadline: float = 0.0,
        chunk: int = 16,
        preprocessed: bool = False,
    ) -> None:
        """See StreamOptions. Raises UsageError, and what opening a session raises."""
        super().__init__(
            busy="stream: in use by another thread; give each thread a stream of its own",
            closed="stream: it is closed; open another",
        )
        self._core = Core(parts, StreamOptions(window, stride, queue, policy, deadline, chunk, preprocessed))
        self.options = self._core.options
        self._track = self._core.track()
        self._counters = Counters()
        self._offering = threading.Lock()
        self._changed = threading.Condition()  # of what follows
        self._queue: FrameQueue[tuple[Array, Array, float]] = FrameQueue(
            self.options.queue, self.options.policy, self._changed
        )
        self._thread: threading.Thread | None = None
        self._busy = False
        self._newest_result: Result | None = None
        self._failure: tuple[BaseException, TracebackType | None] | None = None

    @property
    def frames(self) -> GraphFrames:
        """What turns pictures into the graph's frames."""
        return self._core.frames

    def push(self, frames: Frames, index: Index = None, *, arrived: float | None = None) -> list[Result]:
        """Take a frame or a batch now, in this thread; return the results that became due, often none.

        frames: uint8 RGB `[h, w, 3]` of any size, a batch `[n, h, w, 3]` of it or a list of pictures; for a
        `preprocessed` stream what the graph takes, with or without the axis of the batch. index: the frames' places in
        the source, rising; None or -1: one after the one before. arrived: when the frames came (`time.perf_counter()`).

        A batch gives what its frames would give one by one. A push that fails takes none of its frames; once they have
        reached the backbone their indices are spent, as those of dropped frames.
        Raises UsageError, ShapeError, BackendError.
        """
        came = time.perf_counter() if arrived is None else arrived
        with self._use():
            if self._thread is not None:
                raise UsageError("push: this stream has a queue in use; offer its frames, or open another stream")
            checked = self._core.frames.checked(frames)
            places = self._track.checked(len(checked), index)
            if not len(checked):
                return []
            ready = self._core.frames.ready(checked)
            self._track.newest = int(places[-1])
            return self._take(ready, places, came)

    def _take(self, frames: Array, index: Array, arrived: float) -> list[Result]:
        results = self._core.take(self._track, self._core.features(frames), index, [arrived] * len(index))
        with self._changed:
            self._counters = self._core.counted(self._counters, len(index), results)
        return results

    def offer(self, frame: Frames, index: int | None = None) -> bool:
        """Put one frame into the queue, for the stream's own thread, which the first call starts.

        False: this frame was dropped. Its index counts as seen all the same. Raises UsageError, ShapeError, and what
        broke the thread, until `reset`.
        """
        with self._offering:
            came = time.perf_counter()
            self._require_open()
            checked = self._core.frames.checked(frame)
            if len(checked) != 1:
                raise ShapeError(f"offer: got {len(checked)} frames, expected one")
            with self._changed:
                self._raise_failure()
                place = self._track.checked(1, index)
                if self._thread is None:
                    with self._use():  # no push is under way: from now on the thread alone runs the sessions
                        self._thread = threading.Thread(target=self._work, name="vtn-export-stream", daemon=True)
                        self._thread.start()
                self._track.newest = int(place[0])
            if self._queue.refuses():
                return False
            ready = self._core.frames.ready(checked)  # without holding up the thread
            if self.options.preprocessed:
                ready = ready.copy()  # the caller's memory is free again when this returns
            accepted = self._queue.put((ready, place, came))
            self._raise_failure()
            return accepted

    def poll(self, timeout: float = 0.0) -> Result | None:
        """The newest result that was not polled yet, waiting for it up to `timeout` seconds.

        Raises UsageError, and what broke the stream's thread, until `reset`.
        """
        if not timeout >= 0:
            raise UsageError("timeout: expected seconds, 0 or more")
        with self._changed:
            self._changed.wait_for(
                lambda: self._newest_result is not None or self._failure is not None or self._closed, min(timeout, 1e6)
            )
            result, self._newest_result = self._newest_result, None
            if result is None:
                self._raise_failure()
        if result is None:
            self._require_open()
        return result

    def _raise_failure(self) -> None:
        if self._failure is not None:
            error, trace = self._failure
            raise error.with_traceback(trace)  # its own, or every raise would add to it

    def _next(self) -> tuple[Array, Array, float] | None:
        """What the thread has to do next; None: the stream was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (self._failure is None and len(self._queue) > 0))
            item = None if self._closed else self._queue.get(0)
            self._busy = item is not None
            return item

    def _work(self) -> None:
        while (item := self._next()) is not None:
            results: list[Result] = []
            failure = None
            try:
                results = self._take(*item)
            except BaseException as error:  # not swallowed: `offer` and `poll` raise it
                failure = error, error.__traceback__
            with self._changed:
                self._busy = False
                if results:
                    self._newest_result = results[-1]
                if failure is not None:
                    self._failure = failure
                    self._queue.end()  # whoever waits in `offer` goes on, and finds the failure
                self._changed.notify_all()

    def reset(self) -> None:
        """Start a new video: forget frames, waiting ones too, results and errors; counters go on."""
        with self._use(), self._offering:
            self._require_open()
            self._queue.clear()
            with self._changed:
                self._changed.wait_for(lambda: not self._busy)
                self._track.reset()
                self._newest_result, self._failure = None, None
                self._changed.notify_all()

    def counters(self) -> Counters:
        with self._changed:
            return replace(self._counters, dropped=self._queue.dropped)

    def close(self) -> None:
        """End the stream's thread; the stream cannot be used afterwards."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._queue.end()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
