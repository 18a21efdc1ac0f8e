"""A stream says at every step what the batch modes say of the same window, whatever comes in whatever pieces."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.streams import CROP, StubBackbone, StubParts, batch, pictures
from tests.tolerances import tolerance
from vtn_export import errors
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.runtime.ring import Ring
from vtn_export.runtime.stream import Result, Stream
from vtn_export.spec import FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array
from vtn_export.video import Preprocessor


@pytest.fixture(scope="module")
def parts(small_bundle: Path) -> Iterator[Sessions]:
    with Sessions(Bundle.open(small_bundle), threads=1) as sessions:
        yield sessions


def graph_frames(count: int, seed: int = 0, size: int = 32) -> Array:
    return pictures(count, seed, size, size)


def pushed(stream: Stream, frames: Array, index: Array, seed: int = 0) -> list[Result]:
    """All results, the frames pushed in pieces of any size, none included."""
    generator, results, at = random.Random(seed), [], 0
    while at < len(frames):
        count = generator.choice([0, 1, 1, 2, 5, 19])
        results += stream.push(frames[at : at + count], index[at : at + count])
        at += count
    return results


def check(parts: Any, results: list[Result], frames: Array, index: Array, window: int, stride: int) -> None:
    assert [result.frame_index for result in results] == [int(i) for i in index[stride - 1 :: stride]]
    for number, result in enumerate(results, 1):
        seen = number * stride
        assert result.frames == min(window, seen) and result.latency >= 0
        want = batch(parts, frames[:seen], index[:seen], window)
        assert np.abs(result.logits - want).max() <= tolerance("modes"), (number, window, stride)


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (5, 2), (24, 8), (24, 1), (7, 7), (3, 10), (100, 9)])
def test_every_step_equals_the_batch_result(parts: Sessions, window: int, stride: int) -> None:
    """Real graphs; frames dropped, positions past the 286 rows, before the ring is full and long after."""
    frames = graph_frames(60)
    gaps = np.random.default_rng(window).choice([1, 1, 1, 2, 40], 60)
    index = 240 + np.cumsum(gaps)
    assert index[0] < 286 < index[-1]
    with Stream(parts, window, stride, preprocessed=True) as stream:
        check(parts, pushed(stream, frames, index, seed=stride), frames, index, window, stride)
        stream.reset()
        again = frames[::-1][:31]
        check(parts, pushed(stream, again, np.arange(31), seed=1), again, np.arange(31), window, stride)
        assert stream.counters().frames == 91 and stream.counters().results == 60 // stride + 31 // stride


def test_openvino_streams_too(parts: Sessions) -> None:
    frames, index = graph_frames(30), np.arange(30) * 3
    with Sessions(parts.bundle, "openvino", threads=1) as sessions:
        check(parts, pushed(Stream(sessions, 10, 4, preprocessed=True), frames, index), frames, index, 10, 4)


def test_the_whole_video_is_the_full_graph(parts: Sessions) -> None:
    frames, index = graph_frames(24), np.arange(100, 124, dtype=np.int32)
    inputs = {FRAMES: frames[None], FRAME_INDEX: index[None], LENGTHS: np.array([24], np.int32)}
    want = parts["full"].run(inputs)[LOGITS][0]
    (result,) = Stream(parts, 0, 24, preprocessed=True, chunk=7).push(frames, index)
    assert np.abs(result.logits - want).max() <= tolerance("modes")


def test_pictures_of_any_size_are_those_of_the_batch_modes(parts: Sessions) -> None:
    images = [pictures(1, n, 30 + 3 * n, 75 - 2 * n)[0] for n in range(9)]
    ready = np.stack([Preprocessor(parts.bundle.manifest.preprocessing)(image) for image in images])
    stream = Stream(parts, 6, 3)
    results = [result for image in images[:4] for result in stream.push(image)] + stream.push(images[4:])
    check(parts, results, ready, np.arange(9), 6, 3)


def test_float_graphs_get_normalised_frames() -> None:
    seen: list[Array] = []
    parts = StubParts(StubBackbone(seen.append, "float32"))
    images = pictures(8, 4, 50, 44)
    Stream(parts, 8, 8).push(images)
    preprocess = Preprocessor(parts.bundle.manifest.preprocessing)
    assert np.array_equal(np.concatenate(seen), preprocess.normalise(np.stack([preprocess(image) for image in images])))


@given(
    window=st.integers(1, 20),
    stride=st.integers(1, 25),
    pieces=st.lists(st.integers(0, 45), max_size=8),
    start=st.integers(0, 2**62),
    gaps=st.integers(0, 2**31),
)
def test_any_pieces(window: int, stride: int, pieces: list[int], start: int, gaps: int) -> None:
    parts = StubParts()
    frames = graph_frames(sum(pieces), size=CROP)
    index = start + np.cumsum(np.random.default_rng(gaps).choice([1, 1, 3, 2**40], sum(pieces)))
    stream, results, at = Stream(parts, window, stride, preprocessed=True), [], 0
    for count in pieces:
        results += stream.push(frames[at : at + count], index[at : at + count])
        at += count
    assert len(results) == at // stride
    for number, result in enumerate(results, 1):
        seen = number * stride
        want = batch(parts, frames[:seen], index[:seen] % 10, window)
        assert result.frame_index == index[seen - 1] and result.frames == min(window, seen)
        assert np.allclose(result.logits, want, rtol=1e-6)


@given(window=st.integers(1, 9), pieces=st.lists(st.integers(0, 20), max_size=9), skip=st.integers(0, 11))
def test_ring_is_the_tail_of_a_list(window: int, pieces: list[int], skip: int) -> None:
    ring, told, at = Ring(window, 2), np.zeros((0, 2), np.float32), 0
    for count in pieces:
        new = np.arange(2 * at, 2 * (at + count), dtype=np.float32).reshape(count, 2)
        ring.put(new, np.arange(at, at + count))
        told, at = np.concatenate([told, new]), at + count
        features, index = ring.ordered()
        assert (
            np.array_equal(features, told[-window:])
            and list(index) == list(range(at))[-window:]
            and len(ring) == len(index)
        )
        out, places = np.full((window, 2), -1.0, np.float32), np.full(window, -1)
        kept = ring.copy(skip, out, places)
        assert kept == max(0, len(ring) - skip) and np.array_equal(out[:kept], features[len(ring) - kept :])
        assert (places[kept:] == -1).all()


def test_indices_left_out_go_on_from_the_newest() -> None:
    stream = Stream(StubParts(), 6, 1)
    images = pictures(5)
    told = (
        stream.push(images[:2])
        + stream.push(images[2], 10)
        + stream.push(images[3:], [-1, 20])
        + stream.push(images[0], -1)
    )
    assert [result.frame_index for result in told] == [0, 1, 10, 11, 20, 21]


BAD_OPTIONS = [
    ({"stride": 0}, "stride: got 0, expected 1..65536"),
    ({"stride": -1}, "stride"),
    ({"stride": 1 << 40}, "expected 1..65536"),
    ({"stride": 2.5}, "stride: got 2.5"),
    ({"window": -1}, "window: got -1, expected 1..65536"),
    ({"window": 1 << 17}, "window"),
    ({"queue": -1}, "queue: got -1, expected 1..4096"),
    ({"deadline": -1.0}, "deadline: expected seconds, 0 or more"),
    ({"deadline": float("nan")}, "deadline"),
    ({"chunk": 0}, "chunk"),
    ({"policy": "keep"}, "policy: got 'keep', expected one of drop-oldest, drop-newest, block"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UsageError, match=message):
        Stream(StubParts(), **options)


def test_window_0_is_the_bundles() -> None:
    assert Stream(StubParts()).options.window == 6 and Stream(StubParts(), stride=5000).options.queue == 4096


@pytest.mark.parametrize("index", [5, 4, 0, -2, [7, 7], [9, 8], 1 << 63, 1.5, [6, None]])
def test_indices_must_rise(index: Any) -> None:
    stream = Stream(StubParts(), 6, 1)
    stream.push(pictures(1), 5)
    with pytest.raises(errors.UsageError, match=r"^frame_index: got"):
        stream.push(pictures(2 if isinstance(index, list) else 1), index)
    assert stream.push(pictures(1))[0].frame_index == 6 and stream.counters().frames == 2


def test_the_last_index_there_is() -> None:
    stream = Stream(StubParts(), 6, 1)
    assert stream.push(pictures(1), (1 << 63) - 1)[0].frame_index == (1 << 63) - 1
    with pytest.raises(errors.UsageError, match=r"less than 2\^63; reset\(\)"):
        stream.push(pictures(1))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (pictures(2).astype(np.float32), "got float32 \\(11, 13, 3\\), expected uint8 RGB \\(h, w, 3\\)"),
        (pictures(1)[..., :2], "uint8 RGB"),
        (np.zeros((5, 5), np.uint8), "uint8 RGB"),
        ([pictures(1)[0], pictures(1)], "uint8 RGB"),
        (["picture"], "got str"),
        (np.zeros((1, 257, 3), np.uint8), "got 257 x 1 pixels"),
        (np.zeros((0, 4, 3), np.uint8), "got 4 x 0 pixels"),
    ],
)
def test_bad_pictures(frames: Any, message: str) -> None:
    stream = Stream(StubParts(), 6, 1)
    with pytest.raises(errors.ShapeError, match=message):
        stream.push(frames)
    with pytest.raises(errors.ShapeError):
        Stream(StubParts(), 6, 1).offer(frames)
    assert stream.push(pictures(1))[0].frame_index == 0


@pytest.mark.parametrize("shape", [(1, 9, 8, 3), (2, 8, 8, 4), (9, 9, 3), (8, 8), (0, 9, 8, 3), (1, 1, 8, 8, 3)])
def test_frames_of_another_size_where_the_graphs_are_expected(shape: tuple[int, ...]) -> None:
    stream = Stream(StubParts(), preprocessed=True)
    with pytest.raises(errors.ShapeError, match="frames: got uint8"):
        stream.push(np.zeros(shape, np.uint8))
    with pytest.raises(errors.ShapeError, match="several sizes"):
        stream.push([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    with pytest.raises(errors.ShapeError, match="frame_index: got 3, expected 2, one a frame"):
        stream.push(np.zeros((2, 8, 8, 3), np.uint8), [1, 2, 3])


@pytest.mark.parametrize("preprocessed", [False, True])
def test_nothing_pushed_changes_nothing(preprocessed: bool) -> None:
    stream = Stream(StubParts(), 6, 1, preprocessed=preprocessed)
    assert stream.push([]) == [] == stream.push(np.zeros((0, 8, 8, 3), np.uint8), [])
    assert stream.counters().frames == 0 and stream.push(graph_frames(1, size=8))[0].frame_index == 0


@pytest.mark.parametrize("where", ["backbone", "temporal"])
def test_a_failure_in_the_middle_of_a_batch_takes_none_of_it(where: str) -> None:
    calls = [0]

    def third(*_: object) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise errors.BackendError("stub: broken")

    broken, whole = StubParts(), StubParts()
    broken.sessions[where].before = third
    images = pictures(30)
    one, other = (Stream(parts, 8, 3, chunk=4) for parts in (broken, whole))
    for stream in (one, other):
        stream.push(images[:4]) if where == "temporal" else stream.push(images[:1])
    before = one.counters()
    with pytest.raises(errors.BackendError, match="broken"):
        one.push(images[4:24])
    assert one.counters() == before
    # its indices are spent, as those of dropped frames: what follows is as if the batch had been dropped
    index = [i + 20 + (4 if where == "temporal" else 1) for i in range(6)]
    got, want = one.push(images[24:]), other.push(images[24:], index)
    assert [(r.frames, r.frame_index) for r in got] == [(r.frames, r.frame_index) for r in want] != []
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(got, want, strict=True))


def test_one_thread_at_a_time_and_none_after_close() -> None:
    gate, entered = threading.Event(), threading.Event()

    def wait(_: Array) -> None:
        entered.set()
        assert gate.wait(60)

    stream = Stream(StubParts(StubBackbone(wait)), 6, 1)
    thread = threading.Thread(target=stream.push, args=(pictures(1),))
    thread.start()
    assert entered.wait(60)
    for call in (lambda: stream.push(pictures(1)), lambda: stream.offer(pictures(1)), stream.reset):
        with pytest.raises(errors.UsageError, match="in use by another thread"):
            call()
    gate.set()
    thread.join()
    assert stream.counters().frames == 1
    stream.close()
    stream.close()
    for call in (lambda: stream.push(pictures(1)), lambda: stream.offer(pictures(1)), stream.reset, stream.poll):
        with pytest.raises(errors.UsageError, match="stream: it is closed; open another"):
            call()


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def soak(stream: Stream, frame: Array, frames: int) -> tuple[int, int]:
    """Bytes that the process grew by between a fifth of the way and the end; results."""
    before, results = 0, 0
    for number in range(frames):
        results += len(stream.push(frame, 3 * number))
        if number == frames // 5:
            before = resident()
    return resident() - before, results


def test_memory_is_constant_over_100000_frames() -> None:
    grown, results = soak(Stream(StubParts(), 250, 8, preprocessed=True), graph_frames(1, size=CROP), 100_000)
    print("grown", grown)
    assert results == 12_500 and grown < 2 << 20  # a kept float32 feature of 4 would be 1.3 MB, a kept frame 15 MB


def test_memory_is_constant_over_5000_frames_of_real_graphs(parts: Sessions) -> None:
    grown, results = soak(Stream(parts, 24, 8), pictures(1, 0, 40, 50), 5000)
    print("grown", grown)
    assert results == 625 and grown < 4 << 20  # kept crops would be 12 MB, kept pictures 24 MB
