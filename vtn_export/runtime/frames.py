"""Pictures as a camera gives them, into frames as the backbone's graph takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vtn_export.errors import ShapeError
from vtn_export.spec import FRAMES, Array, GraphSpec, Preprocessing, check_inputs
from vtn_export.video import Preprocessor

Frames = Array | Sequence[Array]
MAX_SIDE, MAX_RATIO = 32768, 256  # as libvtn's


class GraphFrames:
    """preprocessed: frames come as the graph takes them already, with or without the axis of the batch."""

    def __init__(self, spec: GraphSpec, preprocessing: Preprocessing, *, preprocessed: bool) -> None:
        self.spec, self.preprocessed = spec, preprocessed
        self._tensor = spec.inputs[0]
        self._preprocessor = Preprocessor(preprocessing)

    def checked(self, frames: Frames) -> Sequence[Array] | Array:
        """One entry a frame. Raises ShapeError."""
        if self.preprocessed:
            return self._graph_frames(frames)
        if isinstance(frames, np.ndarray):
            frames = [frames] if frames.ndim == 3 else frames
        for frame in frames:
            _check_picture(frame)
        return frames

    def ready(self, checked: Sequence[Array] | Array) -> Array:
        """What `checked` gave, as the graph takes it: `[n, …]`, in memory of its own unless it was preprocessed."""
        if self.preprocessed and isinstance(checked, np.ndarray):
            return checked
        size = self._preprocessor.preprocessing.crop_size
        pixels = np.empty((len(checked), size, size, 3), np.uint8)
        for place, frame in enumerate(checked):
            pixels[place] = self._preprocessor(frame)
        return pixels if self._tensor.dtype == "uint8" else self._preprocessor.normalise(pixels)

    def _graph_frames(self, frames: Frames) -> Array:
        if not isinstance(frames, np.ndarray):
            if not len(frames):
                frames = np.empty((0, *self._tensor.shape[1:]), self._tensor.dtype)
            elif len({np.shape(frame) for frame in frames}) > 1:
                raise ShapeError(f"frames: got several sizes, expected {self._tensor.describe()}")
            else:
                frames = np.stack(frames)
        if frames.ndim == len(self._tensor.shape) - 1:
            frames = frames[None]
        # an empty batch has no frame to be wrong but the others' shape all the same
        sample = frames if len(frames) else np.zeros((1, *frames.shape[1:]), frames.dtype)
        check_inputs(self.spec, {FRAMES: sample})
        return frames


def _check_picture(frame: Array) -> None:
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        got = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ShapeError(f"frame: got {got}, expected uint8 RGB (h, w, 3)")
    height, width = frame.shape[:2]
    low, high = sorted((height, width))
    if low < 1 or high > MAX_SIDE or high > MAX_RATIO * low:
        raise ShapeError(
            f"frame: got {width} x {height} pixels, expected 1..{MAX_SIDE} each and no side over {MAX_RATIO} times the "
            "other"
        )
