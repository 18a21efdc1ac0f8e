"""Late input: what policies keep, drop and count, as libvtn's tests expect it (stream_threads_test.cpp)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tests.runtime.streams import StubBackbone, StubParts, batch, pictures
from vtn_export import errors
from vtn_export.runtime.frame_queue import FrameQueue
from vtn_export.runtime.stream import Result, Stream
from vtn_export.spec import Array
from vtn_export.video import Preprocessor

FOREVER = 120.0


class Gate:
    """A backbone that waits until it is let go; the frames it saw."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, _: Array) -> None:
        self.entered.release()
        assert self.open.acquire(timeout=FOREVER)

    def let(self, count: int) -> None:
        for _ in range(count):
            self.open.release()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def last(stream: Stream, results: int) -> Result:
    """The newest result, once there were so many."""
    until(lambda: stream.counters().results >= results)
    result = None
    while (newer := stream.poll(0.05)) is not None:
        result = newer
    assert result is not None
    return result


def test_drop_oldest_keeps_the_newest() -> None:
    gate, images = Gate(), pictures(6)
    parts = StubParts(StubBackbone(gate))
    with Stream(parts, 6, 1, queue=2, policy="drop-oldest") as stream:
        assert stream.offer(images[0], 0)
        assert gate.entered.acquire(timeout=FOREVER)  # frame 0 is being computed; the queue is empty
        assert all(stream.offer(images[i], i) for i in range(1, 6))
        assert stream.counters().dropped == 3
        gate.let(100)
        result = last(stream, 3)
        assert (result.frame_index, result.frames) == (5, 3)  # 0, 4, 5
        assert stream.counters().frames == 3 and stream.counters().late == 0
        preprocess = Preprocessor(parts.bundle.manifest.preprocessing)
        kept = np.stack([preprocess(images[i]) for i in (0, 4, 5)])
        assert np.allclose(result.logits, batch(StubParts(), kept, np.array([0, 4, 5]), 6))


def test_drop_newest_keeps_the_oldest() -> None:
    gate, image = Gate(), pictures(1)[0]
    with Stream(StubParts(StubBackbone(gate)), 6, 1, queue=2, policy="drop-newest", deadline=1e-9) as stream:
        assert stream.offer(image)
        assert gate.entered.acquire(timeout=FOREVER)
        assert stream.offer(image) and stream.offer(image)
        assert not stream.offer(image)
        gate.let(100)
        until(lambda: stream.counters().results == 3)
        assert stream.offer(image)  # index 4: the dropped frame had one
        result = last(stream, 4)
        assert (result.frame_index, result.frames) == (4, 4)
        assert stream.counters().dropped == 1 and stream.counters().late == 4  # all, by that deadline


def test_block_loses_nothing() -> None:
    image = pictures(1)[0]
    with Stream(StubParts(), 6, 4, queue=1, policy="block") as stream:
        assert all(stream.offer(image) for _ in range(200))
        until(lambda: stream.counters().results == 50)
        counters = stream.counters()
        assert (counters.frames, counters.dropped) == (200, 0)
        with pytest.raises(errors.UsageError, match="push: this stream has a queue in use; offer its frames, or open"):
            stream.push(image)


def test_failures_of_the_thread_come_out_and_reset_heals() -> None:
    broken = [True]

    def fail(_: Array) -> None:
        if broken:
            raise errors.BackendError("stub: broken")

    image = pictures(1)[0]
    with Stream(StubParts(StubBackbone(fail)), 6, 1, queue=2, policy="block") as stream:
        stream.offer(image)
        depths = []
        for _ in range(3):
            with pytest.raises(errors.BackendError, match="stub: broken") as raised:
                stream.poll(FOREVER)
            with pytest.raises(errors.BackendError, match="stub: broken"):
                stream.offer(image)
            depths.append(len(raised.traceback))
        assert depths[0] == depths[2]  # one traceback, not all there ever were
        broken.clear()
        stream.reset()
        assert stream.offer(image)
        result = stream.poll(FOREVER)
        assert result is not None and (result.frames, result.frame_index) == (1, 0)
        assert stream.counters().frames == 1


def test_a_blocked_camera_goes_on_when_the_stream_closes_or_fails() -> None:
    for ending in ("close", "fail"):
        gate, image, outcome = Gate(), pictures(1)[0], []
        fails = [False]

        def run(frames: Array, gate: Gate = gate, fails: list[bool] = fails) -> None:
            gate(frames)
            if fails[0]:
                raise errors.BackendError("stub: broken")

        stream = Stream(StubParts(StubBackbone(run)), 6, 1, queue=1, policy="block")

        def offer(stream: Stream = stream, image: Array = image, outcome: list[object] = outcome) -> None:
            try:
                while stream.offer(image):
                    pass
                outcome.append("ended")
            except errors.VtnError as error:
                outcome.append(error)

        camera = threading.Thread(target=offer)
        camera.start()
        assert gate.entered.acquire(timeout=FOREVER)
        until(lambda stream=stream: len(stream._queue) == 1)  # type: ignore[misc]
        fails[0] = ending == "fail"
        closing = threading.Thread(target=stream.close)
        if ending == "close":
            closing.start()
            camera.join(FOREVER)
        gate.let(100)
        camera.join(FOREVER)
        assert not camera.is_alive()
        assert isinstance(outcome[0], errors.BackendError) if ending == "fail" else str(outcome[0]) != ""
        stream.close()


def test_reset_forgets_what_waits() -> None:
    gate, image = Gate(), pictures(1)[0]
    with Stream(StubParts(StubBackbone(gate)), 6, 1, queue=3, policy="block") as stream:
        stream.offer(image, 50)
        assert gate.entered.acquire(timeout=FOREVER)
        stream.offer(image, 60)
        gate.let(1)
        stream.reset()  # waits for the frame that is being computed
        gate.let(100)
        stream.offer(image, 3)
        result = stream.poll(FOREVER)
        assert result is not None and (result.frame_index, result.frames) == (3, 1)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_poll_takes_seconds(timeout: float) -> None:
    with pytest.raises(errors.UsageError, match="timeout: expected seconds, 0 or more"):
        Stream(StubParts()).poll(timeout)
    assert Stream(StubParts()).poll(0) is None


def test_one_frame_an_offer_and_memory_is_the_callers_again() -> None:
    gate = Gate()
    seen: list[Array] = []
    parts = StubParts(StubBackbone(lambda frames: (gate(frames), seen.append(frames.copy()))[0]))
    with Stream(parts, 6, 1, queue=4, preprocessed=True) as stream:
        with pytest.raises(errors.ShapeError, match="offer: got 2 frames, expected one"):
            stream.offer(np.zeros((2, 8, 8, 3), np.uint8))
        mine = np.full((8, 8, 3), 5, np.uint8)
        stream.offer(mine)
        stream.offer(mine)
        mine[:] = 9
        gate.let(2)
        until(lambda: len(seen) == 2)
        assert all((frames == 5).all() for frames in seen)


def test_queue_by_itself() -> None:
    queue: FrameQueue[int] = FrameQueue(2, "drop-oldest")
    assert queue.get(0) is None and all(queue.put(i) for i in range(5))
    assert queue.dropped == 3 and [queue.get(), queue.get(), queue.get(0)] == [3, 4, None]
    queue.put(7)
    queue.end()
    assert not queue.put(8) and [queue.get(), queue.get()] == [7, None]  # at once: nothing will come
