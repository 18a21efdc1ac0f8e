"""Small models with weights that make attention sharp, for claims that do not need the big ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.vtn import VTN


def config(
    *,
    width: int = 128,
    layers: int = 3,
    window: int | Sequence[int] = 9,
    dilation: Any = 1,
    globals_: int = 1,
    causal: bool = False,
    positions: int = 288,
    classes: int = 10,
    heads: int | None = None,
    crop: int = 32,
    backbone: str = "tests.nets:patches",
    options: dict[str, Any] | None = None,
) -> ModelConfig:
    """A VTN over a hand-made backbone of 32 × 32 frames; everything the temporal part can vary."""
    temporal = {
        "num_layers": layers,
        "num_heads": heads,
        "intermediate_size": 2 * width,
        "one_sided_window": list(window) if isinstance(window, Sequence) else window,
        "dilation": dilation,
        "num_global_tokens": globals_,
        "causal": causal,
        "max_position_embeddings": positions,
    }
    return ModelConfig.from_dict(
        {
            "name": "small",
            "backbone": {"name": backbone, "options": options or {}},
            "preprocessing": {"crop_size": crop, "short_side": crop, "num_frames": 16},
            "hidden_dim": width,
            "mlp_dim": 64,
            "num_classes": classes,
            "temporal": temporal,
        }
    )


def sharp(model: VTN, seed: int = 1) -> VTN:
    """Random weights of the temporal part, larger than at initialisation: scores of standard deviation
    about 2, biases and LayerNorm gains that matter, embeddings that tell positions apart."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_dim or 1
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("backbone."):
                continue
            noise = torch.randn(p.shape, generator=generator)
            if "LayerNorm" in name or name.startswith("mlp_head.0"):
                p.copy_(1 + 0.2 * noise if name.endswith("weight") else 0.2 * noise)
            elif "embeddings" in name or name == "cls_token":
                p.copy_(0.5 * noise)
            elif any(f".{kind}" in name for kind in ("query", "key")) and name.endswith("weight"):
                p.copy_(noise * (1.5 / width) ** 0.5)
            else:
                p.copy_(noise * (0.5 / p.shape[-1] ** 0.5 if p.ndim > 1 else 0.2))
    return model


def model(seed: int = 1, **options: Any) -> VTN:
    """A small VTN with sharp weights, float32, evaluation mode."""
    return sharp(random_model(config(**options), seed), seed)


def state(model: VTN) -> dict[str, np.ndarray[Any, Any]]:
    """Weights as float64 arrays by checkpoint name."""
    return {key: value.double().numpy() for key, value in model.state_dict().items()}


def inputs(
    width: int, batch: int, frames: int, seed: int = 0, *, ragged: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """features, frame indices that jump and pass the table's end, lengths (the first one full)."""
    generator = np.random.default_rng(seed + 1000 * frames + batch)
    features = generator.standard_normal((batch, frames, width)).astype(np.float32)
    index = np.cumsum(generator.integers(1, 7, (batch, frames)), axis=1)
    lengths = generator.integers(1, frames + 1, batch) if ragged else np.full(batch, frames)
    lengths[0] = frames
    return torch.from_numpy(features), torch.from_numpy(index), torch.from_numpy(lengths)
