"""Trains the moving-shapes VTN, in Longformer's stages, on two CPU cores.

    python examples/train/train.py --out runs/shapes             trains, or goes on where it was stopped
    python examples/train/evaluate.py --out runs/shapes          held-out clips of 16-64, 250 and 1,000 frames

Every batch is a function of the seed and its number, so a run that was killed and started again ends like one that
was not. Beside the label, each frame's feature learns where the shape is (a linear layer that is not shipped): without
it the backbone hears of positions only through the temporal encoder and takes many times longer.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from encoder import Settings as EncoderSettings
from encoder import loud_directions, train_encoder
from torch import Tensor, nn

from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.dense import use_dense_attention
from vtn_export.model.schedule import Stage, staged_schedule, with_window
from vtn_export.model.vtn import VTN

PRESET = "moving_shapes"
LONGEST = 1000  # frame indices in training reach this far
SAVE_EVERY = 50  # steps
SHORTEST = 8  # frames
CENTER = (0.5, 0.5, 0.14, 0.9)  # of x, y, radius and presence


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a run goes on only with its own.

    frames, window, learning_rate: of the first stage; steps: of every stage. clips_a_check: held-out clips after each.
    """

    seed: int = 0
    frames: int = 8
    window: int = 1
    learning_rate: float = 3e-3
    steps: tuple[int, ...] = (1500, 800, 500, 300)
    frames_a_batch: int = 512
    where_weight: float = 40.0
    batches_a_pool: int = 8
    clips_a_check: int = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", help="optimizer steps of each stage of the whole model")
    arguments = parser.parse_args()
    steps = tuple(arguments.steps) if arguments.steps else Settings.steps
    train(arguments.out, Settings(seed=arguments.seed, steps=steps), EncoderSettings(seed=arguments.seed))


def train(out: Path, settings: Settings, encoder: EncoderSettings) -> VTN:
    """Trains in `out`: state.pt to go on from, log.jsonl, model.safetensors after each stage. Returns the model."""
    from rich.progress import Progress

    out.mkdir(parents=True, exist_ok=True)
    stages = staged_schedule(
        frames=settings.frames, window=settings.window, learning_rate=settings.learning_rate, steps=settings.steps
    )
    model = initial_model(settings.seed)
    torch.manual_seed(settings.seed)
    where = nn.Linear(model.config.hidden_dim or 0, 4)
    state = _read_state(out / "state.pt", settings)
    first, step = 0, 0
    if state is not None:
        first, step = state["stage"], state["step"]
    for stage in stages[first:]:
        model = use_dense_attention(with_window(model, stage.window)).train()
        optimizer = torch.optim.AdamW([*model.parameters(), *where.parameters()], lr=stage.learning_rate)
        if state is not None:
            model.load_state_dict(state["model"])
            where.load_state_dict(state["where"])
            if state["optimizer"] is not None:
                optimizer.load_state_dict(state["optimizer"])
            state = None
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        schedule = _rate(stage)
        with Progress() as bar:
            task = bar.add_task(f"stage {stage.number}: {stage.frames} frames", total=stage.steps, completed=step)
            began, seen = time.perf_counter(), step
            sums = np.zeros(3)
            for batch in batches(settings, stage, step):
                for group in optimizer.param_groups:
                    group["lr"] = schedule(step)
                torch.manual_seed(settings.seed * 1_000_003 + stage.number * 100_003 + step)  # dropout
                sums += _learn(model, where, optimizer, batch, settings.where_weight)
                step += 1
                bar.update(
                    task, completed=step, description=f"stage {stage.number}: loss {sums[0] / (step - seen):.3f}"
                )
                if step % SAVE_EVERY == 0 or step == stage.steps:
                    done = step - seen
                    seconds = (time.perf_counter() - began) / done
                    row = dict(zip(("loss", "accuracy", "position_loss"), (sums / done).round(4).tolist(), strict=True))
                    _log(
                        out,
                        {"part": "whole", **asdict(stage), "step": step, **row, "seconds_a_step": round(seconds, 4)},
                    )
                    began, seen, sums = time.perf_counter(), step, np.zeros(3)
                    if step < stage.steps:
                        _save(out / "state.pt", settings, stage.number, step, model, where, optimizer)
        _log(out, {"part": "whole", **asdict(stage), "heldout": check(model, stage.frames, settings.clips_a_check)})
        write_weights(model, out / "model.safetensors")
        if stage.number == 0:
            model = sharpened(model, where, settings.seed)
        step = 0
        _save(out / "state.pt", settings, stage.number + 1, step, model, where, None)
    if state is not None:  # all of it was done before
        model.load_state_dict(state["model"])
    model = train_encoder(
        model, out, encoder, partial(_log, out), lambda trained, frames: check(trained, frames, settings.clips_a_check)
    )
    write_weights(model, out / "model.safetensors")
    return model


def write_weights(model: VTN, path: Path) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
    temporary.replace(path)


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


