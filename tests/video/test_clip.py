from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video import make
from vtn_export.errors import UsageError, VideoError
from vtn_export.spec import Preprocessing
from vtn_export.video import ClipReader, Preprocessor, decode, sample_indices

SMALL = Preprocessing(short_side=20, crop_size=16, num_frames=12)
CLIP = sys.modules["vtn_export.video.clip"]
DEADLINE = 20.0  # seconds after which a wait is a failure; never a measure of speed


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write(tmp_path_factory.mktemp("clip") / "a.mp4", make.textured_frames(50, 48, 64))


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test: no thread and no open file more than before, at once."""
    before = threads(), open_files()
    yield
    assert (threads(), open_files()) == before


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if "vtn-export" in thread.name}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0  # noqa: PTH208


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("num_frames", ["published", 1, 8, 16, 50, 90, None])
@pytest.mark.parametrize("chunk", [1, 8, 100])
def test_chunks_are_the_preprocessed_samples(video: Path, num_frames: Any, chunk: int) -> None:
    reader = ClipReader(video, SMALL, num_frames, chunk=chunk)
    count = {"published": 12, None: 50}.get(num_frames, num_frames)
    expected = sample_indices(50, count) if num_frames else np.arange(50, dtype=np.int32)
    assert reader.num_video_frames == 50 and reader.num_frames == count
    assert reader.frame_index is not None and (reader.frame_index == expected).all()
    assert reader.frame_index.dtype == np.int32
    chunks = list(reader)
    assert [len(index) for _, index in chunks[:-1]] == [chunk] * (len(chunks) - 1)
    frames = np.concatenate([frames for frames, _ in chunks])
    index = np.concatenate([index for _, index in chunks])
    assert (index == expected).all() and index.dtype == np.int32
    assert frames.shape == (count, 16, 16, 3) and frames.dtype == np.uint8
    preprocess = Preprocessor(SMALL)
    for ours, (_, image) in zip(frames, decode(video, expected), strict=True):
        assert (ours == preprocess(image)).all()


def test_chunks_are_not_overwritten(video: Path) -> None:
    """A consumer may keep chunks; a chunk of features computed late must not see later frames."""
    reader = ClipReader(video, SMALL, None, chunk=4)
    copies = [(frames, frames.copy()) for frames, _ in reader]
    assert all((kept == copy).all() for kept, copy in copies)


def test_can_be_read_again(video: Path) -> None:
    reader = ClipReader(video, SMALL)
    first, second = ([index.tolist() for _, index in reader] for _ in range(2))
    assert first == second


def test_unknown_length(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.h264", make.textured_frames(21), pipe="h264")
    reader = ClipReader(path, SMALL, None, chunk=8)
    assert (reader.num_video_frames, reader.num_frames, reader.frame_index) == (None, None, None)
    next(iter(reader))  # a pass that was given up tells nothing
    assert reader.num_video_frames is None
    assert [len(index) for _, index in reader] == [8, 8, 5]
    assert reader.num_video_frames == reader.num_frames == 21
    counted: list[int] = []
    sampled = ClipReader(path, SMALL, 4, counting=counted.append)
    assert sampled.num_video_frames == 21 and counted[-1] == 21
    assert np.concatenate([index for _, index in sampled]).tolist() == [0, 6, 13, 20]


def test_short_video_repeats_frames_without_repeating_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.write(tmp_path / "a.mp4", make.textured_frames(3))
    done = Counter(monkeypatch)
    reader = ClipReader(path, SMALL, 12, chunk=12)
    ((frames, index),) = list(reader)
    assert index.tolist() == [0] * 6 + [1] * 5 + [2] and done.count == 3
    assert (frames[0] == frames[5]).all() and (frames[6] == frames[10]).all()
    assert not (frames[5] == frames[6]).all()


class Counter:
    """Counts the frames that were preprocessed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        original = Preprocessor.__call__

        def counted(preprocessor: Preprocessor, frame: Any) -> Any:
            self.count += 1
            return original(preprocessor, frame)

        monkeypatch.setattr(Preprocessor, "__call__", counted)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_decodes_while_the_consumer_works(video: Path, monkeypatch: pytest.MonkeyPatch, prefetch: int) -> None:
    """While one chunk is in the consumer's hands, `prefetch` more and one in the making get ready,
    and no more than that."""
    done = Counter(monkeypatch)
    reader = ClipReader(video, SMALL, None, chunk=4, prefetch=prefetch)
    iterator = iter(reader)
    next(iterator)
    ahead = 4 * (1 + prefetch + 1)
    wait_until(lambda: done.count == ahead)
    time.sleep(0.1)  # it must stay there
    assert done.count == ahead
    assert sum(len(index) for _, index in iterator) == 46


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_early_break_stops_the_thread(video: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    done = Counter(monkeypatch)
    for number, _ in enumerate(ClipReader(video, SMALL, None, chunk=2, prefetch=1)):
        if number == taken:
            break
    assert done.count <= 2 * (taken + 1 + 2)  # and the autouse fixture sees no thread, no open file


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_error_in_the_consumer_stops_the_thread(video: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        for _ in ClipReader(video, SMALL, None, chunk=2):
            raise error


def test_an_error_in_the_thread_reaches_the_consumer(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.mp4", make.textured_frames(60), codec_options=make.FRAGILE)
    make.corrupt(path, 24)
    reader = ClipReader(path, SMALL, None, chunk=4)
    got: list[int] = []
    with pytest.raises(VideoError, match="damaged"):
        for _, index in reader:
            got.extend(index.tolist())
    assert got and got == list(range(len(got)))  # what came before is right


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_any_error_in_the_thread_reaches_the_consumer(
    video: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def broken(*_: Any) -> Any:
        raise error("in the thread")

    monkeypatch.setattr(Preprocessor, "__call__", broken)
    with pytest.raises(error, match="in the thread"):
        list(ClipReader(video, SMALL))


def test_close_ends_a_consumer_that_waits(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another thread, while decoding is stuck between chunks."""
    waiting = threading.Event()

    def slow(path: Any, indices: Any, *, cancelled: Callable[[], bool]) -> Iterator[Any]:
        waiting.set()
        wait_until(cancelled)
        yield from ()

    monkeypatch.setattr(CLIP, "decode", slow)
    with ClipReader(video, SMALL) as reader:
        got: list[Any] = []
        consumer = threading.Thread(target=lambda: got.extend(reader))
        consumer.start()
        assert waiting.wait(DEADLINE)
        reader.close()
        consumer.join(DEADLINE)
        assert not consumer.is_alive() and got == []


def test_leaving_the_with_block_ends_open_iterations(video: Path) -> None:
    with ClipReader(video, SMALL, None, chunk=2) as reader:
        one, two = iter(reader), iter(reader)
        assert (next(one)[1] == next(two)[1]).all()
    assert list(one) == list(two) == []
    reader.close()  # again: nothing to do


def test_rotated_video_is_upright_in_the_crop(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video.read_bytes())
    make.turn(path, -1, 0, 0, -1)
    (upright, _), (stored, _) = (next(iter(ClipReader(p, SMALL, 1))) for p in (path, video))
    preprocess = Preprocessor(SMALL)
    frame = next(decode(video))[1]
    assert (upright[0] == preprocess(frame[::-1, ::-1])).all() and (stored[0] == preprocess(frame)).all()


@pytest.mark.parametrize("options", [{"num_frames": 0}, {"num_frames": -2}, {"chunk": 0}, {"prefetch": 0}], ids=str)
def test_refuses_values_out_of_range(video: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        ClipReader(video, SMALL, **options)  # type: ignore[arg-type]
