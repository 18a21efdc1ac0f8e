"""libvtn built here, and its C ABI by ctypes, for tests: arrays in, arrays or a LibError out."""

from __future__ import annotations

import ctypes as c
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from examples.python_ctypes import Frame
from tests.plugins.library import locked
from vtn_export.spec import Array
from vtn_export.trt import plugins

ROOT = Path(__file__).parents[3]
BUILD = ROOT / "build" / "libvtn"
CLIP = ROOT / "vtn_export" / "data" / "clip.mp4"
WIDTH, HEIGHT, FRAMES = 480, 270, 24  # of the clip, and how many of it
FORMATS = {"rgb": 0, "bgr": 1, "rgba": 2, "nv12": 3}


def build(name: str, *settings: str, target: str = "all") -> Path:
    """A build of engines/runtime in a folder of its own, kept between runs."""
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    generator = ["-GNinja"] if shutil.which("ninja") else []
    environment = dict(os.environ, CCACHE_DIR=str(ROOT / "build" / "ccache"))
    configure = ["cmake", "-S", str(ROOT / "engines" / "runtime"), "-B", str(folder), *generator, *launcher, *settings]
    compile_all = ["cmake", "--build", str(folder), "--parallel", "2", "--target", target]
    with locked(BUILD / f"{name}.lock"):
        # A kept folder may name a toolchain or a compiler that is there no more: then from nothing
        for command, other in ((configure, [*configure, "--fresh"]), (compile_all, None)):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode != 0 and other is not None:
                done = subprocess.run(other, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


def gpu_settings(root: Path | None = None) -> list[str]:
    root = root or plugins.find_toolkit().root
    return [
        "-DVTN_WITH_TENSORRT=ON",
        f"-DCUDAToolkit_ROOT={root}",
        f"-DCMAKE_CUDA_COMPILER={root / 'bin' / 'nvcc'}",
        "-DCMAKE_CUDA_ARCHITECTURES=87",  # one is enough where nothing runs on it
        f"-DTENSORRT_INCLUDE_DIR={plugins.find_headers().folder}",
    ]


def sanitized() -> Path:
    """The folder of tests' hosts and fuzzers, under ASan and UBSan, with the TensorRT executor. One build for all."""
    return build(
        "sanitized",
        "-DVTN_BUILD_TESTS=ON", "-DVTN_BUILD_FUZZERS=ON", "-DVTN_SANITIZE=address,undefined,fuzzer-no-link",
        "-DCMAKE_CXX_COMPILER=clang++-19", "-DCMAKE_BUILD_TYPE=None", "-DCMAKE_CXX_FLAGS=-O1 -gline-tables-only",
        *gpu_settings(),
    ) / "tests"  # fmt: skip


def run(*command: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(part) for part in command], input=stdin, capture_output=True, check=False, timeout=300)


