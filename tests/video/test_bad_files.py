"""Every way a file can be wrong gives one line, and nothing on stderr from FFmpeg."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.video import make
from vtn_export.errors import VideoError
from vtn_export.spec import Preprocessing
from vtn_export.video import ClipReader, count_frames, decode, probe

FASTSTART = {"movflags": "+faststart"}
SMALL = Preprocessing(short_side=16, crop_size=16, num_frames=8)


def refuse(path: Path, expected: str, *readers: Callable[[Path], Any]) -> None:
    """Each of `readers` (default: all ways in) raises a VideoError of one line that says `expected`."""
    ways: tuple[Callable[[Path], Any], ...] = readers or (
        probe,
        count_frames,
        lambda p: list(decode(p)),
        lambda p: list(decode(p, [0])),
        lambda p: ClipReader(p, SMALL),
    )
    for read in ways:
        with pytest.raises(VideoError) as caught:
            read(path)
        message = str(caught.value)
        assert expected in message and message.startswith(f"{path}: "), message
        assert "\n" not in message and len(message) < 300 + len(str(path))
        assert caught.value.exit_code == 6
        assert caught.value.__context__ is None or caught.value.__suppress_context__  # no av traceback


def read_all(path: Path) -> int:
    return sum(len(index) for _, index in ClipReader(path, SMALL, None))


def test_missing(tmp_path: Path) -> None:
    refuse(tmp_path / "a.mp4", "no such file")


def test_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "got a folder, expected a video file")


def test_file_inside_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    refuse(tmp_path / "a" / "b.mp4", "cannot be read (Not a directory)")


def test_name_too_long(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"cannot be read \(File name too long\)"):
        probe(tmp_path / ("a" * 400))


def test_null_byte() -> None:
    with pytest.raises(VideoError, match="cannot be read"):
        probe("a\0b.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    refuse(tmp_path / "a.mp4", "got a pipe or device")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make.write(tmp_path / "a.mp4", make.flat_frames(2))
    path.chmod(0)
    if os.access(path, os.R_OK):  # root may read everything: the refusal itself is simulated

        def refused(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refused)
    refuse(path, "no permission to read it")


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    refuse(tmp_path / "a.mp4", "got an empty file")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts", "a"])
@pytest.mark.parametrize("content", ["zeros", "noise", "text"])
def test_not_a_video(tmp_path: Path, name: str, content: str) -> None:
    data = {"zeros": bytes(20000), "noise": os.urandom(20000), "text": b"hello, world\n" * 900}[content]
    (tmp_path / name).write_bytes(data)
    refuse(tmp_path / name, "")


def test_text(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n" * 100)
    refuse(tmp_path / "notes.txt", "got a text file, expected a video")


@pytest.mark.parametrize("name", ["a.m4a", "a.mka", "a.aac"])
def test_sound_alone(tmp_path: Path, name: str) -> None:
    refuse(make.write_sound(tmp_path / name), "got audio, expected a video stream")


def test_sound_with_a_cover_picture(tmp_path: Path) -> None:
    import av.stream

    if not hasattr(av.stream, "Disposition"):
        pytest.skip("this PyAV does not tell cover pictures from videos")
    path = make.write_sound(tmp_path / "a.aac", cover=make.png(20, 30))
    refuse(path, "got audio and video, expected a video stream")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.avi", "without frames"),
        ("a.mkv", "ends before its first frame"),
        ("a.mp4", "got no streams, expected a video stream"),
    ],
)
def test_no_frames(tmp_path: Path, name: str, expected: str) -> None:
    refuse(make.write_without_frames(tmp_path / name), expected)


@pytest.mark.parametrize("keep", [0.03, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mp4", "libx264", FASTSTART),
        ("a.mov", "libx264", FASTSTART),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.avi", "mpeg4", {}),
    ],
    ids=["mp4", "mp4-faststart", "mov-faststart", "mkv", "webm", "avi"],
)
def test_cut_short(tmp_path: Path, name: str, codec: str, options: dict[str, str], keep: float) -> None:
    path = make.write(tmp_path / name, make.textured_frames(20), codec, options=options)
    refuse(make.cut(path, keep), "as its container declares: cut short")


def test_fewer_frames_than_the_index_lists(tmp_path: Path) -> None:
    """The boxes' sizes are right, but samples that the index points at are not there."""
    path = make.write(tmp_path / "a.mp4", make.textured_frames(20), codec_options={"g": "4"}, options=FASTSTART)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") - 4
    keep = (len(data) - at) // 2
    data[at : at + 4] = keep.to_bytes(4, "big")
    path.write_bytes(data[: at + keep])
    refuse(path, "frames, expected 20 as its index lists", count_frames, read_all)


@pytest.mark.parametrize("suffix", ["ts", "h264"])
def test_the_last_frame_cut_where_no_length_is_known(tmp_path: Path, suffix: str) -> None:
    path = make.write(tmp_path / f"a.{suffix}", make.textured_frames(40), codec_options={"g": "12"})
    make.cut(path, 0.9)
    for _ in range(5):  # it must not depend on which thread was faster
        refuse(path, "damaged at or just after frame", count_frames, read_all)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
@pytest.mark.parametrize("seed", range(3))
def test_damage_in_the_middle(tmp_path: Path, name: str, codec: str, seed: int) -> None:
    """FFmpeg would paint over it; features of painted frames would pass for real ones."""
    options = make.FRAGILE if codec == "libx264" else {"g": "12"}
    path = make.write(tmp_path / name, make.textured_frames(40), codec, codec_options=options)
    make.corrupt(path, 24, seed)
    refuse(path, "damaged at or just after frame", lambda p: list(decode(p)), read_all)


def test_damage_behind_the_last_wanted_frame_does_not_matter(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.mp4", make.textured_frames(40), codec_options=make.FRAGILE, options=FASTSTART)
    make.corrupt(path, 24)
    assert [number for number, _ in decode(path, [0, 5])] == [0, 5]
    refuse(path, "damaged", lambda p: list(decode(p, [0, 39])))


def test_ffmpeg_is_silent(tmp_path: Path) -> None:
    """In a process of its own: what FFmpeg prints goes past Python's sys.stderr."""
    good = make.write(tmp_path / "good.mp4", make.textured_frames(40), codec_options=make.FRAGILE, options=FASTSTART)
    damaged, cut, noise = (tmp_path / name for name in ("damaged.mp4", "cut.ts", "noise.mp4"))
    damaged.write_bytes(good.read_bytes())
    make.corrupt(damaged, 0)
    make.cut(make.write(cut, make.textured_frames(40), codec_options={"g": "12"}), 0.9)
    noise.write_bytes(b"\0" * 4000)
    code = """
import sys
from vtn_export.errors import VideoError
from vtn_export.video import count_frames, decode
for path in sys.argv[1:]:
    for read in (count_frames, lambda p: list(decode(p))):
        try:
            read(path)
        except VideoError as error:
            print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, *map(str, (good, damaged, cut, noise))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert len(run.stdout.splitlines()) == 5  # two ways into each bad file; counting packets sees no damage


def test_the_import_is_light() -> None:
    code = "import sys, vtn_export.video; print([m for m in ('av', 'torch', 'onnx') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
