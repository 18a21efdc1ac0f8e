"""Profiles: parsing, the bundle's own, the choice by shape. No TensorRT."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.errors import ShapeError, UsageError
from vtn_export.runtime.golden import BACKBONE_CHUNKS, FULL_SAMPLES, NUM_FRAMES, TEMPORAL_SHAPES
from vtn_export.spec import PARTS, GraphSpec, Part, Preprocessing, graph_spec
from vtn_export.trt.profile import Range, axes_of, check_used, choose, defaults, max_frames, parse, profiles_for, shapes


def spec(part: Part) -> GraphSpec:
    return graph_spec(part, crop_size=32, feature_dim=64, num_classes=5, input_type="uint8")


def temporal(batch: int, frames: int) -> dict[str, np.ndarray]:
    return {
        "features": np.zeros((batch, frames, 64), np.float32),
        "frame_index": np.zeros((batch, frames), np.int32),
        "lengths": np.full(batch, frames, np.int32),
    }


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_parse_reads_what_it_prints(low: int, more: int, most: int) -> None:
    asked = Range(low, low + more, low + more + most)
    assert parse(str(asked), "--frames") == asked


def test_one_number_is_all_three() -> None:
    assert parse("7", "--chunk") == Range(7, 7, 7)


@pytest.mark.parametrize("text", ["", "1:2", "0:1:2", "3:2:1", "a:b:c", "1:2:3:4", "-1:1:1", "1:1:4294967296", "١:٢:٣"])
def test_malformed(text: str) -> None:
    with pytest.raises(UsageError, match="--frames"):
        parse(text, "--frames")


@pytest.mark.parametrize("num_frames", [1, 2, 8, 24, 250, 1000])
def test_default_profiles_take_every_golden_sample(num_frames: int) -> None:
    """So that any engine built with no options can be validated on the device."""
    found = {part: defaults(part, Preprocessing(num_frames=num_frames)) for part in PARTS}
    assert found["backbone"]["chunk"].max >= max(BACKBONE_CHUNKS)
    assert found["temporal"]["batch"].max >= max(batch for batch, _ in TEMPORAL_SHAPES)
    assert found["temporal"]["frames"].max >= max(frames for _, frames in TEMPORAL_SHAPES)
    assert found["full"]["batch"].max >= max(len(rows) for rows, _ in FULL_SAMPLES)
    assert found["full"]["frames"].max >= NUM_FRAMES
    for part, ranges in found.items():
        assert set(ranges) == set(axes_of(spec(part)))
        assert all(1 == r.min <= r.opt <= r.max for r in ranges.values())


def test_shapes_at_the_three_points() -> None:
    got = shapes(spec("full"), {"batch": Range(1, 1, 2), "frames": Range(1, 8, 24)})
    assert got["frames"] == ((1, 1, 32, 32, 3), (1, 8, 32, 32, 3), (2, 24, 32, 32, 3))
    assert got["lengths"] == ((1,), (1,), (2,))


def test_an_axis_without_a_profile() -> None:
    with pytest.raises(UsageError, match="axis batch has no profile; give --batch"):
        shapes(spec("temporal"), {"frames": Range(1, 8, 24)})
    with pytest.raises(UsageError, match="axis frames has no profile; give --frames"):
        profiles_for("temporal", spec("temporal"), {"batch": Range(1, 1, 1)}, {})


def test_options_go_to_the_parts_that_have_the_axis() -> None:
    asked = {"chunk": ["1:2:4"], "frames": []}
    check_used({part: spec(part) for part in PARTS}, asked)
    default = defaults("temporal", Preprocessing())
    assert profiles_for("temporal", spec("temporal"), default, asked) == [default]
    assert profiles_for("backbone", spec("backbone"), {}, asked) == [{"chunk": Range(1, 2, 4)}]
    with pytest.raises(UsageError, match="--chunk: temporal has no such axis"):
        check_used({"temporal": spec("temporal")}, asked)


def test_several_profiles() -> None:
    asked = {"frames": ["1:8:16", "17:64:300"], "batch": ["2"]}
    got = profiles_for("temporal", spec("temporal"), {}, asked)
    assert got == [
        {"batch": Range(2, 2, 2), "frames": Range(1, 8, 16)},
        {"batch": Range(2, 2, 2), "frames": Range(17, 64, 300)},
    ]
    assert max(max_frames(p) for p in got) == 600


PROFILES = [
    {"batch": Range(1, 1, 4), "frames": Range(1, 8, 16)},
    {"batch": Range(1, 1, 1), "frames": Range(10, 100, 300)},
]


@pytest.mark.parametrize(
    ("batch", "frames", "current", "expected"),
    [(1, 1, 0, 0), (4, 16, 1, 0), (1, 17, 0, 1), (1, 300, 0, 1), (1, 12, 0, 0), (1, 12, 1, 1), (1, 15, 2, 0)],
)
def test_choice_by_shape(batch: int, frames: int, current: int, expected: int) -> None:
    """A shape that both take stays with the current profile: a switch drops the captured graphs."""
    assert choose(spec("temporal"), PROFILES, temporal(batch, frames), current) == expected


@pytest.mark.parametrize(
    ("batch", "frames", "message"),
    [
        (1, 301, r"frames: got 301, the engine takes 1\.\.16 or 10\.\.300; rebuild with --frames"),
        (5, 8, r"batch: got 5, the engine takes 1\.\.1 or 1\.\.4"),
        (2, 100, r"got batch 2, frames 100, which no profile of the engine takes together"),
    ],
)
def test_shape_outside(batch: int, frames: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        choose(spec("temporal"), PROFILES, temporal(batch, frames))
