"""The model's front: pixels, defaults, halves that make the whole, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests import oracle
from tests.model import small
from vtn_export.errors import ShapeError
from vtn_export.model.vtn import VTN


@pytest.fixture(scope="module")
def model() -> VTN:
    return small.model()


@pytest.fixture(params=["plain", "rewrite"])
def form(request: pytest.FixtureRequest, model: VTN) -> Any:
    return model if request.param == "plain" else model.rewrite()


def _frames(batch: int = 2, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + count)
    return torch.randint(0, 256, (batch, count, 32, 32, 3), dtype=torch.uint8, generator=generator)


def test_pixels_are_normalised_as_published(form: Any) -> None:
    frames = _frames()
    pixels = frames.numpy().astype(np.float64) / 255
    expected = np.moveaxis((pixels - 0.45) / 0.225, -1, -3)
    got = form.preprocess(frames.flatten(0, 1)).unflatten(0, (2, 3))
    assert oracle.error(got, expected) < 1e-6
    assert oracle.error(form.features(frames), form.features(torch.from_numpy(expected).float())) < 1e-5


def test_channels_have_their_own_mean_and_std() -> None:
    config = small.config()
    data = config.to_json()
    data["preprocessing"] |= {"mean": [0.1, 0.5, 0.9], "std": [0.5, 0.25, 0.125]}
    model = VTN(type(config).from_dict(data))
    frames = torch.full((1, 32, 32, 3), 51, dtype=torch.uint8)  # 0.2
    got = model.preprocess(frames)[0, :, 0, 0]
    assert oracle.error(got, [0.2, -1.2, -5.6]) < 1e-6


def test_halves_make_the_whole(form: Any) -> None:
    frames, index, lengths = _frames(), torch.tensor([[0, 4, 9], [2, 500, 501]]), torch.tensor([3, 1])
    features = form.features(frames)
    assert features.shape == (2, 3, 128)
    assert torch.equal(form(frames, index, lengths), form.classify(features, index, lengths))
    assert torch.equal(form(frames, frame_index=index, lengths=lengths), form(frames, index, lengths))
    assert form.encode(features, index, lengths).shape == (2, 4, 128)
    alone = torch.cat([form.features(frames[:, i : i + 1]) for i in range(3)], dim=1)
    assert oracle.error(alone, features) < 1e-6


def test_defaults(form: Any) -> None:
    features, _, _ = small.inputs(128, 2, 7)
    index = torch.arange(7).expand(2, -1)
    assert torch.equal(form.classify(features), form.classify(features, index, torch.tensor([7, 7])))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_integer_types(form: Any, dtype: torch.dtype) -> None:
    features, index, lengths = small.inputs(128, 2, 7, ragged=True)
    assert torch.equal(
        form.classify(features, index.to(dtype), lengths.to(dtype)), form.classify(features, index, lengths)
    )


BAD_TEMPORAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "width": ((torch.zeros(1, 3, 64),), r"features: got \(1, 3, 64\), expected \(B, T, 128\)"),
    "one axis short": ((torch.zeros(3, 128),), "features: got"),
    "no frames": ((torch.zeros(1, 0, 128),), "T ≥ 1"),
    "no samples": ((torch.zeros(0, 3, 128),), "B ≥ 1"),
    "index shape": ((torch.zeros(1, 3, 128), torch.zeros(3)), "frame_index"),
    "index too short": ((torch.zeros(1, 3, 128), torch.zeros(1, 2, dtype=torch.int64)), "frame_index"),
    "index negative": ((torch.zeros(1, 3, 128), torch.tensor([[0, -1, 2]])), "values ≥ 0"),
    "index float": ((torch.zeros(1, 3, 128), torch.zeros(1, 3)), "frame_index: got torch.float32"),
    "length 0": (
        (torch.zeros(2, 3, 128), None, torch.tensor([3, 0])),
        r"lengths: got \[3, 0\], expected 2 values in 1..3",
    ),
    "length beyond T": ((torch.zeros(1, 3, 128), None, torch.tensor([4])), r"got \[4\]"),
    "lengths shape": ((torch.zeros(2, 3, 128), None, torch.tensor([3])), "expected 2 values"),
    "lengths float": ((torch.zeros(1, 3, 128), None, torch.tensor([3.0])), "lengths: got torch.float32"),
}


@pytest.mark.parametrize("case", BAD_TEMPORAL)
def test_bad_temporal_inputs(case: str, form: Any) -> None:
    arguments, expected = BAD_TEMPORAL[case]
    for call in (form.classify, form.encode):
        with pytest.raises(ShapeError, match=expected):
            call(*arguments)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 2, 32, 32, 3),
        torch.zeros(2, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 2, 31, 32, 3, dtype=torch.uint8),
        torch.zeros(1, 2, 3, 32, 32, dtype=torch.int64),
        torch.zeros(1, 2, 3, 32, 32, dtype=torch.float64),
        torch.zeros(1, 0, 32, 32, 3, dtype=torch.uint8),
        torch.zeros(0, 2, 32, 32, 3, dtype=torch.uint8),
    ],
    ids=lambda x: f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}",
)
def test_bad_frames(frames: torch.Tensor, form: Any) -> None:
    with pytest.raises(ShapeError, match="frames: got"):
        form(frames)


def test_rewrite_is_for_inference(model: VTN) -> None:
    assert not model.rewrite().training
    assert all(not p.requires_grad for name, p in model.rewrite().named_parameters() if "_heads" in name)
