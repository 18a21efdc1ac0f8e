"""Frames as they come: from a file, a device, the network, anything else FFmpeg opens, or a pipe."""

from __future__ import annotations

import os
import select
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from vtn_export.errors import SourceError, UsageError, VideoError
from vtn_export.video.decode import damaged, no_frames, to_rgb
from vtn_export.video.source import inspect_file, load_av, reason_of, video_stream

PIPE = "-"
IndexBy = Literal["frames", "time"]
INDEX_BY: tuple[IndexBy, ...] = get_args(IndexBy)
SILENCE_SECONDS = 10.0  # of a device or network source, after which it counts as broken off
_PIPE_BUFFER = 1 << 20
_POLL_SECONDS = 0.2


# index: place in the source, rising; image: uint8 RGB `[h, w, 3]`, upright
LiveFrame = tuple[int, npt.NDArray[np.uint8]]


class LiveSource:
    """Iterate it once for its frames; `cancel` from any thread ends that.

    source: a file, a named pipe, a V4L2 device (/dev/video0), a URL that FFmpeg knows (rtsp://…), or "-": standard
    input. size: "WIDTHxHEIGHT" of raw frames, in `pixel_format`; without it a pipe has to carry a container (Matroska,
    MPEG-TS, …). container, options: FFmpeg's names of the input format and of its options, for what it cannot guess.
    every: only each such frame is given, its index unchanged. index_by: `frames` counts decoded frames; `time` takes
    their timestamps at the source's average rate, so that frames lost on the way leave a gap.

    `live`: the source does not wait for whoever reads it. Such a source may deliver damaged frames: they are left out
    and counted in `damaged`. In a file or pipe damage is an error.
    """

    def __init__(
        self,
        source: str,
        *,
        size: str | None = None,
        pixel_format: str | None = None,
        container: str | None = None,
        options: Mapping[str, str] | None = None,
        every: int = 1,
        index_by: IndexBy = "frames",
        pipe: int = 0,
    ) -> None:
        """Nothing is read yet. pipe: the file descriptor of "-". Raises VideoError, UsageError."""
        if every < 1:
            raise UsageError(f"every: got {every}, expected at least 1")
        if index_by not in INDEX_BY:
            raise UsageError(f"index: got {index_by!r}, expected one of {', '.join(INDEX_BY)}")
        self.name = "standard input" if source == PIPE else source
        self.every, self.index_by, self.damaged = every, index_by, 0
        self._cut: str | None = None
        self._stopped = threading.Event()
        self._options = dict(options or {})
        self._container = container
        self._file: Any = source
        self.live = False
        av = load_av()
        mode = _mode(source)
        if source == PIPE:
            self._file = _Pipe(pipe, self._stopped)
        elif mode is not None and stat.S_ISREG(mode):
            path, self._cut = inspect_file(source)
            self._file = f"file:{path}"  # so that no name is taken for a protocol
        elif mode is not None and stat.S_ISFIFO(mode):
            self._file = f"file:{source}"
        elif mode is not None and stat.S_ISCHR(mode):
            self.live, self._container = True, container or "v4l2"
        elif "://" in source or container:
            self.live = True
        elif mode is not None:
            raise VideoError(f"{source}: got a folder, expected a video file, a device, a URL or - for a pipe")
        else:
            raise VideoError(
                f"{source}: no such file, expected a video file, a device, a URL (rtsp://…) or - for a pipe"
            )
        if size is not None:
            width, _, height = size.partition("x")
            if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
                raise UsageError(f"size: got {size!r}, expected WIDTHxHEIGHT in pixels, as 640x480")
            self._options["video_size"] = size
            if not self.live:
                self._container = self._container or "rawvideo"
        if self._container == "rawvideo":
            if size is None:
                raise UsageError("size: raw frames have none of their own, expected WIDTHxHEIGHT")
            self._options["pixel_format"] = _known_format(av, pixel_format or "rgb24")
        elif pixel_format is not None:
            raise UsageError(
                f"pixel format: got {pixel_format!r}, expected with raw frames alone; give their size, too"
            )
        if self._container is not None and self._container not in av.formats_available:
            raise VideoError(
                f"{source}: the input format {self._container} is not in this PyAV; pipe it instead: "
                f"ffmpeg -f {self._container} -i {source} -f rawvideo -pix_fmt rgb24 - | "
                "vtn-export run BUNDLE --stream - --size WIDTHxHEIGHT"
            )

    def cancel(self) -> None:
        """End the iteration soon: after the frame at hand, at most when a silent source times out."""
        self._stopped.set()

    def __iter__(self) -> Iterator[LiveFrame]:
        """Raises VideoError where no frame was seen, SourceError where the source broke off after some."""
        seen = 0
        try:
            for number, frame in self._frames():
                seen = number + 1
                if frame is not None:
                    yield frame
            if self._stopped.is_set():
                return
            if not seen:
                raise VideoError(self._cut) if self._cut else no_frames(self.name)
            if self._cut:
                raise VideoError(self._cut)
        except VideoError as error:
            if seen and not self._stopped.is_set():
                raise SourceError(f"broke off after {seen} frames: {error}") from None
            if not self._stopped.is_set():
                raise VideoError(self._cut or str(error)) from None

    def _frames(self) -> Iterator[tuple[int, LiveFrame | None]]:
        """(number of frames before it, frame), None in place of one that `every` leaves out."""
        load_av()
        from av.video.reformatter import VideoReformatter

        converter = VideoReformatter()
        with self._opened() as (container, stream):
            clock = _Clock(stream, self.index_by)
            for number, frame in enumerate(self._decoded(container, stream)):
                if frame is None:
                    clock.skip()
                    yield number, None
                    continue
                index = clock.index(frame)
                wanted = number % self.every == 0
                yield number, (index, to_rgb(converter, frame)) if wanted else None

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        """PyAV frames in order of presentation, None for a damaged one if live. Raises VideoError for it otherwise."""
        av = load_av()
        number, key_frame_seen = 0, False
        for packet in container.demux(stream):
            if self._stopped.is_set():
                return
            key_frame_seen |= bool(packet.is_keyframe)
            if packet.is_corrupt and not self.live:  # the source ends inside it
                raise self._damage(number)
            try:
                frames = packet.decode()
            except av.FFmpegError:
                if not key_frame_seen:  # a recording that starts between key frames
                    continue
                frames = [None]
            for frame in frames:
                if frame is None or frame.is_corrupt:
                    if not self.live:
                        raise self._damage(number) from None
                    self.damaged += 1
                    frame = None
                yield frame
                number += 1

    def _damage(self, number: int) -> VideoError:
        if isinstance(self._file, _Pipe):
            return VideoError(f"{self.name}: ended inside or damaged at frame {number}")
        return damaged(self.name, number)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = load_av()
        timeout = (SILENCE_SECONDS, SILENCE_SECONDS) if self.live else None
        buffer = {"buffer_size": _PIPE_BUFFER} if isinstance(self._file, _Pipe) else {}
        try:
            container = av.open(
                self._file, format=self._container, options=self._options, timeout=timeout, metadata_errors="replace",
                **buffer,
            )  # fmt: skip
        except (av.FFmpegError, ValueError) as error:
            raise VideoError(f"{self.name}: not a video that FFmpeg can open ({self._reason(error)})") from None
        try:
            stream = video_stream(self.name, container)
            # frame threads hold frames back, and may hand one out before it is found to be damaged
            stream.thread_type = "SLICE"
            yield container, stream
        except av.FFmpegError as error:
            raise VideoError(f"{self.name}: {self._reason(error)}") from None
        finally:
            container.close()

    def _reason(self, error: Exception) -> str:
        if isinstance(error, load_av().error.ExitError):
            return f"silent for {SILENCE_SECONDS:.0f} s"
        raw = "" if self._container else "; raw frames need their size"
        return reason_of(error) + (raw if isinstance(self._file, _Pipe) else "")


