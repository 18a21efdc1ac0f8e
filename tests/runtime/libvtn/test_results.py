"""libvtn on the CPU executor against PyTorch: every mode, streams, formats, on golden samples and a real clip."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.libvtn.library import CLIP, HEIGHT, WIDTH, Lib, LibError, frame, run
from tests.runtime.libvtn.library import FRAMES as COUNT
from tests.tolerances import tolerance
from vtn_export.bundle import Bundle
from vtn_export.runtime.golden import bundle_samples
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS, Array
from vtn_export.video import Preprocessor

pytestmark = pytest.mark.timeout(900)
BOUND = tolerance("modes")


@pytest.fixture(scope="module")
def lib(library: Path, cpu_bundle: Path) -> Iterator[Lib]:
    opened = Lib(library, cpu_bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def frames(clip: bytes) -> Array:
    return np.frombuffer(clip, np.uint8).reshape(COUNT, HEIGHT, WIDTH, 3)


class Torch:
    """The model that the bundle was exported from, in float64: frames of any size, their indices -> logits."""

    def __init__(self, bundle: Bundle) -> None:
        from vtn_export.model.torch_session import model_of

        self.model = model_of(bundle.manifest).double()
        self.process = Preprocessor(bundle.manifest.preprocessing)

    def features(self, frames: Array) -> Array:
        import torch

        with torch.inference_mode():
            ready = torch.from_numpy(np.stack([self.process(one) for one in frames])[None])
            values: Array = self.model.features(ready)[0].numpy()
        return values

    def logits(self, features: Array, index: Array) -> Array:
        import torch

        with torch.inference_mode():
            values: Array = self.model.classify(
                torch.from_numpy(features)[None], torch.from_numpy(np.asarray(index, np.int64))[None]
            )[0].numpy()
        return values


@pytest.fixture(scope="module")
def reference(cpu_bundle: Path) -> Torch:
    return Torch(Bundle.open(cpu_bundle))


def test_golden_samples(lib: Lib, cpu_bundle: Path) -> None:
    """Features and indices that jump in, PyTorch's float64 logits out: lengths 1 to 251."""
    compared = 0
    for sample in bundle_samples(Bundle.open(cpu_bundle), "temporal"):
        for row, length in enumerate(sample.inputs[LENGTHS]):
            got = lib.classify(sample.inputs[FEATURES][row, :length], sample.inputs[FRAME_INDEX][row, :length])
            assert np.abs(got - sample.expected[LOGITS][row]).max() <= BOUND, sample.name
            compared += 1
    assert compared == 11


def test_every_mode_of_a_real_clip(lib: Lib, reference: Torch, frames: Array) -> None:
    index = np.cumsum(np.arange(COUNT) % 5 * 3 + 1)  # as sampled from a longer video
    features = reference.features(frames)
    expected = reference.logits(features, index)
    given = [frame(one) for one in frames]
    assert np.abs(lib.full(given, index) - expected).max() <= BOUND
    for chunk in (1, 7, 16, 24, 100):
        assert np.abs(lib.chunked(given, index, chunk) - expected).max() <= BOUND, chunk
    got = lib.features(given, 5)
    assert np.abs(got - features).max() <= BOUND
    assert np.abs(lib.classify(got, index) - expected).max() <= BOUND
    assert np.abs(lib.full(given[:1]) - reference.logits(features[:1], np.array([0]))).max() <= BOUND


@pytest.mark.parametrize(("window", "stride"), [(5, 1), (24, 8), (9, 4), (3, 7)])
def test_streams_of_a_real_clip(lib: Lib, reference: Torch, frames: Array, window: int, stride: int) -> None:
    """Every result is PyTorch's of the same window: before the ring is full, after drops, after the positions wrap."""
    features = reference.features(frames)
    index = 270 + np.cumsum(np.arange(COUNT) % 4 + 1)  # past the 286 positions
    with lib.stream(window, stride) as stream:
        results = 0
        for at, one in enumerate(frames):
            result = lib.push(stream, frame(one), int(index[at]))
            assert (result is not None) == ((at + 1) % stride == 0)
            if result is None:
                continue
            first = max(0, at + 1 - window)
            assert result[1:] == (at + 1 - first, index[at])
            expected = reference.logits(features[first : at + 1], index[first : at + 1])
            assert np.abs(result[0] - expected).max() <= BOUND, at
            results += 1
    assert results == COUNT // stride


def test_cameras_that_share_a_batch(lib: Lib, reference: Torch, frames: Array) -> None:
    features = reference.features(frames)
    with lib.stream(6, 3) as one, lib.stream(6, 3) as other:
        for at in range(12):
            got = lib.push_together([one, other], [frame(frames[at]), frame(frames[23 - at])], np.array([at, 2 * at]))
            assert [result is not None for result in got] == [(at + 1) % 3 == 0] * 2
            for result, seen, step in zip(got, (features, features[::-1]), (1, 2), strict=True):
                if result is not None:
                    window = np.arange(max(0, at - 5), at + 1)
                    expected = reference.logits(seen[window], step * window)
                    assert np.abs(result[0] - expected).max() <= BOUND


def test_formats_are_one_picture(lib: Lib, frames: Array) -> None:
    rgb = frames[3]
    expected = lib.features([frame(rgb)])
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    rgba = np.concatenate([rgb, np.zeros((HEIGHT, WIDTH, 1), np.uint8)], axis=-1)
    assert np.array_equal(lib.features([frame(bgr, "bgr")]), expected)
    assert np.array_equal(lib.features([frame(rgba, "rgba")]), expected)


def test_nv12_is_what_ffmpeg_makes_rgb_of(lib: Lib, frames: Array) -> None:
    """Two ways to the same pictures: ffmpeg's RGB, and ffmpeg's NV12 with libvtn's colours; grey levels apart."""
    done = run("ffmpeg", "-v", "error", "-i", CLIP, "-frames:v", 4, "-f", "rawvideo", "-pix_fmt", "nv12", "-")
    planes = np.frombuffer(done.stdout, np.uint8).reshape(4, HEIGHT * 3 // 2, WIDTH)
    got = lib.features([frame(one, "nv12") for one in planes])
    expected = lib.features([frame(one) for one in frames[:4]])
    spread = np.abs(expected - expected.mean(axis=0)).max()
    assert np.abs(got - expected).max() <= 0.1 * max(1.0, float(spread))


def test_refusals_are_a_code_and_a_sentence(lib: Lib, frames: Array) -> None:
    def told(call: object, *arguments: object) -> tuple[int, str]:
        with pytest.raises(LibError) as caught:
            call(*arguments)  # type: ignore[operator]
        return caught.value.code, str(caught.value)

    good = frame(frames[0])
    assert told(lib.chunked, []) == (7, "frames: got 0, expected 1..1048576")
    assert told(lib.chunked, [good], np.array([-3]))[0] == 7
    assert told(lib.chunked, [good, good], np.array([4, 4]))[0] == 7
    wide = frame(frames[0], width=1 << 20)
    assert told(lib.full, [wide])[0] == 7
    short = frame(frames[0])
    short.stride = WIDTH
    code, message = told(lib.features, [short])
    assert code == 7
    assert message == f"frame: got stride {WIDTH}, expected at least {3 * WIDTH} bytes"
    device = frame(frames[0])
    device.memory = 1
    assert told(lib.features, [device]) == (
        12, "frame: got device memory, expected host memory; this backend resizes on the CPU",
    )  # fmt: skip
