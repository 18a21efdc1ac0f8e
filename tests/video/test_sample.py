from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.errors import UsageError
from vtn_export.video import sample_indices


@given(st.integers(1, 2_000_000), st.integers(1, 3000))
def test_is_the_truncated_even_spacing(num_video_frames: int, num_frames: int) -> None:
    indices = sample_indices(num_video_frames, num_frames)
    assert indices.dtype == np.int32 and indices.shape == (num_frames,)
    assert indices[0] == 0
    assert num_frames == 1 or indices[-1] == num_video_frames - 1
    assert (np.diff(indices) >= 0).all()
    for i in (1, num_frames // 3, num_frames // 2, num_frames - 2):
        if 0 <= i < num_frames > 1:
            assert indices[i] == Fraction(i * (num_video_frames - 1), num_frames - 1).__floor__()


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "expected"),
    [
        (10, 5, [0, 2, 4, 6, 9]),
        (300, 3, [0, 149, 299]),
        (3, 7, [0, 0, 0, 1, 1, 1, 2]),
        (1, 4, [0, 0, 0, 0]),
        (99, 1, [0]),
        (5, 5, [0, 1, 2, 3, 4]),
    ],
)
def test_examples(num_video_frames: int, num_frames: int, expected: list[int]) -> None:
    assert sample_indices(num_video_frames, num_frames).tolist() == expected


def test_is_what_linspace_gives() -> None:
    """The published code truncates linspace; ours differs only where that falls just below an integer."""
    for num_video_frames in range(1, 1200, 7):
        points = np.linspace(0, num_video_frames - 1, 250)
        ours = sample_indices(num_video_frames, 250)
        assert (np.floor(points + 1e-9) == ours).all()


@pytest.mark.parametrize("counts", [(0, 1), (-3, 4), (5, 0), (5, -1)])
def test_refuses_counts_below_one(counts: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        sample_indices(*counts)
