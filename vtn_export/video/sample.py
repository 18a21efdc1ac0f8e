"""Which frames of a video the model sees."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vtn_export.errors import UsageError


def sample_indices(num_video_frames: int, num_frames: int) -> npt.NDArray[np.int32]:
    """`num_frames` frame indices spread evenly over a video of `num_video_frames`, as published.

    Returns int32 `[num_frames]`, sorted, from 0 to `num_video_frames - 1`: the points
    i·(n - 1)/(num - 1) truncated to integers. A video shorter than `num_frames` repeats frames;
    one frame asked for is frame 0. Raises UsageError for counts below 1.
    """
    if num_video_frames < 1:
        raise UsageError(f"num_video_frames: got {num_video_frames}, expected at least 1")
    if num_frames < 1:
        raise UsageError(f"num_frames: got {num_frames}, expected at least 1")
    # In whole numbers: floating point can put a point that is an integer just below it, and
    # truncation would then give the frame before.
    points = np.arange(num_frames, dtype=np.int64) * (num_video_frames - 1) // max(num_frames - 1, 1)
    return points.astype(np.int32)
