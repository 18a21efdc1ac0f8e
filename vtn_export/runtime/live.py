"""A live source through a stream: decoding in its own thread, the model in the caller's, and how it ended."""

from __future__ import annotations

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np

from vtn_export.errors import INTERRUPTED_EXIT_CODE, TERMINATED_EXIT_CODE, VtnError
from vtn_export.runtime.frame_queue import FrameQueue, Policy
from vtn_export.runtime.frames import GraphFrames
from vtn_export.runtime.stream import DEFAULT_STRIDE, Parts, Result, Stream
from vtn_export.spec import Array
from vtn_export.video.live import LiveSource

_WAIT_SECONDS = 0.2  # after which a stop is noticed while no frame comes
_LATENCIES = 1024  # the newest ones; memory does not grow with time


class Live:
    """Results of a source, and what there is to say when it is over.

    policy: by default `block` for a source that waits (a file, a pipe) and `drop-oldest` for one that does not.
    ended: "" while it runs, then `source` (it had no more frames), `stopped`, or `error` with the error.
    """

    def __init__(
        self,
        parts: Parts,
        source: LiveSource,
        window: int = 0,
        stride: int = DEFAULT_STRIDE,
        *,
        policy: Policy | None = None,
        queue: int = 0,
        deadline: float = 0.0,
    ) -> None:
        """See StreamOptions. Raises UsageError, and what opening a session raises."""
        self.source = source
        policy = policy or ("drop-oldest" if source.live else "block")
        self.stream = Stream(parts, window, stride, queue=queue, policy=policy, deadline=deadline, preprocessed=True)
        self._frames = GraphFrames(parts["backbone"].spec, parts.bundle.manifest.preprocessing, preprocessed=False)
        self.options = self.stream.options
        self._queue: FrameQueue[tuple[Array, int, float]] = FrameQueue(self.options.queue, self.options.policy)
        self._reader_error: BaseException | None = None
        self._latencies: deque[float] = deque(maxlen=_LATENCIES)
        self._start = self._end = time.perf_counter()
        self.newest = -1
        self.ended = ""
        self.error: VtnError | None = None

    def results(self, stopping: Callable[[], bool] = lambda: False) -> Generator[Result, None, None]:
        """Every result as it comes, until the source ends, breaks off (`error` says how), or `stopping()`.

        What is no VtnError, a bug, is raised.
        """
        self._start = self._end = time.perf_counter()
        reader = threading.Thread(target=self._read, name="vtn-export-live", daemon=True)
        reader.start()
        try:
            while not stopping():
                item = self._queue.get(_WAIT_SECONDS)
                self._end = time.perf_counter()
                if item is None:
                    if not self._queue.ended:
                        continue
                    self._finish()
                    return
                frame, index, arrived = item
                found = self.stream.push(frame, index, arrived=arrived)
                self._end, self.newest = time.perf_counter(), index
                for result in found:
                    self._latencies.append(result.latency)
                    yield result
            self.ended = "stopped"
        except VtnError as error:
            self.ended, self.error = "error", error
        finally:
            self.source.cancel()
            self._queue.end()
            reader.join(2 * _WAIT_SECONDS)  # a silent camera may keep it: it is a daemon

    def _read(self) -> None:
        try:
            for index, image in self.source:
                arrived = time.perf_counter()
                if self._queue.refuses():
                    continue
                ready = self._frames.ready(self._frames.checked(image))
                if not self._queue.put((ready, index, arrived)) and self._queue.ended:
                    return
        except BaseException as error:  # not swallowed: `_finish` has it
            self._reader_error = error
        finally:
            self._queue.end()

    def _finish(self) -> None:
        """The source gives no more frames: why?"""
        if self._reader_error is None:
            self.ended = "source"
        else:
            raise self._reader_error

    def summary(self) -> dict[str, Any]:
        """Counters and times; latencies in seconds, of the newest 1,024 results."""
        counters, seconds = self.stream.counters(), self._end - self._start
        latency = None
        if self._latencies:
            p50, p95 = (float(value) for value in np.percentile(self._latencies, (50, 95)))
            latency = {"p50": p50, "p95": p95, "max": max(self._latencies)}
        return {
            "ended": self.ended,
            "frames": counters.frames,
            "results": counters.results,
            "dropped": self._queue.dropped,
            "late": counters.late,
            "damaged": self.source.damaged,
            "last_frame_index": None if self.newest < 0 else self.newest,
            "seconds": seconds,
            "frames_per_second": counters.frames / seconds if seconds > 0 else None,
            "latency_seconds": latency,
        }


class StopSignals:
    """Whether SIGINT or SIGTERM came, and the exit code that says so."""

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def __call__(self) -> bool:
        return self.exit_code is not None

    def _came(self, number: int, _: FrameType | None) -> None:
        self.exit_code = TERMINATED_EXIT_CODE if number == signal.SIGTERM else INTERRUPTED_EXIT_CODE
        # a second one ends the process at once, whatever it is doing
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Inside, the first Ctrl-C or SIGTERM is noted instead of raised. In the main thread; elsewhere nothing changes."""
    stop = StopSignals()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop._came) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
