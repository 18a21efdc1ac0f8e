"""Files from anywhere: a pipe under a file's name, JSON that may be huge, nested without end, or no JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from vtn_export.errors import VtnError

MAX_JSON_BYTES = 16 << 20


def open_regular(path: Path) -> BufferedReader:
    """The file to read, if it is one: a pipe would be waited for, a device may have no end. Raises OSError."""
    # a pipe without a writer is opened at once, too; Windows has no such flag
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def sha256(path: Path) -> str:
    """Hex digest of a file. Raises OSError."""
    with open_regular(path) as stream:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(stream, "sha256").hexdigest()
        digest = hashlib.sha256()  # Python 3.10, which JetPack 6 has
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def check_regular(path: Path, what: str, kind: type[VtnError]) -> None:
    """Raises `kind` unless there is a file that may be read: asked before long work. what: the word for it."""
    try:
        open_regular(path).close()
    except (FileNotFoundError, IsADirectoryError):
        raise kind(f"{what}: no file {path}") from None
    except OSError as error:
        raise kind(f"{what} {path}: cannot be read ({error.strerror})") from None


def reason_of(error: Exception) -> str:
    """What is wrong, without the number and the path that an OSError puts around it."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The document in a file of up to `max_bytes`.

    Raises OSError (also for what is no regular file), or ValueError with what is wrong: larger, not UTF-8, not JSON,
    nested too deep for the parser, a number of more digits than Python converts. No more than `max_bytes` + 1 are read.
    """
    with open_regular(path) as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes >> 20} MiB")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
