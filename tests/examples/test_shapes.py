"""The moving-shapes clips: seeded, disjoint by source file, and what the published preprocessing makes of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vtn_export.model.config import ModelConfig
from vtn_export.video import Preprocessor

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train"))
import shapes


@pytest.mark.parametrize("frames", [1, 2, 8, 17, 64])
def test_a_clip_is_a_function_of_its_seed(frames: int) -> None:
    first, again, other = shapes.clip(5, frames), shapes.clip(5, frames), shapes.clip(6, frames)
    assert first.frames.shape == (frames, 96, 96, 3) and first.frames.dtype == np.uint8
    assert first.truth.shape == (frames, 4)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert first.label == again.label
    assert not np.array_equal(first.frames, other.frames)


def test_no_source_is_in_both_halves() -> None:
    for sources in (shapes.PICTURES, shapes.FOOTAGE):
        assert not set(sources["train"]) & set(sources["heldout"])


def test_the_model_sees_what_the_published_preprocessing_makes() -> None:
    preprocessing = ModelConfig.from_any("moving_shapes").preprocessing
    frames = shapes.clip(3, 4).frames
    expected = np.stack([Preprocessor(preprocessing)(frame) for frame in frames])
    assert np.abs(shapes.model_frames(frames).astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize("label", range(len(shapes.LABELS)), ids=shapes.LABELS)
def test_shapes_do_what_the_label_says(label: int) -> None:
    for seed in range(20):
        x, y, radius, seen = shapes.clip(seed, 33, label=label).truth.T
        assert min(x.min(), y.min()) >= 0 and max(x.max(), y.max()) <= 1
        dx, dy = x[-1] - x[0], y[-1] - y[0]
        name = shapes.LABELS[label]
        if name.startswith("moves"):
            along = {"left": -dx, "right": dx, "up": -dy, "down": dy}[name.split()[1]]
            assert along > 0.29 and along > 3 * min(abs(dx), abs(dy))
        elif name.startswith("orbits"):
            angle = np.unwrap(np.arctan2(y - (y.max() + y.min()) / 2, x - (x.max() + x.min()) / 2))
            assert (angle[-1] - angle[0] > np.pi) == (name == "orbits clockwise")
        elif label in (6, 7):
            assert (radius[-1] > 1.5 * radius[0]) == (name == "grows") and dx == dy == 0
        elif label == 8:
            assert seen[0] == seen[-1] == 0 and seen.any()
        else:
            assert dx == dy == 0 and seen.all() and radius.min() == radius.max()
