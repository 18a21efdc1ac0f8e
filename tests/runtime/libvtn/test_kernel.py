"""libvtn's preprocessing kernel: the PTX of the shipped source, run on the CPU, against the numpy preprocessing."""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.plugins.library import locked
from tests.ptx import Memory, Module
from tests.ptx.toolchain import compile_ptx
from vtn_export.errors import MissingDependencyError
from vtn_export.spec import Preprocessing
from vtn_export.video import Preprocessor

ROOT = Path(__file__).parents[3]
SOURCES = ROOT / "engines" / "runtime" / "src"
# as CMake's Release build compiles it
FLAGS = ("-O3", "-DNDEBUG", "-std=c++17", f"-I{SOURCES}", f"-I{SOURCES / 'preprocess'}")
FORMATS = ("rgb", "bgr", "rgba", "nv12")
MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}  # Kr, Kb of ITU-R BT.601 and BT.709
# width, height: odd, even, upright, one pixel, one row, one column, the crop's own size, smaller and larger than it
SIZES = ((13, 11), (11, 13), (8, 8), (1, 1), (1, 7), (9, 1), (40, 40), (97, 41), (160, 121), (3, 50))
BLOCK = (32, 8)
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Source(ctypes.Structure):
    """`vtn::detail::Source`, with its YuvCoefficients, of pixel.hpp."""

    _fields_ = (
        ("data", ctypes.c_uint64), ("chroma", ctypes.c_uint64),
        ("stride", ctypes.c_int64), ("chroma_stride", ctypes.c_int64), ("yuv", ctypes.c_int32 * 6),
    )  # fmt: skip


class Axis(ctypes.Structure):
    _fields_ = (
        ("step", ctypes.c_int64), ("half", ctypes.c_int64), ("denominator", ctypes.c_int64),
        ("offset", ctypes.c_int32), ("size", ctypes.c_int32),
    )  # fmt: skip


class Params(ctypes.Structure):
    """`vtn::detail::KernelParams` of kernel.hpp."""

    _fields_ = (
        ("source", Source), ("y", Axis), ("x", Axis),
        ("out", ctypes.c_uint64), ("levels", ctypes.c_uint64), ("crop", ctypes.c_int32),
    )  # fmt: skip


@functools.cache
def module() -> Module:
    with locked(ROOT / "build" / "libvtn" / "kernel.lock"):
        try:
            return Module.from_source(compile_ptx(SOURCES / "preprocess" / "kernel.cu", flags=FLAGS))
        except MissingDependencyError as error:
            pytest.skip(str(error))


