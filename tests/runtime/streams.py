"""Stubs that streams run on in tests, as libvtn's have them (tests/cpp/runtime/support.hpp), and the batch result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from vtn_export.runtime.session import SessionBase
from vtn_export.spec import (
    FEATURES,
    FRAME_INDEX,
    FRAMES,
    LENGTHS,
    LOGITS,
    Array,
    GraphSpec,
    Preprocessing,
    TensorSpec,
)  # fmt: skip

WIDTH, CLASSES, CROP = 4, 3, 8
BACKBONE = GraphSpec(
    (TensorSpec(FRAMES, "uint8", ("chunk", CROP, CROP, 3)),), (TensorSpec(FEATURES, "float32", ("chunk", WIDTH)),)
)
FLOATS = GraphSpec((TensorSpec(FRAMES, "float32", ("chunk", 3, CROP, CROP)),), BACKBONE.outputs)
TEMPORAL = GraphSpec(
    (
        TensorSpec(FEATURES, "float32", ("batch", "frames", WIDTH)),
        TensorSpec(FRAME_INDEX, "int32", ("batch", "frames")),
        TensorSpec(LENGTHS, "int32", ("batch",)),
    ),
    (TensorSpec(LOGITS, "float32", ("batch", CLASSES)),),
)


class StubBackbone(SessionBase):
    """A frame's first four bytes. before: called with the frames of every call. calls: frames of each."""

    def __init__(self, before: Callable[[Array], None] = lambda _: None, dtype: str = "uint8") -> None:
        super().__init__(BACKBONE if dtype == "uint8" else FLOATS)
        self.before, self.calls = before, []

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        frames = inputs[FRAMES]
        self.before(frames)
        self.calls = [*self.calls[-99:], len(frames)]
        return {FEATURES: frames.reshape(len(frames), -1)[:, :WIDTH].astype(np.float32)}


class StubTemporal(SessionBase):
    """Sums that depend on order, indices and count."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(TEMPORAL)
        self.before = before

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.before()
        features, places = inputs[FEATURES][0].astype(np.float64), inputs[FRAME_INDEX][0]
        count = len(features)
        decay = 0.5 ** np.arange(count - 1, -1, -1.0)
        sums = [
            count + (np.arange(1, count + 1) * features[:, 0]).sum(),
            count + (places % 10 * features[:, 1]).sum(),
            count * 0.5**count + (decay * features[:, 2]).sum(),
        ]
        return {LOGITS: np.array([sums], np.float32)}


class StubParts:
    """num_frames 6, 12 position embeddings: positions wrap after 10."""

    def __init__(self, backbone: StubBackbone | None = None, temporal: StubTemporal | None = None) -> None:
        self.sessions = {"backbone": backbone or StubBackbone(), "temporal": temporal or StubTemporal()}
        manifest = SimpleNamespace(
            preprocessing=Preprocessing(10, CROP, num_frames=6), config={"temporal": {"max_position_embeddings": 12}}
        )
        self.bundle: Any = SimpleNamespace(manifest=manifest)

    def __getitem__(self, part: str) -> Any:
        return self.sessions[part]


def pictures(count: int, seed: int = 0, height: int = 11, width: int = 13) -> Array:
    """uint8 `[count, height, width, 3]`, another for every frame."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def batch(parts: Any, frames: Array, index: Array, window: int) -> Array:
    """Logits of the last `window` of the graph's frames as the batch modes make them: all at once."""
    frames, index = frames[-window:], np.asarray(index, np.int64)[-window:]
    features = parts["backbone"].run({FRAMES: frames})[FEATURES]
    inputs = {
        FEATURES: features[None],
        FRAME_INDEX: index[None].astype(np.int32),
        LENGTHS: np.array([len(index)], np.int32),
    }
    return parts["temporal"].run(inputs)[LOGITS][0]
