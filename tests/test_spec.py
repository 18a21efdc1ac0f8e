"""The graphs' interface: what a session takes, and the words it has for everything else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtn_export.errors import BundleError, ShapeError
from vtn_export.spec import PARTS, GraphSpec, InputType, Part, Preprocessing, TensorSpec, check_inputs, graph_spec

Array = np.ndarray[Any, np.dtype[Any]]


def spec(part: Part, input_type: InputType = "uint8") -> GraphSpec:
    return graph_spec(part, crop_size=4, feature_dim=6, num_classes=3, input_type=input_type)


def good(part: Part, input_type: InputType = "uint8", batch: int = 2, frames: int = 3) -> dict[str, Array]:
    pixels = (4, 4, 3) if input_type == "uint8" else (3, 4, 4)
    kind = np.uint8 if input_type == "uint8" else np.float32
    if part == "backbone":
        return {"frames": np.zeros((frames, *pixels), kind)}
    positions = {"frame_index": np.zeros((batch, frames), np.int32), "lengths": np.full(batch, frames, np.int32)}
    if part == "temporal":
        return {"features": np.zeros((batch, frames, 6), np.float32), **positions}
    return {"frames": np.zeros((batch, frames, *pixels), kind), **positions}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("input_type", ["uint8", "float32"])
def test_right_inputs_pass_and_json_round_trips(part: Part, input_type: InputType) -> None:
    own = spec(part, input_type)
    check_inputs(own, good(part, input_type))
    check_inputs(own, good(part, input_type, batch=1, frames=1))
    assert GraphSpec.from_json(own.to_json()) == own
    dtypes = {t.dtype for t in own.inputs}
    assert dtypes <= {"uint8", "int32", "float32"} and "int64" not in dtypes
    assert {t.dtype for t in own.outputs} == {"float32"}


CASES: dict[str, tuple[Part, dict[str, Any], str]] = {
    "missing": ("full", {"lengths": None}, r"got \['frame_index', 'frames'\], expected"),
    "unknown": ("temporal", {"mask": np.zeros(1)}, r"inputs: got .*mask"),
    "channels first": ("backbone", {"frames": np.zeros((3, 3, 4, 4), np.uint8)}, "; move the channels last"),
    "other size": ("backbone", {"frames": np.zeros((3, 5, 4, 3), np.uint8)}, r"expected uint8 \(chunk, 4, 4, 3\)"),
    "float frames": ("backbone", {"frames": np.zeros((3, 4, 4, 3), np.float32)}, "got float32"),
    "one axis short": ("full", {"frames": np.zeros((3, 4, 4, 3), np.uint8)}, r"got uint8 \(3, 4, 4, 3\)"),
    "no frames": ("backbone", {"frames": np.zeros((0, 4, 4, 3), np.uint8)}, "expected at least 1 chunk"),
    "width": ("temporal", {"features": np.zeros((2, 3, 7), np.float32)}, r"expected float32 \(batch, frames, 6\)"),
    "float64": ("temporal", {"features": np.zeros((2, 3, 6))}, "got float64"),
    "int64 index": ("temporal", {"frame_index": np.zeros((2, 3), np.int64)}, "; cast to int32"),
    "int64 lengths": ("temporal", {"lengths": np.ones(2, np.int64)}, "lengths: got int64.*; cast to int32"),
    "frames differ": ("temporal", {"frame_index": np.zeros((2, 4), np.int32)}, "got 4 frames, but features has 3"),
    "batches differ": ("temporal", {"lengths": np.ones(3, np.int32)}, "got 3 batch, but features has 2"),
    "length 0": (
        "temporal",
        {"lengths": np.array([3, 0], np.int32)},
        r"lengths: got \[3, 0\], expected values in 1..3",
    ),
    "index negative": ("temporal", {"frame_index": np.full((2, 3), -2, np.int32)}, "got -2, expected indices"),
    "length negative": ("temporal", {"lengths": np.array([3, -1], np.int32)}, "expected values in 1..3"),
    "length beyond T": ("full", {"lengths": np.array([4, 1], np.int32)}, r"got \[4, 1\], expected values in 1..3"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_inputs_are_named(case: str) -> None:
    part, change, expected = CASES[case]
    inputs = {**good(part), **change}
    inputs = {name: value for name, value in inputs.items() if value is not None}
    with pytest.raises(ShapeError, match=expected) as caught:
        check_inputs(spec(part), inputs)
    assert "\n" not in str(caught.value)


def test_channels_last_into_a_float_graph() -> None:
    with pytest.raises(ShapeError, match="move the channels before height and width"):
        check_inputs(spec("backbone", "float32"), {"frames": np.zeros((3, 4, 4, 3), np.float32)})


_shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
_dtypes = st.sampled_from([np.uint8, np.int32, np.int64, np.float32, np.float16, np.bool_])


@given(st.sampled_from(PARTS), st.data())
def test_any_array_passes_or_is_named(part: Part, data: st.DataObject) -> None:
    inputs = good(part)
    name = data.draw(st.sampled_from(sorted(inputs)))
    inputs[name] = np.zeros(data.draw(_shapes), data.draw(_dtypes))
    try:
        check_inputs(spec(part), inputs)
    except ShapeError as error:
        assert "\n" not in str(error)
    else:
        again = good(part)
        assert inputs[name].dtype == again[name].dtype and inputs[name].ndim == again[name].ndim


def test_preprocessing_round_trip() -> None:
    own = Preprocessing(40, 32, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), 7)
    assert Preprocessing.from_json(own.to_json()) == own


@pytest.mark.parametrize(
    "change",
    [
        {"std": [1, 1]},
        {"std": [1, 0, 1]},
        {"mean": "abc"},
        {"crop_size": 300},
        {"crop_size": 0},
        {"num_frames": 0},
        {"short_side": "big"},
        {"mean": None},
    ],
)
def test_bad_preprocessing(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="preprocessing"):
        Preprocessing.from_json({**Preprocessing().to_json(), **change})


@pytest.mark.parametrize(
    "inputs",
    [None, 3, [3], [{}], [{"name": 1, "dtype": "int32", "shape": []}], [{"name": "a", "dtype": "int64", "shape": []}]],
)
def test_bad_interface(inputs: Any) -> None:
    with pytest.raises(BundleError, match="malformed graph interface"):
        GraphSpec.from_json({"inputs": inputs, "outputs": []})


def test_description() -> None:
    assert TensorSpec("frames", "uint8", ("chunk", 4, 4, 3)).describe() == "frames: uint8 [chunk, 4, 4, 3]"
