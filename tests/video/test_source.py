from __future__ import annotations

import io
import struct

from vtn_export.video.source import declared_size


def test_box_sizes() -> None:
    """The walkers over container sizes, on what a file may hold besides the usual."""

    def declared(data: bytes) -> int:
        return declared_size(io.BytesIO(data), len(data))

    def box(kind: bytes, body: bytes, size: int | None = None) -> bytes:
        return struct.pack(">I4s", len(body) + 8 if size is None else size, kind) + body

    start = box(b"ftyp", b"isom" * 3)
    assert declared(start + box(b"mdat", b"x" * 50)) == 0
    assert declared(start + box(b"mdat", b"x" * 50, 59)) == len(start) + 59
    assert declared(start + box(b"mdat", b"x" * 50, 0)) == 0  # up to the end of the file
    assert declared(start + struct.pack(">I4sQ", 1, b"mdat", 70) + b"x" * 50) == len(start) + 70
    assert declared(start + bytes(100)) == 0  # padding behind the last box
    assert declared(start[:7]) == 0
    riff = struct.pack("<4sI4s", b"RIFF", 24, b"AVI ") + b"x" * 20
    assert declared(riff) == 0 and declared(riff[:-1]) == 32
    assert declared(riff + struct.pack("<4sI4s", b"RIFF", 24, b"AVIX") + b"x" * 10) == 64
    assert declared(struct.pack("<4sI4s", b"RIFF", 0, b"AVI ") + b"x" * 20) == 0
    ebml = b"\x1a\x45\xdf\xa3\x84abcd"
    assert declared(ebml + b"\x18\x53\x80\x67\x8a" + b"x" * 10) == len(ebml) + 15
    assert declared(ebml + b"\x18\x53\x80\x67\x8a" + b"x" * 7) == len(ebml) + 15
    assert declared(ebml + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"x" * 9) == 0  # unknown
    assert declared(ebml + b"\xec\x82xx" + b"\x18\x53\x80\x67\xa0" + b"x" * 10) == len(ebml) + 41
    assert declared(b"plain text, long enough") == 0
