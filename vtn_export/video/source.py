"""Opening a video file: everything that can be wrong with it becomes one VideoError."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vtn_export.deps import require
from vtn_export.errors import VideoError

# FFmpeg plays plain text and old terminal art as video; nobody means that.
TEXT_FORMATS = {"tty", "bin", "xbin", "adf", "idf"}
REPAIR = "re-encode it (ffmpeg -i IN -c:v libx264 OUT.mp4) or use another copy"


def load_av() -> Any:
    """PyAV, silent: some versions forward FFmpeg's log to stderr unless told otherwise."""
    first = "av" not in sys.modules
    av = require("av")
    # an application that imported it before us has chosen its own level; None is silent
    if first and av.logging.get_level() is not None:
        av.logging.set_level(av.logging.PANIC)
    return av


def check_file(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path if it is a readable file with something in it. Raises VideoError.

    A file shorter than its own container says (a broken copy or download) is refused here, before
    any frame is decoded: FFmpeg would play what is left and say nothing.
    """
    file, cut = inspect_file(path)
    if cut is not None:
        raise VideoError(cut)
    return file


def inspect_file(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """`path` as a Path, and one line about how it is cut short, if it is. Raises VideoError for all else."""
    file = Path(path)
    try:
        mode = file.stat().st_mode
        if stat.S_ISDIR(mode):
            raise VideoError(f"{file}: got a folder, expected a video file")
        if not stat.S_ISREG(mode):
            raise VideoError(f"{file}: got a pipe or device, expected a video file; save it to a file first")
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            if size == 0:
                raise VideoError(f"{file}: got an empty file, expected a video; copy or download it again")
            declared = declared_size(stream, size)
    except FileNotFoundError:
        raise VideoError(f"{file}: no such file, expected a video") from None
    except PermissionError:
        raise VideoError(f"{file}: no permission to read it; chmod +r it or run as its owner") from None
    except (OSError, ValueError) as error:  # a name too long, a null byte, a failing disk
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise VideoError(f"{file}: cannot be read ({reason})") from None
    if declared <= size:
        return file, None
    return file, (
        f"{file}: got {size} bytes, expected at least {declared} as its container declares: cut short; "
        "copy or download it again"
    )


def declared_size(stream: BinaryIO, size: int) -> int:
    """How many bytes the file should have by its container's own sizes; 0 where it does not say.

    Knows MP4/MOV boxes, Matroska/WebM and AVI. stream: the open file, of `size` bytes.
    """
    stream.seek(0)
    head = stream.read(16)
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return _riff_size(stream, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _matroska_size(stream)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
        return _mp4_size(stream, size)
    return 0


def _mp4_size(stream: BinaryIO, size: int) -> int:
    """Walk the top-level boxes: 4 bytes of size, 4 of type, 8 of size where the first says 1."""
    position = 0
    while position + 8 <= size:
        stream.seek(position)
        head = stream.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        # 0 is "up to the end of the file"; what is not a box is something appended, not a loss
        if length < 8 or not all(0x20 <= byte < 0x7F for byte in kind):
            return 0
        position += length
    return position if position > size else 0


def _riff_size(stream: BinaryIO, size: int) -> int:
    """AVI: one RIFF chunk after the other (OpenDML files have several)."""
    position = 0
    while position + 12 <= size:
        stream.seek(position)
        head = stream.read(12)
        length = int.from_bytes(head[4:8], "little")
        # a recorder that could not seek back leaves 0 or all ones
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return 0
        position += 8 + length
        end, position = position, position + length % 2
        if end > size:
            return end
    return 0


def _matroska_size(stream: BinaryIO) -> int:
    """The end of the first Segment; all ones is a size that was not known when it was written."""
    position = 0
    for _ in range(4):  # EBML header, perhaps a Void or CRC element, Segment
        stream.seek(position)
        head = stream.read(12)
        if len(head) < 12 or not head[0]:
            return 0
        id_length = 9 - head[0].bit_length()
        if id_length > 4 or not head[id_length]:
            return 0
        size_length = 9 - head[id_length].bit_length()
        bits = 7 * size_length
        length = int.from_bytes(head[id_length : id_length + size_length], "big") & ((1 << bits) - 1)
        if length == (1 << bits) - 1:
            return 0
        position += id_length + size_length + length
        if head[:4] == b"\x18\x53\x80\x67":
            return position
    return 0


@contextmanager
def open_video(path: str | os.PathLike[str], threads: int = 0) -> Iterator[tuple[Any, Any]]:
    """The open container and its video stream, closed on exit. Raises VideoError.

    threads: of the decoder; 0 is one a core. FFmpeg's errors inside the `with` become VideoError too.
    """
    av = load_av()
    file = check_file(path)
    try:
        # "file:" so that no name is taken for a protocol; tags in a broken encoding are no reason to fail
        container = av.open(f"file:{file}", metadata_errors="replace")
    except av.error.EOFError:
        raise VideoError(f"{file}: got a file that ends before its first frame, expected a video") from None
    except av.FFmpegError as error:
        raise VideoError(f"{file}: not a video that FFmpeg can open ({reason_of(error)})") from None
    try:
        stream = video_stream(file, container)
        stream.codec_context.thread_count = threads
        # With frame threads FFmpeg may hand a frame out before it has found it damaged, if no full
        # thread's worth of frames follows: measured at the cut end of a raw H.264 stream, 3 times of
        # 4. Where `check_file` sees a cut that does no harm; elsewhere threads share a frame's slices.
        guarded = any(name in container.format.name for name in ("mp4", "matroska", "avi"))
        stream.thread_type = "AUTO" if guarded else "SLICE"
        yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"{file}: damaged ({reason_of(error)}); {REPAIR}") from None
    finally:
        container.close()


def video_stream(file: str | Path, container: Any) -> Any:
    """The first stream of pictures. Raises VideoError."""
    if container.format.name in TEXT_FORMATS:
        raise VideoError(f"{file}: got a text file, expected a video")
    # A cover picture of a music file is a "video stream" of one frame. (PyAV 12 does not tell.)
    attached = require("av.stream").__dict__.get("Disposition")
    streams = [s for s in container.streams.video if attached is None or not s.disposition & attached.attached_pic]
    if not streams:
        kinds = sorted({str(s.type) for s in container.streams})
        raise VideoError(f"{file}: got {' and '.join(kinds) or 'no streams'}, expected a video stream")
    stream = streams[0]
    if stream.codec_context is None:
        raise VideoError(f"{file}: its codec has no decoder in this FFmpeg; {REPAIR}")
    return stream


def reason_of(error: Any) -> str:
    """What FFmpeg says of an error."""
    return str(getattr(error, "strerror", None) or type(error).__name__)
