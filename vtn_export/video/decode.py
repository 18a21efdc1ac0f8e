"""Frames of a video file, upright and in RGB, by their number in the video."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vtn_export.errors import UsageError, VideoError
from vtn_export.video.source import REPAIR, load_av, open_video

PathLike = str | os.PathLike[str]

# One packet is one shown frame in these. Not in VP8 (hidden reference frames), MPEG-4 part 2 in AVI
# (packed B-frames, skipped frames) and others, which are counted by decoding.
ONE_PACKET_ONE_FRAME = {"h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp9", "mjpeg", "prores", "ffv1"}


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video without reading it whole.

    `width`, `height`: pixels of the upright picture, of the first frame. `rotation`: degrees by which
    the stored picture is turned clockwise to be upright (0, 90, 180, 270). `declared_frames`: what
    the container says, None where it does not. `average_rate`: frames a second. `duration`: seconds.
    """

    path: Path
    container: str
    codec: str
    width: int
    height: int
    rotation: int
    declared_frames: int | None
    average_rate: float | None
    duration: float | None


def probe(path: PathLike) -> VideoInfo:
    """Open the video and decode its first frame. Raises VideoError, also when there is no frame."""
    with open_video(path, threads=1) as (container, stream):
        frame = next(_frames(path, container, stream), None)
        if frame is None:
            raise no_frames(path)
        transposed, _, _ = orientation = _orientation(frame)
        width, height = (frame.height, frame.width) if transposed else (frame.width, frame.height)
        duration = None
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        elif container.duration is not None:
            duration = container.duration / load_av().time_base
        return VideoInfo(
            path=Path(path),
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            rotation=ROTATIONS.get(orientation, 0),
            declared_frames=_declared_frames(stream),
            average_rate=float(stream.average_rate) if stream.average_rate else None,
            duration=duration,
        )


def count_frames(path: PathLike, progress: Callable[[int], None] | None = None) -> int:
    """How many frames the video has, exactly: what `decode` yields.

    Without decoding where the packets can be trusted (`count_packets`), else by decoding every frame
    without converting it. progress: called with the frames counted so far. Raises VideoError.
    """
    trusted = count_packets(path)
    if trusted is not None:
        return trusted
    count = 0
    with open_video(path) as (container, stream):
        for _ in _frames(path, container, stream):
            count += 1
            if progress is not None:
                progress(count)
    if count == 0:
        raise no_frames(path)
    return count


def count_packets(path: PathLike) -> int | None:
    """How many frames the video has, from its packets alone; None where they do not tell for sure.

    They do where each packet is one frame, the container declares the same number, and none is cut
    off by an edit list or stands before the first key frame. Raises VideoError for a video that ends
    before its index does.
    """
    with open_video(path) as (container, stream):
        declared = _declared_frames(stream)
        if declared is None:
            return None
        trusted, first, packets = stream.codec_context.name in ONE_PACKET_ONE_FRAME, None, 0
        for packet in container.demux(stream):
            if packet.dts is None and packet.size == 0:
                continue  # PyAV's flush packet
            if packet.is_corrupt:  # the file ends inside it
                raise _too_few(path, packets, f"{declared} as its index lists")
            packets += 1
            if first is None:
                first = packet.pts
                trusted &= first is not None and bool(packet.is_keyframe)
            trusted &= packet.size > 0 and not packet.is_discard
            # a picture shown before the first key frame refers to one that was cut off
            trusted &= first is not None and packet.pts is not None and packet.pts >= first
    # Fewer than declared is no error: MP4 does not deliver what an edit list cuts off, AVI declares
    # a frame for every tick of its clock, also where it has none.
    return packets if trusted and packets == declared and packets > 0 else None


