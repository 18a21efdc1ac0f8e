"""The plain PyTorch model behind the Session protocol: the reference that other backends are held against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from vtn_export.bundle import Manifest
from vtn_export.errors import CheckpointError
from vtn_export.model.checkpoint import fingerprint, load, random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.shipped import shipped_with_hash
from vtn_export.model.vtn import VTN
from vtn_export.runtime.session import SessionBase
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, Part


def model_of(manifest: Manifest, checkpoint: str | Path | None = None) -> VTN:
    """The model that a bundle was exported from, proven by its fingerprint.

    Bundles hold no PyTorch weights: random ones are drawn again from their seed, those that come with this package
    are known by their hash, others are loaded from `checkpoint`. Raises CheckpointError.
    """
    config = ModelConfig.from_dict(manifest.config)
    seed = manifest.weights.get("seed")
    if checkpoint is not None:
        model = load(checkpoint, config)
    elif manifest.random_weights and isinstance(seed, int):
        model = random_model(config, seed)
    elif (own := shipped_with_hash(manifest.weights.get("checkpoint_sha256"))) is not None:
        model = load(own.weights, config)
    else:
        raise CheckpointError(
            f"the torch backend needs the weights this bundle was exported from "
            f"({manifest.weights.get('checkpoint')}); give them with --checkpoint FILE"
        )
    expected, got = manifest.weights.get("fingerprint"), fingerprint(model, backbone_only=False)
    if got != expected:
        raise CheckpointError(
            f"weights: got fingerprint {got[:12]}…, expected the bundle's {str(expected)[:12]}…; "
            f"give the checkpoint that the bundle was exported from"
        )
    return model


class TorchSession(SessionBase):
    """One part of a model, float32, on the CPU."""

    backend = "torch"

    def __init__(self, model: VTN, manifest: Manifest, part: Part) -> None:
        super().__init__(manifest.graphs[part].spec)
        self._model, self._part = model, part

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tensors = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
        with torch.inference_mode():
            if self._part == "backbone":
                return {FEATURES: self._model.frame_features(tensors[FRAMES]).numpy()}
            entry = self._model if self._part == "full" else self._model.classify
            first = tensors[FRAMES if self._part == "full" else FEATURES]
            return {LOGITS: entry(first, tensors[FRAME_INDEX], tensors[LENGTHS]).numpy()}
