"""Does dilation in the upper layers' heads help? Temporal encoders trained alike, with and without, on fixed features.

    python examples/train/dilation.py --out runs/shapes          writes runs/shapes/dilation.json

The backbone is the trained one and fixed, and its features are those that the encoder was trained on, so a run takes a
minute: a reduced budget. Three layers, not the preset's two: the head reads the last layer's CLS row alone, which sees
every frame, so the band of the last layer is read by nobody, dilated or not. Stages of 8, 16, 32 and 64 frames take
every 8th to every frame of a 64-frame clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from encoder import clip_features
from evaluate import PRESET, Small, features, heldout_clips
from torch import Tensor, nn
from train import Settings, initial_model

from vtn_export.model.checkpoint import load
from vtn_export.model.config import ModelConfig
from vtn_export.model.dense import use_dense_attention
from vtn_export.model.schedule import staged_schedule, with_window
from vtn_export.model.vtn import VTN

FRAMES = 64
WINDOWS = (16, 32, 32)  # of the layers; each stage has its share of them
DILATIONS = {
    "none": ((1, 1), (1, 1), (1, 1)),
    "2 in one of two heads above the first layer": ((1, 1), (1, 2), (1, 2)),
    "2 in both heads above the first layer": ((1, 1), (2, 2), (2, 2)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--clips", type=int, default=200, help="held out")
    parser.add_argument("--steps", type=int, nargs="+", default=(150, 100, 80, 40))
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    backbone = load(arguments.out / "model.safetensors", PRESET)
    settings = Settings()
    known = clip_features(backbone, arguments.out / "features.pt", settings.seed, settings.clips, settings.copies)
    training = next(part for part in known if part[0].shape[1] == FRAMES)
    heldout = _featured(backbone, list(heldout_clips(arguments.clips, FRAMES, seed=2)))
    found: dict[str, list[float]] = {}
    for name, dilation in DILATIONS.items():
        found[name] = [
            _top1(_trained(backbone, dilation, training, tuple(arguments.steps), seed), heldout)
            for seed in range(arguments.seeds)
        ]
        print(name, found[name], flush=True)
    result = {
        "training_clips": len(training[1]), "heldout_clips": arguments.clips, "frames": FRAMES,
        "steps": list(arguments.steps), "backbone": "trained and fixed", "top1_by_seed": found,
    }  # fmt: skip
    (arguments.out / "dilation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _featured(model: VTN, clips: list[Small]) -> tuple[Tensor, Tensor]:
    """Features [N, T, E] and labels [N]."""
    return torch.cat([features(model, clip.frames) for clip in clips]), torch.tensor([clip.label for clip in clips])


def dilated(backbone: VTN, dilation: Any, seed: int) -> VTN:
    """An untrained model of three layers for the features of `backbone`."""
    config = backbone.config
    temporal = dataclasses.replace(
        config.temporal, num_layers=len(WINDOWS), one_sided_window=WINDOWS, dilation=dilation
    )
    return initial_model(seed, ModelConfig.from_any(dataclasses.replace(config, temporal=temporal)))


def _trained(backbone: VTN, dilation: Any, data: tuple[Tensor, Tensor], steps: tuple[int, ...], seed: int) -> VTN:
    """A temporal encoder and head from nothing, in Longformer's stages."""
    fresh = dilated(backbone, dilation, seed)
    generator = torch.Generator().manual_seed(seed)
    reversed_labels = torch.tensor(shapes.REVERSED)
    for stage in staged_schedule(frames=8, window=1, learning_rate=1e-3, steps=steps):
        fresh = use_dense_attention(with_window(fresh, stage.window)).train()
        optimizer = torch.optim.AdamW([*fresh.temporal_encoder.parameters(), *fresh.mlp_head.parameters()])
        stride = FRAMES // stage.frames
        for step in range(stage.steps):
            for group in optimizer.param_groups:
                group["lr"] = stage.learning_rate * min(1.0, (step + 1) / 20)
            chosen = torch.randint(len(data[0]), (48,), generator=generator)
            seen = data[0][chosen][:, int(torch.randint(stride, (1,), generator=generator)) :: stride]
            labels = data[1][chosen]
            if step % 2:
                seen, labels = seen.flip(1), reversed_labels[labels]
            index = torch.arange(stage.frames).expand(len(seen), -1)
            loss = nn.functional.cross_entropy(fresh.classify(seen, index), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(fresh.parameters(), 1.0)
            optimizer.step()
    return fresh.eval()


@torch.no_grad()
def _top1(model: VTN, data: tuple[Tensor, Tensor]) -> float:
    guesses = torch.cat([model.classify(part).argmax(-1) for part in data[0].split(50)])
    return float(np.mean((guesses == data[1]).numpy()))


if __name__ == "__main__":
    main()