@torch.no_grad()
def sharpened(model: VTN, where: nn.Linear, seed: int) -> VTN:
    """What `where` reads from the features is added to them, loudly, and the temporal encoder starts anew.

    After a stage the features know positions to 4 % of the frame, but as a thirtieth of their variance, and the
    encoder goes on seeing the pictures: 28 % of held-out clips right. The sum is another projection, nothing more.
    """
    directions = loud_directions(where.in_features, seed)
    change = torch.eye(where.in_features) + directions.T @ where.weight
    sharp = with_window(initial_model(seed), max(model.config.temporal.one_sided_window))
    sharp.backbone.load_state_dict(model.backbone.state_dict())
    sharp.projection.weight.copy_(change @ model.projection.weight)
    offset = directions.T @ (where.bias - torch.tensor(CENTER))
    sharp.projection.bias.copy_(change @ model.projection.bias + offset)
    where.weight.copy_(where.weight @ torch.linalg.inv(change))  # reads the same from the changed features
    where.bias -= where.weight @ offset
    return sharp


Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batches(settings: Settings, stage: Stage, start: int) -> Iterator[Batch]:
    """Batches `start`.. of a stage, made in another process, a pool ahead."""
    pools = range(start // settings.batches_a_pool, -(-stage.steps // settings.batches_a_pool))
    with ProcessPoolExecutor(1, initializer=_no_threads) as workers:
        pending: list[Future[Any]] = []
        for pool in pools:
            pending.append(workers.submit(make_pool, settings, stage, pool))
            if len(pending) == 2:
                yield from _of_pool(pending.pop(0), pool - 1, settings, stage, start)
        for made in pending:
            yield from _of_pool(made, pools[-1], settings, stage, start)


def _of_pool(made: Future[Any], pool: int, settings: Settings, stage: Stage, start: int) -> Iterator[Batch]:
    first = pool * settings.batches_a_pool
    for number, batch in enumerate(made.result(), first):
        if start <= number < stage.steps:
            yield tuple(torch.from_numpy(part) for part in batch)  # type: ignore[misc]


def _no_threads() -> None:
    os.nice(1)
    torch.set_num_threads(1)


def make_pool(settings: Settings, stage: Stage, pool: int) -> list[tuple[Any, ...]]:
    """`batches_a_pool` batches of one length: of each, half the clips are new, mirrored, turned and reversed anew.

    A batch: frames uint8 [B, T, 48, 48, 3], frame indices int64 [B, T], labels int64 [B], truth float32 [B, T, 4].
    """
    rng = np.random.default_rng([settings.seed, stage.number, pool])
    frames = stage.frames
    if rng.random() < 0.5:
        frames = int(rng.integers(min(SHORTEST, frames), frames + 1))
    size = max(8, settings.frames_a_batch // frames)
    clips = []
    for _ in range(2 * size):
        clip = shapes.clip(int(rng.integers(1 << 40)), frames)
        clips.append((shapes.model_frames(clip.frames), clip.label, clip.truth))
    made = []
    for _ in range(settings.batches_a_pool):
        chosen = rng.permutation(len(clips))[:size]
        pixels, labels, truth = zip(*(shapes.symmetric(rng, *clips[k]) for k in chosen), strict=True)
        index = np.stack([_indices(rng, frames) for _ in chosen])
        made.append((np.stack(pixels), index, np.array(labels), np.stack(truth)))
    return made


def _indices(rng: np.random.Generator, frames: int) -> Any:
    """Half the clips are whole videos; of the others these are frames spaced evenly over a longer one."""
    longest = frames if rng.random() < 0.5 else frames * (LONGEST / frames) ** rng.random()
    return np.linspace(0, max(longest - 1, frames - 1), frames).round().astype(np.int64)


def _learn(
    model: VTN, where: nn.Linear, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor], where_weight: float
) -> Any:
    """One step. Returns loss, accuracy and the position loss."""
    frames, index, labels, truth = batch
    features = model.features(frames)
    logits = model.classify(features, index)
    loss = nn.functional.cross_entropy(logits, labels)
    guess = where(features)
    seen = truth[..., 3:]
    place = ((guess[..., :3] - truth[..., :3]).square() * seen).mean() + (guess[..., 3:] - seen).square().mean() / 4
    optimizer.zero_grad()
    (loss + where_weight * place).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return np.array([loss.item(), (logits.argmax(-1) == labels).float().mean().item(), place.item()])


def _rate(stage: Stage) -> Any:
    """Warm-up over 50 steps, then a cosine to a tenth: the next stage's half is taken from the top again."""

    def rate(step: int) -> float:
        warm = min(1.0, (step + 1) / min(50, stage.steps))
        return float(stage.learning_rate * warm * (0.55 + 0.45 * np.cos(np.pi * step / stage.steps)))

    return rate


def check(model: VTN, frames: int, clips: int) -> dict[str, float]:
    """Top-1 on held-out clips of a stage's own length and of 64 frames, none of which is in the evaluation."""
    from evaluate import heldout_clips, top1

    return {str(length): top1(model, heldout_clips(clips, length, seed=1)) for length in sorted({frames, 64})}


def _read_state(path: Path, settings: Settings) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["settings"] != json.dumps(asdict(settings)):
        raise SystemExit(f"{path}: of a run with other settings; choose another --out or delete it")
    return state


def _save(path: Path, settings: Settings, stage: int, step: int, model: VTN, where: nn.Linear, optimizer: Any) -> None:
    """optimizer: None between two stages."""
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "settings": json.dumps(asdict(settings)), "stage": stage, "step": step, "model": model.state_dict(),
            "where": where.state_dict(), "optimizer": optimizer and optimizer.state_dict(),
        },
        temporary,
    )  # fmt: skip
    temporary.replace(path)


def _log(out: Path, row: dict[str, Any]) -> None:
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