class _Clock:
    """Frames' places in their source."""

    def __init__(self, stream: Any, by: IndexBy) -> None:
        rate = stream.average_rate or stream.guessed_rate if by == "time" else None
        self._rate = float(rate) if rate else None
        self._first: float | None = None
        self._newest = -1

    def skip(self) -> None:
        """A frame that cannot be shown has a place all the same."""
        self._newest += 1

    def index(self, frame: Any) -> int:
        place = self._newest + 1
        if self._rate is not None and frame.time is not None:
            if self._first is None:
                self._first = frame.time
            place = max(place, round((frame.time - self._first) * self._rate))
        self._newest = place
        return place


class _Pipe:
    """A file descriptor as PyAV reads it, in pieces as they come; it looks up now and then whether to stop."""

    def __init__(self, descriptor: int, stopped: threading.Event) -> None:
        self._descriptor, self._stopped = descriptor, stopped

    def read(self, size: int) -> bytes:
        while not self._stopped.is_set():
            if select.select([self._descriptor], [], [], _POLL_SECONDS)[0]:
                return os.read(self._descriptor, size)
        return b""


def _mode(source: str) -> int | None:
    """The kind of file that `source` names, if it does."""
    if source == PIPE:
        return None
    try:
        return Path(source).stat().st_mode
    except (OSError, ValueError):
        return None


def _known_format(av: Any, name: str) -> str:
    try:
        av.VideoFormat(name)
    except ValueError:
        raise UsageError(f"pixel format: got {name!r}, expected one of FFmpeg's, as rgb24, bgr24, nv12") from None
    return name
