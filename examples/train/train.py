"""Trains the moving-shapes VTN on two CPU cores, in under an hour.

    python examples/train/train.py --out runs/shapes             trains, or goes on where it was stopped
    python examples/train/evaluate.py --out runs/shapes          held-out clips of 16-64, 250 and 1,000 frames

The backbone learns positions (positions.py), then the temporal encoder learns motions in Longformer's stages
(encoder.py). Every batch is a function of the seed and its number, so a run that was killed and started again ends like
one that was not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import encoder
import numpy as np
import positions
import torch
from evaluate import PRESET, heldout_clips, top1
from torch import Tensor, nn
from training_run import Run

from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.dense import use_dense_attention
from vtn_export.model.schedule import Stage, staged_schedule, with_window
from vtn_export.model.vtn import VTN

LONGEST = 1000  # frame indices in training reach this far


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a run goes on only with its own.

    position_*: of the first part. frames, window, learning_rate: of the second's first stage; steps: of each of its
    stages. clips: whose features are made, of each length; copies: how often each is used, mirrored and turned anew.
    clips_a_check: held-out clips after each stage.
    """

    seed: int = 0
    position_steps: int = 3500
    position_learning_rate: float = 4e-3
    position_clips: int = 128
    frames: int = 16
    window: int = 8
    learning_rate: float = 2e-3
    steps: tuple[int, ...] = (1500, 2000, 2500)
    clips: int = 320
    copies: int = 4
    clips_a_batch: int = 32
    clips_a_check: int = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, Settings(seed=arguments.seed))


def train(out: Path, settings: Settings) -> VTN:
    """Trains in `out`: state.pt to go on from, log.jsonl, model.safetensors. Returns the model."""
    run = Run(out, settings)
    model = initial_model(settings.seed)
    torch.manual_seed(settings.seed)
    width = model.projection.out_features
    # the layers that only training needs: where a shape is, and the label at every frame's token
    modules: dict[str, nn.Module] = {"model": model, "where": nn.Linear(width, 4), "every": nn.Linear(width, 10)}
    run.restore(modules)
    if run.stage == 0:
        learn_positions(run, modules, settings)
        run.write_weights(model)
    stages = staged_schedule(
        frames=settings.frames, window=settings.window, learning_rate=settings.learning_rate, steps=settings.steps
    )
    for stage in stages[run.stage - 1 :]:
        learn_motions(run, modules, settings, stage)
        run.write_weights(model)
    return model.eval()


def learn_positions(run: Run, modules: dict[str, nn.Module], settings: Settings) -> None:
    """Stage 0: the backbone and the projection, which ends sharpened."""
    model, where = modules["model"], modules["where"]
    assert isinstance(model, VTN) and isinstance(where, nn.Linear)
    steps = settings.position_steps
    stage = Stage(0, positions.FRAMES, 0, settings.position_learning_rate, steps)
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))  # one makes clips; threads that wait for each other would slow both
    try:
        run.learn(
            "positions",
            stage,
            modules,
            [*model.backbone.parameters(), *model.projection.parameters(), *where.parameters()],
            partial(positions.batches, settings.seed, steps, settings.position_clips),
            lambda batch: _named("loss", positions.loss(model, where, batch)),
        )
    finally:  # whoever goes on in this process goes on with as many: another number rounds otherwise
        torch.set_num_threads(threads)
    heldout = positions.check(model, where, settings.clips_a_check)
    positions.sharpen(model, where, settings.seed)
    run.finish("positions", stage, modules, heldout)


def learn_motions(run: Run, modules: dict[str, nn.Module], settings: Settings, stage: Stage) -> None:
    """One of Longformer's stages: the temporal encoder, the head and the CLS token."""
    model, every = modules["model"], modules["every"]
    assert isinstance(model, VTN) and isinstance(every, nn.Linear)
    data = encoder.clip_features(model, run.out / "features.pt", settings.seed, settings.clips, settings.copies)
    # the same parameters, in another frame: `model` keeps the preset's windows
    narrow = use_dense_attention(with_window(model, stage.window)).train()
    learned = {**modules, "model": narrow}
    run.learn(
        "motions",
        stage,
        learned,
        [*narrow.temporal_encoder.parameters(), *narrow.mlp_head.parameters(), narrow.cls_token, *every.parameters()],
        partial(_batches, data, settings, stage),
        lambda batch: encoder.loss(narrow, every, batch),
    )
    model.load_state_dict(narrow.state_dict())
    narrow.eval()
    lengths = sorted({stage.frames, 64})
    heldout = {str(n): top1(narrow, heldout_clips(settings.clips_a_check, n, seed=1)) for n in lengths}
    run.finish("motions", stage, modules, heldout)


def _named(name: str, loss: Tensor) -> tuple[Tensor, dict[str, float]]:
    return loss, {name: loss.item()}


def _batches(data: encoder.Featured, settings: Settings, stage: Stage, start: int) -> Iterator[encoder.Batch]:
    return encoder.batches(data, settings.seed, stage.number, stage.frames, stage.steps, settings.clips_a_batch, start)


def initial_model(seed: int, config: str | ModelConfig = PRESET) -> VTN:
    """Random weights, with sinusoids as positions: neighbours begin alike, and all thousand rows learn from each."""
    model = random_model(config, seed)
    table = model.temporal_encoder.embeddings.position_embeddings.weight
    rows, width = table.shape
    rates = torch.exp(torch.arange(0, width, 2) / width * -np.log(2 * LONGEST))
    angles = torch.arange(rows)[:, None] * rates
    with torch.no_grad():
        table.copy_(0.3 * torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
    return model


if __name__ == "__main__":
    main()
