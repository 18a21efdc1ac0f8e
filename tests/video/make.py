"""Real video files for tests, written by PyAV; and ways to break them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

# level of frame i in `flat_frames`: neighbours stay apart after a lossy codec
STEP = 10
# H.264 that noise cannot pass for: CABAC, the default, reads most noise as some picture without a word. Key frames so
# often that a damaged one is large.
FRAGILE = {"g": "12", "coder": "cavlc"}


class Pipe:
    """A target that cannot seek: what is written to it has no length or index in its header."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> int:
        self.data += data
        return len(data)


def flat_frames(count: int, height: int = 48, width: int = 64) -> list[npt.NDArray[np.uint8]]:
    """Frames whose gray level tells their number: uint8 `[height, width, 3]`."""
    return [np.full((height, width, 3), 10 + STEP * i, np.uint8) for i in range(count)]


def textured_frames(count: int, height: int = 64, width: int = 96) -> list[npt.NDArray[np.uint8]]:
    """Moving noise: enough bytes that cuts and damage hit something."""
    base = np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return [np.roll(base, 3 * i, axis=1) // 2 + np.uint8(3 * i) for i in range(count)]


def number_of(frame: npt.NDArray[np.uint8]) -> int:
    """The number that `flat_frames` painted."""
    return round((float(frame.mean()) - 10) / STEP)


def write(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8]],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    *,
    codec_options: dict[str, str] | None = None,
    options: dict[str, str] | None = None,
    times_ms: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 1000),
    pipe: str | None = None,
) -> Path:
    """Encode RGB frames into `path`.

    times_ms: presentation times, stored in units of `time_base` seconds. pipe: the format to write
    without seeking back, as into a pipe.
    """
    target: Any = Pipe() if pipe else str(path)
    with av.open(target, "w", format=pipe, options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.options = codec_options or {}
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width, stream.pix_fmt = *image.shape[:2], pix_fmt
                if times_ms is not None:
                    stream.codec_context.time_base = time_base
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = round(times_ms[number] / 1000 / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if pipe:
        path.write_bytes(target.data)
    return path


def stream_like(container: Any, template: Any) -> Any:
    """A stream to copy packets into. PyAV 14 gave this a name of its own."""
    if hasattr(container, "add_stream_from_template"):
        return container.add_stream_from_template(template)
    return container.add_stream(template=template)


def write_without_frames(path: Path) -> Path:
    """A container with a header for one video stream and nothing in it."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def write_sound(path: Path, cover: bytes = b"") -> Path:
    """AAC sound alone; `cover`: a PNG to put in front as the ID3 cover picture."""
    with av.open(str(path), "w", format="adts" if path.suffix == ".aac" else None) as container:
        stream: Any = container.add_stream("aac", rate=44100)
        for number in range(40):
            samples = np.zeros((2, 1024), np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
            frame.rate, frame.pts = 44100, 1024 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if cover:
        body = b"\x00image/png\x00\x03\x00" + cover
        tag = b"APIC" + struct.pack(">IH", len(body), 0) + body
        size = bytes(len(tag) >> shift & 0x7F for shift in (21, 14, 7, 0))
        path.write_bytes(b"ID3\x03\x00\x00" + size + tag + path.read_bytes())
    return path


def png(height: int, width: int) -> bytes:
    """A gray PNG."""
    encoder: Any = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "rgb24"
    encoder.time_base = Fraction(1, 25)
    image = np.full((height, width, 3), 128, np.uint8)
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])


def turn(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write the display matrix [a b; c d] (of -1, 0, 1) into an MP4's track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 36  # after the type, version and flags, and fixed fields
    assert struct.unpack_from(">9i", data, at) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def cut(path: Path, keep: float) -> Path:
    """Keep the first `keep` (0..1) of the bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def corrupt(path: Path, packet: int, seed: int = 0) -> Path:
    """Overwrite the middle third of a video packet (in decoding order) with noise; see FRAGILE."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[packet].pos, packets[packet].size
    assert position is not None
    data = bytearray(path.read_bytes())
    start, length = position + size // 3, size // 3
    data[start : start + length] = random.Random(seed).randbytes(length)
    path.write_bytes(data)
    return path
