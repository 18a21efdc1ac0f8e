"""Exported graphs of one model, ready to run, with the float64 model beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from tests.model import small
from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.vtn import VTN
from vtn_export.onnx.export import compose_full, export_backbone, export_temporal, spec_of
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, GraphSpec, InputType, Part

Array = np.ndarray[Any, np.dtype[Any]]


def session(model: onnx.ModelProto | Path | bytes) -> Any:
    """Plain ONNX Runtime, as a user would open it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    return ort.InferenceSession(
        str(source) if isinstance(source, Path) else source, options, providers=["CPUExecutionProvider"]
    )


def run(opened: Any, **inputs: Array) -> Array:
    (output,) = opened.run(None, inputs)
    return output  # type: ignore[no-any-return]


@dataclass
class Exported:
    """The parts of one model: protos, specs and open sessions; `model` is the plain one in float64."""

    model: VTN
    graphs: Mapping[Part, onnx.ModelProto]
    specs: Mapping[Part, GraphSpec]
    sessions: Mapping[Part, Any]
    input_type: InputType

    @cached_property
    def pool(self) -> tuple[Array, Array]:
        """Six frames and their float64 features; depthwise convolutions in float64 take seconds, so once."""
        frames = frames_of(self, 6)
        return frames, self.expected_features(frames)

    def expected_features(self, frames: Array) -> Array:
        with torch.no_grad():
            pixels = torch.from_numpy(frames)
            return self.model.frame_features(pixels if frames.dtype == np.uint8 else pixels.double()).numpy()

    def expected_logits(self, features: Array, index: Array, lengths: Array) -> Array:
        with torch.no_grad():
            return self.model.classify(
                torch.from_numpy(features).double(), torch.from_numpy(index), torch.from_numpy(lengths)
            ).numpy()


def export(
    config: ModelConfig, input_type: InputType = "uint8", seed: int = 1, temporal_of: Exported | None = None
) -> Exported:
    """Export all parts of a model with sharp temporal weights.

    temporal_of: take the temporal part's weights and graph from there; tracing one takes seconds.
    """
    model = small.sharp(random_model(config, seed), seed)
    if temporal_of is not None:
        shared = {
            key: value.float()
            for key, value in temporal_of.model.state_dict().items()
            if not key.startswith(("backbone.", "projection."))
        }
        assert not model.load_state_dict(shared, strict=False).unexpected_keys
    rewritten = model.rewrite()
    backbone = export_backbone(rewritten, input_type)
    temporal = export_temporal(rewritten) if temporal_of is None else temporal_of.graphs["temporal"]
    specs = {part: spec_of(rewritten, part, input_type) for part in ("full", "backbone", "temporal")}
    graphs: dict[Part, onnx.ModelProto] = {
        "full": compose_full(backbone, temporal, specs["full"]),  # type: ignore[index]
        "backbone": backbone,
        "temporal": temporal,
    }
    sessions = {part: session(graph) for part, graph in graphs.items()}
    return Exported(model.double(), graphs, specs, sessions, input_type)  # type: ignore[arg-type]


def temporal_inputs(width: int, batch: int, frames: int, *, ragged: bool = True) -> dict[str, Array]:
    """Inputs of the temporal graph: indices that jump and pass the table's end."""
    features, index, lengths = small.inputs(width, batch, frames, ragged=ragged)
    return {
        FEATURES: features.numpy(),
        FRAME_INDEX: index.numpy().astype(np.int32),
        LENGTHS: lengths.numpy().astype(np.int32),
    }


def frames_of(exported: Exported, *shape: int, seed: int = 0) -> Array:
    """Seeded pixels `[*shape, H, W, 3]` or, for float graphs, `[*shape, 3, H, W]`."""
    pixels = exported.specs["backbone"].inputs[0].shape[1:]
    generator = np.random.default_rng(seed)
    size = (*shape, *(int(axis) for axis in pixels))
    if exported.input_type == "uint8":
        return generator.integers(0, 256, size, dtype=np.uint8)
    return generator.standard_normal(size).astype(np.float32)


__all__ = ["FEATURES", "FRAMES", "FRAME_INDEX", "LENGTHS", "Exported", "export", "frames_of", "run", "session"]
