from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vtn_export.errors import ShapeError, UsageError
from vtn_export.spec import Preprocessing
from vtn_export.video import Preprocessor
from vtn_export.video.preprocess import MAX_CACHED_SIZES, resized_size


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def torch_reference(frame: npt.NDArray[np.uint8], pre: Preprocessing, dtype: str) -> npt.NDArray[Any]:
    """The published steps with torch, before rounding: float `[crop, crop, 3]`."""
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].to(getattr(torch, dtype))
    size = resized_size(*frame.shape[:2], pre.short_side)
    image = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False)
    y, x = (math.ceil((n - pre.crop_size) / 2) for n in size)
    crop = image[0, :, y : y + pre.crop_size, x : x + pre.crop_size]
    result: npt.NDArray[Any] = crop.permute(1, 2, 0).numpy()
    return result


SIZES = [
    (1080, 1920),
    (720, 1280),
    (480, 640),
    (1920, 1080),
    (256, 256),
    (256, 341),
    (257, 255),
    (241, 427),
    (101, 67),
    (67, 101),
    (512, 768),
    (3, 5),
    (1, 1),
    (1, 40),
    (40, 1),
    (2, 333),
    (1023, 1025),
]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_torch(height: int, width: int) -> None:
    frame, pre = noise(height, width), Preprocessing()
    ours = Preprocessor(pre)(frame)
    assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8 and ours.flags.c_contiguous
    exact = torch_reference(frame, pre, "float64")
    # float64 itself cannot tell a tie from its neighbours; everywhere else we are equal
    off_tie = np.abs(exact - np.floor(exact) - 0.5) > 1e-9
    assert (ours == np.rint(exact))[off_tie].all()
    assert np.abs(ours - exact).max() <= 0.5 + 1e-9
    single = np.rint(torch_reference(frame, pre, "float32"))
    assert np.abs(ours - single).max() <= 1


def rational_reference(frame: npt.NDArray[np.uint8], pre: Preprocessing) -> npt.NDArray[np.uint8]:
    """The definition in exact arithmetic, ties to even, one pixel at a time."""
    height, width, _ = frame.shape
    new_height, new_width = resized_size(height, width, pre.short_side)
    crop = pre.crop_size

    def taps(i: int, size: int, new: int) -> list[tuple[int, Fraction]]:
        at = max(Fraction(2 * i + 1, 2) * Fraction(size, new) - Fraction(1, 2), Fraction(0))
        low = min(math.floor(at), size - 1)
        high = min(low + 1, size - 1)
        return [(low, 1 - (at - low)), (high, at - low)]

    out = np.empty((crop, crop, 3), np.uint8)
    top, left = math.ceil((new_height - crop) / 2), math.ceil((new_width - crop) / 2)
    for y in range(crop):
        for x in range(crop):
            for c in range(3):
                value = sum(
                    wy * wx * int(frame[sy, sx, c])
                    for sy, wy in taps(top + y, height, new_height)
                    for sx, wx in taps(left + x, width, new_width)
                )
                out[y, x, c] = round(value)
    return out


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.data())
def test_is_exact(height: int, width: int, short_side: int, data: st.DataObject) -> None:
    pre = Preprocessing(short_side=short_side, crop_size=data.draw(st.integers(1, short_side)))
    frame = noise(height, width, seed=height * 41 + width)
    assert (Preprocessor(pre)(frame) == rational_reference(frame, pre)).all()


def test_both_arithmetics_are_exact() -> None:
    """1080p fits float32's 24 bits; 1079 × 1919 does not and takes float64."""
    pre = Preprocessing(short_side=256, crop_size=6)
    dtypes = set()
    for height, width in [(1080, 1920), (1079, 1919)]:
        frame, preprocessor = noise(height, width), Preprocessor(pre)
        assert (preprocessor(frame) == rational_reference(frame, pre)).all()
        dtypes.add(preprocessor._table(height, width).x_low.dtype)
    assert dtypes == {np.dtype(np.float32), np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(1080, 1920, (256, 455)), (1920, 1080, (455, 256)), (100, 100, (256, 256)), (1, 5, (256, 1280))],
)
def test_resized_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_size(height, width, 256) == expected


def test_crop_offset_rounds_up() -> None:
    """455 - 224 = 231 columns are cut: 116 on the left, 115 on the right."""
    frame = np.zeros((256, 455, 3), np.uint8)
    frame[:, 116] = 255
    crop = Preprocessor(Preprocessing())(frame)
    assert (crop[:, 0] == 255).all() and not crop[:, 1:].any()


def test_takes_views_and_leaves_them_alone() -> None:
    frame = noise(300, 500)
    copy, preprocessor = frame.copy(), Preprocessor(Preprocessing(short_side=64, crop_size=56))
    assert (preprocessor(frame[::-1, ::-1]) == preprocessor(frame[::-1, ::-1].copy())).all()
    assert (frame == copy).all()


def test_remembers_few_sizes() -> None:
    preprocessor = Preprocessor(Preprocessing(short_side=8, crop_size=8))
    for size in range(1, 40):
        preprocessor(noise(size, size))
    assert len(preprocessor._tables) == MAX_CACHED_SIZES


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_refuses_other_arrays(frame: Any) -> None:
    with pytest.raises(ShapeError, match=r"expected uint8 \(h, w, 3\)"):
        Preprocessor(Preprocessing())(frame)


@pytest.mark.parametrize(("short_side", "crop"), [(224, 225), (10, 0)])
def test_refuses_a_crop_that_does_not_fit(short_side: int, crop: int) -> None:
    with pytest.raises(UsageError, match="crop_size"):
        Preprocessor(Preprocessing(short_side=short_side, crop_size=crop))


@pytest.mark.parametrize("leading", [(), (2,), (1, 3)])
def test_normalise(leading: tuple[int, ...]) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessor = Preprocessor(Preprocessing(mean=mean, std=std))
    frames = np.random.default_rng(0).integers(0, 256, (*leading, 16, 17, 3), dtype=np.uint8)
    result = preprocessor.normalise(frames)
    assert result.dtype == np.float32 and result.shape == (*leading, 3, 16, 17)
    expected = np.moveaxis((frames / 255 - np.array(mean)) / np.array(std), -1, -3)
    assert (result == expected.astype(np.float32)).all()
    with pytest.raises(ShapeError):
        preprocessor.normalise(result)  # type: ignore[arg-type]
