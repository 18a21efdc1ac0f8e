"""libvtn from Python by ctypes: no package of vtn-export, no numpy. Any language with a C interface does the same.

    ffmpeg -v error -i clip.mp4 -f rawvideo -pix_fmt rgb24 - | python python_ctypes.py libvtn.so BUNDLE WIDTH HEIGHT

Prints the likeliest classes of the whole video.
"""

from __future__ import annotations

import ctypes as c
import math
import sys


class Frame(c.Structure):
    """vtn_frame of vtn/vtn.h."""

    _fields_ = [
        ("struct_size", c.c_size_t),
        ("format", c.c_int32),
        ("width", c.c_int32),
        ("height", c.c_int32),
        ("data", c.c_void_p),
        ("stride", c.c_int64),
        ("chroma", c.c_void_p),
        ("chroma_stride", c.c_int64),
        ("matrix", c.c_int32),
        ("range", c.c_int32),
        ("memory", c.c_int32),
        ("stream", c.c_void_p),
    ]


def load(path: str) -> c.CDLL:
    """The library with the types of the functions used here."""
    vtn = c.CDLL(path)
    vtn.vtn_last_error.restype = c.c_char_p
    vtn.vtn_classifier_open.argtypes = [c.c_char_p, c.c_void_p, c.POINTER(c.c_void_p)]
    vtn.vtn_classifier_close.argtypes = [c.c_void_p]
    vtn.vtn_classifier_num_classes.argtypes = [c.c_void_p]
    vtn.vtn_classifier_label.argtypes = [c.c_void_p, c.c_int32]
    vtn.vtn_classifier_label.restype = c.c_char_p
    vtn.vtn_classify_chunked.argtypes = [
        c.c_void_p, c.POINTER(Frame), c.c_size_t, c.POINTER(c.c_int64), c.c_int32, c.POINTER(c.c_float), c.c_size_t,
    ]  # fmt: skip
    return vtn


def main() -> int:
    if len(sys.argv) != 5:
        print("usage: python_ctypes.py LIBVTN BUNDLE WIDTH HEIGHT < RGB24", file=sys.stderr)
        return 2
    vtn, width, height = load(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])
    size = width * height * 3
    pictures = []
    while len(data := sys.stdin.buffer.read(size)) == size:
        pictures.append(c.create_string_buffer(data, size))
    if data:
        print("stdin: it ended inside a frame; is the size right?", file=sys.stderr)
        return 6
    frames = (Frame * len(pictures))()
    for frame, picture in zip(frames, pictures, strict=True):
        frame.struct_size = c.sizeof(Frame)
        frame.width, frame.height, frame.data = width, height, c.cast(picture, c.c_void_p)

    handle = c.c_void_p()
    code = vtn.vtn_classifier_open(sys.argv[2].encode(), None, c.byref(handle))
    if code == 0:
        classes = vtn.vtn_classifier_num_classes(handle)
        logits = (c.c_float * classes)()
        code = vtn.vtn_classify_chunked(handle, frames, len(pictures), None, 16, logits, classes)
    if code != 0:
        print(vtn.vtn_last_error().decode(errors="replace"), file=sys.stderr)
        return int(code)
    weights = [math.exp(value - max(logits)) for value in logits]
    for index in sorted(range(classes), key=lambda i: -weights[i])[:5]:
        print(f"{weights[index] / sum(weights):.6f} {vtn.vtn_classifier_label(handle, index).decode()}")
    vtn.vtn_classifier_close(handle)
    return 0


if __name__ == "__main__":
    sys.exit(main())