def decode(
    path: PathLike,
    indices: Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    *,
    cancelled: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (frame index, frame) for every wanted frame, upright, in order of presentation.

    indices: sorted, repeats allowed; None is every frame. A frame that is wanted several times is
    yielded several times, as the same array. Frames are uint8 RGB `[H, W, 3]`, contiguous, each of its
    own size where the size changes in the stream. Frames count, not time: a variable frame rate
    changes nothing. Pixels are taken as square. Decoding runs on all cores; only wanted frames are
    converted to RGB, and nothing is decoded after the last.

    cancelled: asked between packets; once true, the iterator ends.
    Raises VideoError for a video without frames, with damaged ones before the last wanted frame, or
    with fewer frames than wanted; UsageError for indices that are not sorted.
    """
    wanted = None if indices is None else np.asarray(indices, dtype=np.int64)
    if wanted is not None and wanted.size and (wanted[0] < 0 or (np.diff(wanted) < 0).any()):
        raise UsageError("indices: expected sorted frame indices, 0 or more")
    return _decode(path, wanted, cancelled)


def _decode(
    path: PathLike, wanted: npt.NDArray[np.int64] | None, cancelled: Callable[[], bool]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    if wanted is not None and not wanted.size:
        return
    load_av()
    from av.video.reformatter import VideoReformatter

    position, number = 0, -1
    with open_video(path) as (container, stream):
        converter = VideoReformatter()  # one for all frames: it keeps its tables while sizes stay
        for number, frame in enumerate(_frames(path, container, stream, cancelled)):
            if wanted is None:
                yield number, to_rgb(converter, frame)
            elif wanted[position] == number:
                image = to_rgb(converter, frame)
                while position < wanted.size and wanted[position] == number:
                    yield number, image
                    position += 1
                if position == wanted.size:
                    return
    if cancelled():
        return
    if number < 0:
        raise no_frames(path)
    if wanted is not None:
        raise _too_few(path, number + 1, f"frame {wanted[-1]} too")


def _frames(
    path: PathLike, container: Any, stream: Any, cancelled: Callable[[], bool] = lambda: False
) -> Iterator[Any]:
    """Decoded PyAV frames in order of presentation. Raises VideoError at the first damaged one.

    FFmpeg itself would paint over the damage (error concealment) and go on.
    """
    av = load_av()
    number, key_frame_seen = 0, False
    for packet in container.demux(stream):
        if cancelled():
            return
        key_frame_seen |= bool(packet.is_keyframe)
        try:
            frames = packet.decode()
        except av.FFmpegError:
            # A recording that starts between key frames (a broadcast) cannot be decoded up to the first.
            if key_frame_seen:
                raise damaged(path, number) from None
            continue
        for frame in frames:
            if frame.is_corrupt:
                raise damaged(path, number)
            yield frame
            number += 1


def to_rgb(converter: Any, frame: Any) -> npt.NDArray[np.uint8]:
    """uint8 RGB `[H, W, 3]`, upright and contiguous; 10-bit, gray and 4:4:4 sources included."""
    image = converter.reformat(frame, format="rgb24").to_ndarray()
    transposed, flip_rows, flip_columns = _orientation(frame)
    if transposed:
        image = image.transpose(1, 0, 2)
    if flip_rows:
        image = image[::-1]
    if flip_columns:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


# (transposed, rows reversed, columns reversed) -> degrees clockwise; the mirrored ones have no angle
ROTATIONS = {(True, False, True): 90, (False, True, True): 180, (True, True, False): 270}


def _orientation(frame: Any) -> tuple[bool, bool, bool]:
    """How the stored picture becomes upright: (transpose, then reverse rows, then reverse columns).

    From the display matrix [a b u; c d v; x y w] of 32-bit fixed-point numbers, which sends the
    stored pixel (x, y) to (a·x + c·y, b·x + d·y); an angle between right angles goes to the nearest.
    """
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return False, False, False
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(side_data), np.int32))
    if math.hypot(b, c) > math.hypot(a, d):
        return True, b < 0, c < 0
    return False, d < 0, a < 0


def _declared_frames(stream: Any) -> int | None:
    if stream.frames > 0:
        return int(stream.frames)
    # Matroska has no such field; its writers' statistics tag is one ("-eng" where it has a language)
    for name, value in stream.metadata.items():
        if name.split("-")[0] == "NUMBER_OF_FRAMES" and value.isdigit() and int(value) > 0:
            return int(value)
    return None


def no_frames(path: PathLike) -> VideoError:
    return VideoError(f"{path}: got a video stream without frames, expected at least 1")


def _too_few(path: PathLike, got: int, expected: str) -> VideoError:
    return VideoError(f"{path}: got {got} frames, expected {expected}; {REPAIR}")


def damaged(path: PathLike, number: int) -> VideoError:
    return VideoError(f"{path}: damaged at or just after frame {number}; {REPAIR}")
