"""Live sources: files, pipes and devices frame by frame, their indices, and how they break off."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video.make import FRAGILE, corrupt, cut, flat_frames, number_of, textured_frames, write
from vtn_export import errors
from vtn_export.video import decode, live, shipped_clip
from vtn_export.video.live import LiveSource


def read(*arguments: Any, **options: Any) -> tuple[list[int], list[Any], BaseException | None]:
    """Indices, images, and what ended them."""
    indices, images, error = [], [], None
    try:
        for index, image in LiveSource(*arguments, **options):
            indices.append(index)
            images.append(image)
    except errors.VtnError as raised:
        error = raised
    return indices, images, error


def piped(data: bytes, **options: Any) -> tuple[list[int], list[Any], BaseException | None]:
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        return read("-", pipe=reading, **options)
    finally:
        os.close(reading)
        thread.join()


def test_a_file_is_what_decode_gives() -> None:
    indices, images, error = read(str(shipped_clip()))
    want = list(decode(shipped_clip()))
    assert error is None and indices == [number for number, _ in want]
    assert all(np.array_equal(image, other) for image, (_, other) in zip(images, want, strict=True))
    some, pictures, _ = read(str(shipped_clip()), every=7)
    assert some == indices[::7] and np.array_equal(pictures[-1], images[some[-1]])


@pytest.mark.parametrize(("form", "keep"), [("rgb24", 1), ("bgr24", 1), ("nv12", 0.5), ("rgba", 4 / 3)])
def test_raw_frames_by_pipe(form: str, keep: float) -> None:
    import av

    frames = textured_frames(9, 48, 64)
    data = b"".join(
        av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=form).to_ndarray().tobytes()
        for frame in frames
    )
    assert len(data) == int(keep * 9 * 48 * 64 * 3)
    indices, images, error = piped(data, size="64x48", pixel_format=form)
    assert error is None and indices == list(range(9))
    if form != "nv12":  # the chroma of every second pixel is gone
        assert all(np.array_equal(image, frame) for image, frame in zip(images, frames, strict=True))
    # the size of a frame is what says where one begins: a pipe that ends inside one broke off
    indices, _, error = piped(data[:-10], size="64x48", pixel_format=form)
    assert len(indices) == 8 and isinstance(error, errors.SourceError)
    assert str(error) == "broke off after 8 frames: standard input: ended inside or damaged at frame 8"
    assert isinstance(piped(data[:10], size="64x48", pixel_format=form)[2], errors.VideoError)
    assert isinstance(piped(b"", size="64x48", pixel_format=form)[2], errors.VideoError)


def test_a_container_by_pipe(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", flat_frames(20))
    indices, images, error = piped(path.read_bytes())
    assert error is None and [number_of(image) for image in images] == indices == list(range(20))
    _, _, error = piped(bytes(5000))
    assert isinstance(error, errors.VideoError) and "raw frames need their size" in str(error)


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", {"movflags": "faststart"}), ("a.mkv", {}), ("a.ts", {}), ("a.avi", {})]
)
def test_a_file_that_is_cut_gives_what_is_there(tmp_path: Path, name: str, options: dict[str, str]) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = write(tmp_path / name, textured_frames(60), codec, options=options)
    whole = [image for _, image in decode(path)]
    cut(path, 0.6)
    indices, images, error = read(str(path))
    assert 5 < len(indices) < 60 and indices == list(range(len(indices)))
    assert all(np.array_equal(image, other) for image, other in zip(images, whole, strict=False))
    assert isinstance(error, errors.SourceError) and f"broke off after {len(indices)} frames: " in str(error)


def test_damage_ends_a_file(tmp_path: Path) -> None:
    path = corrupt(write(tmp_path / "a.mp4", textured_frames(40), codec_options=FRAGILE), 24)
    indices, _, error = read(str(path))
    assert 10 < len(indices) < 40 and isinstance(error, errors.SourceError) and "damaged" in str(error)


def test_what_never_gave_a_frame_is_no_broken_source(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 99)
    headless = cut(write(tmp_path / "cut.mp4", textured_frames(40)), 0.6)  # its index stood at the end
    closed = socket.socket()
    closed.bind(("127.0.0.1", 0))  # nobody listens there
    for source, text in (
        (tmp_path / "empty.mp4", "empty"),
        (tmp_path / "text.mp4", "not a video"),
        (headless, "cut short"),
        (tmp_path, "folder"),
        (tmp_path / "none.mp4", "no such file, expected a video file, a device, a URL"),
        (f"tcp://127.0.0.1:{closed.getsockname()[1]}", "refused"),
        ("/dev/null", ""),
    ):
        _, _, error = read(str(source))
        assert type(error) is errors.VideoError and text in str(error), error
    closed.close()


def test_options_that_do_not_fit() -> None:
    for options, text in (
        ({"size": "0x4"}, "size: got '0x4', expected WIDTHxHEIGHT"),
        ({"size": "64"}, "size"),
        ({"size": "64x48", "pixel_format": "purple"}, "pixel format: got 'purple'"),
        ({"pixel_format": "rgb24"}, "give their size, too"),
        ({"container": "rawvideo"}, "raw frames have none of their own"),
        ({"every": 0}, "every: got 0"),
        ({"index_by": "clock"}, "index: got 'clock', expected one of frames, time"),
    ):
        with pytest.raises(errors.UsageError, match=text):
            LiveSource("-", **options)  # type: ignore[arg-type]


def test_indices_by_time_have_gaps_where_frames_were_lost(tmp_path: Path) -> None:
    times = [0, 40, 80, 200, 240, 480, 481, 520]  # 25 a second; two of them nearly at once
    path = write(tmp_path / "a.mkv", flat_frames(8), times_ms=times)
    assert read(str(path))[0] == list(range(8))
    indices = read(str(path), index_by="time")[0]
    rate = LiveRate(path).rate
    want, newest = [], -1
    for moment in times:
        newest = max(newest + 1, round(moment / 1000 * rate))
        want.append(newest)
    assert indices == want and (np.diff(indices) > 0).all() and (np.diff(indices) > 1).any()


class LiveRate:
    def __init__(self, path: Path) -> None:
        import av

        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            self.rate = float(stream.average_rate or stream.guessed_rate)


def test_ffmpegs_own_sources_and_cancel() -> None:
    source = LiveSource("testsrc2=size=64x48:rate=25", container="lavfi")
    assert source.live
    seen = 0
    for index, image in source:
        assert index == seen and image.shape == (48, 64, 3)
        seen += 1
        if seen == 30:
            source.cancel()
    assert seen == 30


def test_a_pipe_in_which_nothing_comes_can_be_left() -> None:
    reading, writing = os.pipe()
    source = LiveSource("-", size="64x48", pipe=reading)
    told: list[Any] = []
    thread = threading.Thread(target=lambda: told.append(list(source)))
    thread.start()
    os.write(writing, bytes(100))
    source.cancel()
    thread.join(60)
    assert not thread.is_alive() and told == [[]]
    os.close(reading)
    os.close(writing)


def test_a_camera_that_falls_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """MPEG-TS over TCP that stops in the middle without closing: what came is given, then it counts as broken off."""
    monkeypatch.setattr(live, "SILENCE_SECONDS", 2.0)
    data = write(tmp_path / "a.ts", textured_frames(60)).read_bytes()
    with served(data[: len(data) * 3 // 4], keep=True) as url:
        indices, _, error = read(url)
    assert indices and isinstance(error, errors.SourceError) and "silent for 2 s" in str(error), error


def test_damaged_frames_of_a_camera_are_left_out(tmp_path: Path) -> None:
    path = corrupt(write(tmp_path / "a.mkv", textured_frames(30), "mjpeg", "yuvj420p"), 12, seed=1)
    assert isinstance(read(str(path))[2], errors.SourceError)  # in a file it is an error
    with served(path.read_bytes()) as url:
        source = LiveSource(url)
        indices = [index for index, _ in source]
    assert source.damaged == 1 and indices == [i for i in range(30) if i != 12]  # and its place stays empty


@contextmanager
def served(data: bytes, *, keep: bool = False) -> Iterator[str]:
    """The URL of a server that sends `data` once; keep: and then neither sends nor hangs up."""
    server = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)
            if keep:
                over.wait(60)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        server.close()
