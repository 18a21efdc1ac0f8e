"""golden.npz: inputs and PyTorch's float64 outputs, so that any device can check itself without torch.

Real frames of a clip are stored once, as uint8; the samples of the backbone and of the full graph
are drawn from them by row. Samples of the temporal part have seeded features of other lengths.
"""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vtn_export.bundle import GOLDEN, Bundle
from vtn_export.errors import BundleError
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, InputType, Part, Preprocessing
from vtn_export.video import Preprocessor

NUM_FRAMES = 8
# How the stored frames are cut into calls of the backbone; the traced chunk (3) is not among them.
BACKBONE_CHUNKS = (1, 2, 5)
# (rows of the stored frames, valid frames) of the full graph's samples
FULL_SAMPLES: tuple[tuple[tuple[tuple[int, ...], ...], tuple[int, ...]], ...] = (
    ((tuple(range(NUM_FRAMES)),), (NUM_FRAMES,)),
    (((0, 3, 5), (7, 6, 1)), (3, 2)),
    (((4,),), (1,)),
)
# (batch, frames) of the temporal samples: shorter than a window, odd, beyond a block and a window
TEMPORAL_SHAPES = ((1, 1), (2, 5), (2, 19), (3, 33), (2, 100), (1, 251))


@dataclass(frozen=True)
class Sample:
    """One call of a graph and what PyTorch gave for it."""

    name: str
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]


def temporal_inputs(feature_std: float, width: int, seed: int) -> list[dict[str, Array]]:
    """Seeded inputs of the temporal part: ragged lengths, indices that jump and pass the position table's end."""
    generator = np.random.default_rng(seed)
    samples = []
    for batch, frames in TEMPORAL_SHAPES:
        steps = generator.integers(1, 9, (batch, frames))
        lengths = generator.integers(1, frames + 1, batch)
        lengths[0] = frames
        samples.append(
            {
                FEATURES: (generator.standard_normal((batch, frames, width)) * feature_std).astype(np.float32),
                FRAME_INDEX: (np.cumsum(steps, axis=1) - steps[:, :1]).astype(np.int32),
                LENGTHS: lengths.astype(np.int32),
            }
        )
    return samples


def graph_frames(frames: Array, preprocessing: Preprocessing, input_type: InputType) -> Array:
    """uint8 `[…, H, W, 3]` as the graph takes them."""
    return frames if input_type == "uint8" else Preprocessor(preprocessing).normalise(frames)


def full_inputs(frames: Array, frame_index: Array) -> list[dict[str, Array]]:
    """uint8 inputs of the full graph's samples, from the stored frames `[8, H, W, 3]` and their indices."""
    samples = []
    for rows, lengths in FULL_SAMPLES:
        index = np.array(rows)
        samples.append(
            {FRAMES: frames[index], FRAME_INDEX: frame_index[index], LENGTHS: np.array(lengths, dtype=np.int32)}
        )
    return samples


def save(
    path: Path,
    frames: Array,
    frame_index: Array,
    features: Array,
    full_logits: Sequence[Array],
    temporal: Sequence[tuple[Mapping[str, Array], Array]],
) -> None:
    """Write golden.npz. frames uint8 `[8, H, W, 3]`; features float `[8, E]`; logits `[B, classes]` a sample."""
    arrays: dict[str, Array] = {
        "frames": frames,
        "frame_index": frame_index,
        "features": features.astype(np.float32),
    }
    for i, logits in enumerate(full_logits):
        arrays[f"full.{i}.logits"] = logits.astype(np.float32)
    for i, (inputs, logits) in enumerate(temporal):
        arrays.update({f"temporal.{i}.{name}": value for name, value in inputs.items()})
        arrays[f"temporal.{i}.logits"] = logits.astype(np.float32)
    np.savez(path, **arrays)  # type: ignore[arg-type]


def bundle_samples(bundle: Bundle, part: Part) -> list[Sample]:
    """The golden samples of a bundle's part. Raises BundleError."""
    manifest = bundle.manifest
    return samples(bundle.file(GOLDEN), part, manifest.preprocessing, manifest.input_type)


def samples(path: Path, part: Part, preprocessing: Preprocessing, input_type: InputType) -> list[Sample]:
    """The golden samples of a part, inputs as its graph takes them. Raises BundleError."""
    try:
        with np.load(path, allow_pickle=False) as golden:
            if part == "temporal":
                return [
                    Sample(
                        f"temporal {index}: {golden[f'temporal.{index}.features'].shape[:2]}",
                        {name: golden[f"temporal.{index}.{name}"] for name in (FEATURES, FRAME_INDEX, LENGTHS)},
                        {LOGITS: golden[f"temporal.{index}.logits"]},
                    )
                    for index in range(len(TEMPORAL_SHAPES))
                ]
            frames, features = golden["frames"], golden["features"]
            if part == "backbone":
                bounds = np.cumsum((0, *BACKBONE_CHUNKS))
                return [
                    Sample(
                        f"frames {a}..{b - 1}",
                        {FRAMES: graph_frames(frames[a:b], preprocessing, input_type)},
                        {FEATURES: features[a:b]},
                    )
                    for a, b in itertools.pairwise(bounds)
                ]
            result = []
            for index, inputs in enumerate(full_inputs(frames, golden["frame_index"])):
                inputs[FRAMES] = graph_frames(inputs[FRAMES], preprocessing, input_type)
                shape = inputs[FRAMES].shape[:2]
                result.append(Sample(f"clip {index}: {shape}", inputs, {LOGITS: golden[f"full.{index}.logits"]}))
            return result
    except (KeyError, ValueError, OSError, IndexError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: malformed golden file ({error!r})") from None
