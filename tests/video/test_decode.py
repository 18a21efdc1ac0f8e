from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video import make
from vtn_export.video import count_frames, count_packets, decode, probe

# file name, codec, pixel format, can its packets be counted
KINDS = [
    ("a.mp4", "libx264", "yuv420p", True),
    ("a.mov", "libx264", "yuv420p", True),
    ("b.mp4", "mpeg4", "yuv420p", False),
    ("a.mkv", "libx264", "yuv420p", False),
    ("a.webm", "libvpx-vp9", "yuv420p", False),
    ("b.webm", "libvpx", "yuv420p", False),
    ("a.avi", "mpeg4", "yuv420p", False),
    ("b.avi", "mjpeg", "yuvj420p", True),
    ("a.ts", "libx264", "yuv420p", False),
    ("a.h264", "libx264", "yuv420p", False),
    ("a.mpg", "mpeg2video", "yuv420p", False),
    ("a.flv", "libx264", "yuv420p", False),
    ("a.gif", "gif", "rgb8", False),
]


@pytest.mark.parametrize(("name", "codec", "pix_fmt", "countable"), KINDS)
def test_every_container(tmp_path: Path, name: str, codec: str, pix_fmt: str, countable: bool) -> None:
    path = make.write(tmp_path / name, make.flat_frames(20), codec, pix_fmt)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert info.declared_frames in (20, None)
    assert count_frames(path) == 20
    assert count_packets(path) == (20 if countable else None)
    frames = list(decode(path))
    assert [number for number, _ in frames] == list(range(20))
    # palette and chroma rounding move a level by a few, numbers are 6 apart
    tolerance = 20 if codec == "gif" else make.STEP / 2  # a palette of 256 colours has few grays
    for number, frame in frames:
        assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
        assert abs(float(frame.mean()) - 10 - make.STEP * number) < tolerance


@pytest.mark.parametrize(
    ("height", "width", "codec", "pix_fmt", "suffix"),
    [
        (1, 1, "ffv1", "bgr0", "mkv"),
        (1, 1, "libvpx-vp9", "yuv420p", "webm"),
        (5, 3, "ffv1", "yuv444p", "mkv"),
        (67, 101, "libx264", "yuv444p", "mp4"),
        (67, 101, "ffv1", "yuv420p", "mkv"),
        (48, 64, "libx264", "yuv420p10le", "mp4"),
        (48, 64, "ffv1", "gray", "mkv"),
        (48, 64, "ffv1", "gray16le", "mkv"),
        (48, 64, "prores_ks", "yuv422p10le", "mov"),
        (48, 64, "png", "rgba", "mov"),
        (48, 64, "rawvideo", "bgr24", "avi"),
    ],
)
def test_sizes_and_pixel_formats(
    tmp_path: Path, height: int, width: int, codec: str, pix_fmt: str, suffix: str
) -> None:
    path = make.write(tmp_path / f"a.{suffix}", make.flat_frames(5, height, width), codec, pix_fmt)
    frames = [frame for _, frame in decode(path)]
    assert [frame.shape for frame in frames] == [(height, width, 3)] * 5
    levels = [float(frame.mean()) for frame in frames]
    assert np.abs(np.diff(levels) - make.STEP).max() < make.STEP and abs(levels[0] - 10) < make.STEP


def test_colours_are_rgb(tmp_path: Path) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[...] = 200, 100, 30
    path = make.write(tmp_path / "a.mp4", [image], "libx264", "yuv444p")
    _, frame = next(decode(path))
    assert np.abs(frame.astype(int) - image).max() <= 3


TURNS: dict[str, tuple[tuple[int, int, int, int], int, Any]] = {
    "none": ((1, 0, 0, 1), 0, lambda f: f),
    "90 clockwise": ((0, 1, -1, 0), 90, lambda f: np.rot90(f, -1)),
    "180": ((-1, 0, 0, -1), 180, lambda f: np.rot90(f, 2)),
    "270 clockwise": ((0, -1, 1, 0), 270, lambda f: np.rot90(f, 1)),
    "mirrored": ((-1, 0, 0, 1), 0, lambda f: f[:, ::-1]),
    "upside down": ((1, 0, 0, -1), 0, lambda f: f[::-1]),
    "transposed": ((0, 1, 1, 0), 0, lambda f: f.transpose(1, 0, 2)),
    "zero matrix": ((0, 0, 0, 0), 0, lambda f: f),
}