def axis(size: int, resized: int, crop: int) -> Axis:
    common = math.gcd(size, resized)
    return Axis(size // common, resized // common, 2 * resized // common, -(-(resized - crop) // 2), size)


def coefficients(matrix: str, full: bool) -> list[int]:
    kr, kb = MATRICES[matrix]
    kg, luma, chroma = 1 - kr - kb, 1 if full else 255 / 219, 1 if full else 255 / 224
    exact = (luma, 0, chroma * 2 * (1 - kr), -chroma * 2 * (1 - kb) * kb / kg, -chroma * 2 * (1 - kr) * kr / kg,
             chroma * 2 * (1 - kb))  # fmt: skip
    fixed = [math.floor(value * 65536 + 0.5) for value in exact]
    fixed[1] = 0 if full else 16
    return fixed


def yuv_to_rgb(luma: Bytes, chroma: Bytes, matrix: str, full: bool) -> Bytes:
    """The standards' definition in float64, rounded. luma `[h, w]`, chroma `[(h+1)/2, (w+1)/2, 2]`."""
    kr, kb = MATRICES[matrix]
    height, width = luma.shape
    y = luma.astype(np.float64) if full else (luma - 16.0) * 255 / 219
    near = chroma.repeat(2, axis=0).repeat(2, axis=1)[:height, :width].astype(np.float64) - 128
    cb, cr = near[..., 0], near[..., 1]
    if not full:
        cb, cr = cb * 255 / 224, cr * 255 / 224
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    green = (y - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.rint(np.stack([red, green, blue], axis=-1)), 0, 255).astype(np.uint8)


def rows(pixels: Bytes, stride: int) -> Bytes:
    """Rows `stride` bytes apart, nothing behind the last: a read of a gap or beyond the end is a finding."""
    flat = pixels.reshape(len(pixels), -1)
    out = np.full((len(flat), stride), 0xA5, np.uint8)
    out[:, : flat.shape[1]] = flat
    return out.reshape(-1)[: stride * (len(flat) - 1) + flat.shape[1]]


def run(
    fmt: str, width: int, height: int, pre: Preprocessing, *, floats: bool = False, gap: int = 0, matrix: str = "bt601",
    full: bool = False,
) -> tuple[Any, Bytes]:  # fmt: skip
    """(what the kernel made, the RGB frame that it had to preprocess)."""
    rng = np.random.default_rng(width * 1000 + height)
    memory = Memory()
    crop = pre.crop_size
    params = Params(crop=crop)
    if fmt == "nv12":
        luma = rng.integers(0, 256, (height, width), np.uint8)
        chroma = rng.integers(0, 256, ((height + 1) // 2, (width + 1) // 2, 2), np.uint8)
        pair = chroma.shape[1] * 2
        params.source.data = memory.alloc(rows(luma, width + gap), read_only=True)
        params.source.chroma = memory.alloc(rows(chroma, pair + 2 * gap), read_only=True)
        params.source.stride, params.source.chroma_stride = width + gap, pair + 2 * gap
        params.source.yuv[:] = coefficients(matrix, full)
        rgb = yuv_to_rgb(luma, chroma, matrix, full)
    else:
        rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
        given = rgb[..., ::-1] if fmt == "bgr" else rgb
        if fmt == "rgba":
            given = np.concatenate([rgb, rng.integers(0, 256, (height, width, 1), np.uint8)], axis=-1)
        stride = width * given.shape[2] + gap
        params.source.data = memory.alloc(rows(np.ascontiguousarray(given), stride), read_only=True)
        params.source.stride = stride
    aspect = max(width / height, height / width)
    wide = math.floor(aspect * pre.short_side) if width >= height else pre.short_side
    high = math.floor(aspect * pre.short_side) if width < height else pre.short_side
    params.y, params.x = axis(height, high, crop), axis(width, wide, crop)
    levels = (np.arange(256)[None] / 255 - np.array(pre.mean)[:, None]) / np.array(pre.std)[:, None]
    params.levels = memory.alloc(levels.astype(np.float32), read_only=True)
    out = memory.empty((3, crop, crop) if floats else (crop, crop, 3), np.float32 if floats else np.uint8)
    params.out = out
    kernel = next(
        name
        for name in module().kernels
        if f"PixelFormatE{FORMATS.index(fmt)}" in name and f"InputTypeE{int(floats)}" in name
    )
    grid = (-(-crop // BLOCK[0]), -(-crop // BLOCK[1]), 1)
    report = module().launch(kernel, grid, BLOCK, [bytes(params)], memory)
    assert not report.findings, report
    assert memory.written(out).all()
    return memory.get(out), rgb


def test_every_format_and_type_is_a_kernel() -> None:
    assert len(module().kernels) == 8


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_packed_formats_are_the_numpy_preprocessing(width: int, height: int) -> None:
    """Exactly, in both types, with rows that touch and rows with gaps of odd sizes."""
    pre = Preprocessing(short_side=40, crop_size=33)
    expected = Preprocessor(pre)
    for fmt, floats, gap in (("rgb", False, 0), ("bgr", False, 5), ("rgba", False, 3), ("rgb", True, 1)):
        got, rgb = run(fmt, width, height, pre, floats=floats, gap=gap)
        wanted = expected(rgb)
        assert np.array_equal(got, expected.normalise(wanted) if floats else wanted), (fmt, floats, gap)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_nv12_is_the_definition_within_a_grey_level(width: int, height: int) -> None:
    pre = Preprocessing(short_side=40, crop_size=33)
    for matrix in MATRICES:
        for full in (False, True):
            got, rgb = run("nv12", width, height, pre, gap=3 * full, matrix=matrix, full=full)
            assert np.abs(got.astype(int) - Preprocessor(pre)(rgb)).max() <= 1, (matrix, full)
    got, rgb = run("nv12", width, height, pre, floats=True, matrix="bt709")
    bound = 1.001 / 255 / 0.225
    assert np.abs(got - Preprocessor(pre).normalise(Preprocessor(pre)(rgb))).max() <= bound


def test_the_whole_frame_and_one_pixel_of_it() -> None:
    """A crop as large as the resized frame, and crops of one pixel: the blocks' edges and the frame's."""
    for short_side, crop in ((1, 1), (2, 1), (33, 33), (64, 64), (65, 65)):
        pre = Preprocessing(short_side=short_side, crop_size=crop)
        for width, height in ((65, 65), (37, 21), (1, 1), (2, 3)):
            got, rgb = run("rgb", width, height, pre)
            assert np.array_equal(got, Preprocessor(pre)(rgb)), (short_side, crop, width, height)


def test_the_published_sizes() -> None:
    """1080p to 256 and 224, as the published model wants it."""
    got, rgb = run("rgb", 1920, 1080, Preprocessing())
    assert np.array_equal(got, Preprocessor(Preprocessing())(rgb))


def test_a_read_beyond_the_frame_would_be_found() -> None:
    """The proof that the tests above can fail: the same launch with a size one row too large."""
    memory = Memory()
    params = Params(crop=8, y=axis(9, 8, 8), x=axis(8, 8, 8))
    params.source.data = memory.alloc(np.zeros(8 * 8 * 3, np.uint8), read_only=True)
    params.source.stride = 24
    params.out = memory.empty((8, 8, 3), np.uint8)
    kernel = next(name for name in module().kernels if "PixelFormatE0" in name and "InputTypeE0" in name)
    report = module().launch(kernel, (1, 1, 1), BLOCK, [bytes(params)], memory)
    assert {finding.kind for finding in report.findings} == {"out-of-bounds"}