class LibError(Exception):
    """What a call of the ABI returned instead of VTN_OK."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Options(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t), ("backend", c.c_char_p), ("threads", c.c_int32),
        ("tensorrt_library", c.c_char_p), ("plugin_library", c.c_char_p),
    )  # fmt: skip


class StreamOptions(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t), ("window", c.c_int32), ("stride", c.c_int32), ("queue", c.c_int32),
        ("policy", c.c_int32), ("deadline", c.c_double),
    )  # fmt: skip


class Result(c.Structure):
    _fields_ = (
        ("struct_size", c.c_size_t), ("logits", c.c_void_p), ("num_logits", c.c_size_t), ("ready", c.c_int32),
        ("frames", c.c_int32), ("frame_index", c.c_int64), ("latency", c.c_double),
    )  # fmt: skip


def frame(pixels: Array, fmt: str = "rgb", width: int = 0, height: int = 0) -> Frame:
    """pixels: uint8 `[h, w, c]`, or for NV12 `[3·h/2, w]`; kept alive by the caller."""
    rows = pixels.shape[0] * 2 // 3 if fmt == "nv12" else pixels.shape[0]
    return Frame(
        struct_size=c.sizeof(Frame), format=FORMATS[fmt], width=width or pixels.shape[1], height=height or rows,
        data=pixels.ctypes.data,
    )  # fmt: skip


class Lib:
    """The library and one classifier in it."""

    def __init__(self, path: Path, bundle: Path, backend: str = "auto") -> None:
        self.vtn = c.CDLL(str(path))
        self.vtn.vtn_last_error.restype = c.c_char_p
        self.handle = c.c_void_p()
        self.vtn.vtn_classifier_backend.restype = c.c_char_p
        options = Options(struct_size=c.sizeof(Options), backend=backend.encode())
        self._check(self.vtn.vtn_classifier_open(str(bundle).encode(), c.byref(options), c.byref(self.handle)))
        self.backend = self.vtn.vtn_classifier_backend(self.handle).decode()
        self.classes = self.vtn.vtn_classifier_num_classes(self.handle)
        self.width = self.vtn.vtn_classifier_feature_dim(self.handle)

    def _check(self, code: int) -> None:
        if code:
            raise LibError(code, self.vtn.vtn_last_error().decode())

    def close(self) -> None:
        self._check(self.vtn.vtn_classifier_close(self.handle))

    def _frames(self, frames: Sequence[Frame]) -> tuple[Any, c.c_size_t]:
        return (Frame * len(frames))(*frames), c.c_size_t(len(frames))

    def _index(self, index: Array | None) -> Any:
        self._kept = None if index is None else np.ascontiguousarray(index, np.int64)
        return None if self._kept is None else c.c_void_p(self._kept.ctypes.data)

    def full(self, frames: Sequence[Frame], index: Array | None = None) -> Array:
        logits = np.zeros(self.classes, np.float32)
        self._check(self.vtn.vtn_classify_full(self.handle, *self._frames(frames), self._index(index), *_room(logits)))
        return logits

    def chunked(self, frames: Sequence[Frame], index: Array | None = None, chunk: int = 16) -> Array:
        logits = np.zeros(self.classes, np.float32)
        self._check(
            self.vtn.vtn_classify_chunked(
                self.handle, *self._frames(frames), self._index(index), c.c_int32(chunk), *_room(logits)
            )
        )
        return logits

    def features(self, frames: Sequence[Frame], chunk: int = 16) -> Array:
        values = np.zeros((len(frames), self.width), np.float32)
        self._check(self.vtn.vtn_features(self.handle, *self._frames(frames), c.c_int32(chunk), *_room(values)))
        return values

    def classify(self, features: Array, index: Array | None = None) -> Array:
        logits = np.zeros(self.classes, np.float32)
        values = np.ascontiguousarray(features, np.float32)
        self._check(
            self.vtn.vtn_classify_features(
                self.handle, c.c_void_p(values.ctypes.data), c.c_size_t(len(values)), self._index(index),
                *_room(logits),
            )
        )  # fmt: skip
        return logits

    @contextmanager
    def stream(self, window: int, stride: int) -> Iterator[c.c_void_p]:
        options = StreamOptions(c.sizeof(StreamOptions), window, stride, 0, 2, 0)
        stream = c.c_void_p()
        self._check(self.vtn.vtn_stream_open(self.handle, c.byref(options), c.byref(stream)))
        yield stream
        self._check(self.vtn.vtn_stream_close(stream))

    def push(self, stream: c.c_void_p, one: Frame, index: int = -1) -> tuple[Array, int, int] | None:
        """(logits, frames in the window, index of the newest), or None between strides."""
        logits = np.zeros(self.classes, np.float32)
        result = Result(struct_size=c.sizeof(Result), logits=logits.ctypes.data, num_logits=self.classes)
        self._check(self.vtn.vtn_stream_push(stream, c.byref(one), c.c_int64(index), c.byref(result)))
        return (logits, result.frames, result.frame_index) if result.ready else None

    def push_together(
        self, streams: Sequence[c.c_void_p], frames: Sequence[Frame], index: Array
    ) -> list[tuple[Array, int, int] | None]:
        logits = np.zeros((len(frames), self.classes), np.float32)
        results = (Result * len(frames))(
            *(Result(c.sizeof(Result), row.ctypes.data, self.classes) for row in logits)
        )  # fmt: skip
        handles = (c.c_void_p * len(streams))(*(stream.value for stream in streams))
        given, count = self._frames(frames)
        self._check(self.vtn.vtn_streams_push(handles, given, self._index(index), count, results))
        return [
            (row, result.frames, result.frame_index) if result.ready else None
            for row, result in zip(logits, results, strict=True)
        ]


def _room(array: Array) -> tuple[c.c_void_p, c.c_size_t]:
    return c.c_void_p(array.ctypes.data), c.c_size_t(array.size)