@pytest.mark.parametrize("turn", TURNS)
def test_frames_come_upright(tmp_path: Path, turn: str) -> None:
    matrix, degrees, expected = TURNS[turn]
    path = make.write(tmp_path / "a.mp4", make.textured_frames(2, 32, 64))
    stored = [frame for _, frame in decode(path)]
    make.turn(path, *matrix)
    upright = [frame for _, frame in decode(path)]
    info = probe(path)
    assert info.rotation == degrees
    for frame, reference in zip(upright, stored, strict=True):
        assert (frame == expected(reference)).all() and frame.flags.c_contiguous
        assert frame.shape[:2] == (info.height, info.width)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate_counts_frames(tmp_path: Path, name: str) -> None:
    times = [0, 40, 50, 400, 1000, 1010, 1900]
    path = make.write(tmp_path / name, make.flat_frames(7), times_ms=times)
    assert count_frames(path) == 7
    assert [make.number_of(frame) for _, frame in decode(path)] == list(range(7))


@pytest.mark.parametrize(("codec", "pix_fmt"), [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p"), ("libx264", "yuv420p")])
def test_ticks_without_a_frame_in_avi(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    """AVI knows no times: a pause is frames declared and not there."""
    path = make.write(
        tmp_path / "a.avi",
        make.flat_frames(6),
        codec,
        pix_fmt,
        codec_options={"bf": "0"},
        times_ms=[0, 40, 80, 240, 280, 480],
        time_base=Fraction(1, 25),
    )
    assert probe(path).declared_frames == 13
    assert count_packets(path) is None and count_frames(path) == 6
    assert [make.number_of(frame) for _, frame in decode(path)] == list(range(6))


@pytest.mark.parametrize(("name", "pipe"), [("a.mkv", "matroska"), ("a.ts", "mpegts"), ("a.h264", "h264")])
def test_unknown_length(tmp_path: Path, name: str, pipe: str) -> None:
    path = make.write(tmp_path / name, make.flat_frames(23), pipe=pipe)
    info = probe(path)
    assert info.declared_frames is None and (pipe == "mpegts" or info.duration is None)
    seen: list[int] = []
    assert count_frames(path, seen.append) == 23 and seen == list(range(1, 24))


def test_fragmented_mp4(tmp_path: Path) -> None:
    path = make.write(
        tmp_path / "a.mp4", make.flat_frames(20), pipe="mp4", options={"movflags": "frag_keyframe+empty_moov"}
    )
    assert count_packets(path) is None
    assert count_frames(path) == 20


@pytest.mark.parametrize("trim", [1, 3, 5, 10, 13])
def test_frames_cut_off_by_an_edit_list_do_not_count(tmp_path: Path, trim: int) -> None:
    """Trimmed on a phone: some frames are decoded and dropped, whole groups before them not even read."""
    path = make.write(
        tmp_path / "a.mp4",
        make.flat_frames(20),
        times_ms=[40 * (i - trim) for i in range(20)],
        codec_options={"g": "4"},
        options={"avoid_negative_ts": "disabled"},
    )
    assert probe(path).declared_frames == 20
    assert count_packets(path) is None
    assert count_frames(path) == 20 - trim
    assert [make.number_of(frame) for _, frame in decode(path)] == list(range(trim, 20))


def test_number_of_frames_tag_of_matroska(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.mkv", make.flat_frames(9))
    assert count_packets(path) is None
    with_tag = tmp_path / "b.mkv"
    remux_with_tag(path, with_tag, "NUMBER_OF_FRAMES", "9")
    assert count_packets(with_tag) == 9
    remux_with_tag(path, with_tag, "NUMBER_OF_FRAMES-eng", "12")  # a stale tag is no error
    assert count_packets(with_tag) is None and count_frames(with_tag) == 9


def remux_with_tag(source: Path, target: Path, name: str, value: str) -> None:
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = make.stream_like(new, old.streams.video[0])
        stream.metadata[name] = value
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_size_changes_in_the_stream(tmp_path: Path, suffix: str) -> None:
    parts = [
        make.write(tmp_path / f"{i}.{suffix}", make.flat_frames(6, *size), codec_options={"bf": "0"})
        for i, size in enumerate([(48, 64), (80, 96)])
    ]
    path = tmp_path / f"both.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert [frame.shape[:2] for _, frame in decode(path)] == [(48, 64)] * 6 + [(80, 96)] * 6
    assert [make.number_of(frame) for _, frame in decode(path)] == [*range(6), *range(6)]


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_a_recording_that_starts_between_key_frames(tmp_path: Path, suffix: str) -> None:
    path = make.write(tmp_path / f"a.{suffix}", make.textured_frames(40), codec_options={"g": "12"})
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 6 // 188 * 188 :])
    frames = list(decode(path))
    assert 20 < len(frames) < 40 and [number for number, _ in frames] == list(range(len(frames)))
    assert count_frames(path) == len(frames)


def test_a_picture_is_a_video_of_one_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(make.png(20, 30))
    assert count_frames(path) == 1
    assert next(decode(path))[1].shape == (20, 30, 3)
