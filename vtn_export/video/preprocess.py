"""From a decoded frame of any size to the model's crop: resize, centre crop, normalise."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vtn_export.errors import ShapeError, UsageError
from vtn_export.spec import Preprocessing

Pixels = npt.NDArray[np.uint8]
Floats = np.ndarray[Any, np.dtype[Any]]

MAX_CACHED_SIZES = 8  # a video has one frame size, rarely two; a crafted one must not fill memory


def resized_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """(height, width) after the shorter side became `short_side`, in pixels.

    The longer side is floor(long / short · short_side) in float64, as published.
    """
    if width < height:
        return math.floor(height / width * short_side), short_side
    return short_side, math.floor(width / height * short_side)


@dataclass(frozen=True)
class _Axis:
    """Where each pixel of the crop comes from along one axis: (low·w_low + high·w_high) / denominator.

    `low`, `high`: intp `[crop]` source positions. `w_low`, `w_high`: int64 `[crop]` weights ≥ 0 that
    add up to `denominator`.
    """

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    w_low: npt.NDArray[np.int64]
    w_high: npt.NDArray[np.int64]
    denominator: int


def _axis(size: int, resized: int, crop: int) -> _Axis:
    """The taps of the centre `crop` pixels of `size` pixels resized to `resized`.

    Output pixel i's centre lies at (i + 1/2)·size/resized - 1/2 of the source, which is a fraction
    over 2·resized/gcd: so positions and weights are exact integers.
    """
    common = math.gcd(size, resized)
    denominator = 2 * resized // common
    offset = math.ceil((resized - crop) / 2)
    outputs = np.arange(offset, offset + crop, dtype=np.int64)
    numerator = np.maximum((2 * outputs + 1) * (size // common) - resized // common, 0)
    low = np.minimum(numerator // denominator, size - 1)
    high = np.minimum(low + 1, size - 1)
    w_high = numerator - low * denominator
    w_high[low == high] = 0  # at the far edge both taps are the last pixel
    return _Axis(low.astype(np.intp), high.astype(np.intp), denominator - w_high, w_high, denominator)


class _Table:
    """Everything that depends on the frame's size alone, ready for the pixel loop."""

    def __init__(self, height: int, width: int, pre: Preprocessing) -> None:
        resized = resized_size(height, width, pre.short_side)
        y, x = (_axis(size, new, pre.crop_size) for size, new in zip((height, width), resized, strict=True))
        first, last = int(x.low.min()), int(x.high.max())
        self.columns = slice(first, last + 1)
        self.rows = np.concatenate([y.low, y.high])
        self.column_taps = np.concatenate([x.low, x.high]) - first
        denominator = x.denominator * y.denominator
        # Sums of products of integers: float32 holds them exactly below 2^24 (all common sizes:
        # 1080p, 720p, 480p), float64 for the rest. So the result is the exactly rounded one, with
        # float32's speed where it is enough.
        dtype = np.float32 if 255 * denominator < 2**24 else np.float64
        self.x_low: Floats = np.repeat(x.w_low, 3).astype(dtype)
        self.x_high: Floats = np.repeat(x.w_high, 3).astype(dtype)
        self.y_low: Floats = y.w_low[:, None].astype(dtype)
        self.y_high: Floats = y.w_high[:, None].astype(dtype)
        self.denominator = dtype(denominator)


class Preprocessor:
    """The published preprocessing of one frame: shorter side to `short_side`, centre crop.

    Bilinear, half-pixel centres (align_corners=False), edges clamped, no antialias, rounded to the
    nearest grey level (ties to even). Exact: equal to rational arithmetic for every pixel. Only the
    crop's own pixels are computed (1080p: about 1.1 ms on one core). Thread-safe.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Raises UsageError for sizes below 1 or a crop larger than the resized frame."""
        crop, short = preprocessing.crop_size, preprocessing.short_side
        if not 1 <= crop <= short:
            raise UsageError(f"preprocessing: got crop_size {crop}, expected 1..short_side = {short}")
        self.preprocessing = preprocessing
        self._tables: OrderedDict[tuple[int, int], _Table] = OrderedDict()
        levels = np.arange(256, dtype=np.float64)[:, None] / 255
        scaled = (levels - np.asarray(preprocessing.mean)) / np.asarray(preprocessing.std)
        self._normalised_levels = scaled.T.astype(np.float32)  # [3, 256]

    def __call__(self, frame: Pixels) -> Pixels:
        """Preprocess one frame.

        frame: uint8 RGB `[h, w, 3]`, any h, w ≥ 1. Returns uint8 `[crop, crop, 3]`, contiguous.
        Raises ShapeError.
        """
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or frame.size == 0:
            raise ShapeError(f"frame: got {frame.dtype} {frame.shape}, expected uint8 (h, w, 3)")
        table = self._table(frame.shape[0], frame.shape[1])
        crop = self.preprocessing.crop_size
        taps = np.take(frame[table.rows, table.columns], table.column_taps, axis=1)
        taps = taps.reshape(2 * crop, 2 * crop * 3)
        across: Floats = taps[:, : crop * 3] * table.x_low
        across += taps[:, crop * 3 :] * table.x_high
        down: Floats = across[:crop] * table.y_low
        down += across[crop:] * table.y_high
        # A true division, not a product with the reciprocal: ties stay exact ties.
        down /= table.denominator
        np.rint(down, out=down)
        return down.astype(np.uint8).reshape(crop, crop, 3)

    def normalise(self, frames: Pixels) -> npt.NDArray[np.float32]:
        """(frames/255 - mean)/std, channels first: the input of a float32 graph.

        frames: uint8 `[..., H, W, 3]`. Returns float32 `[..., 3, H, W]`, each value correctly
        rounded from float64. Raises ShapeError.
        """
        if frames.ndim < 3 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ShapeError(f"frames: got {frames.dtype} {frames.shape}, expected uint8 (..., H, W, 3)")
        out = np.empty((*frames.shape[:-3], 3, *frames.shape[-3:-1]), np.float32)
        for channel, levels in enumerate(self._normalised_levels):
            out[..., channel, :, :] = levels[frames[..., channel]]
        return out

    def _table(self, height: int, width: int) -> _Table:
        table = self._tables.get((height, width))
        if table is None:
            table = _Table(height, width, self.preprocessing)
            self._tables[height, width] = table
            while len(self._tables) > MAX_CACHED_SIZES:
                self._tables.popitem(last=False)
        return table
