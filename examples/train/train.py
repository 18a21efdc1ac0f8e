"""Trains the moving-shapes VTN, in Longformer's stages, on two CPU cores.

    python examples/train/train.py --out runs/shapes            trains, or goes on where it was stopped
    python examples/train/train.py --out runs/shapes --evaluate  held-out clips of 16-64, 250 and 1,000 frames

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
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from torch import Tensor, nn

from vtn_export.model.checkpoint import random_model
from vtn_export.model.schedule import Stage, staged_schedule, with_window
from vtn_export.model.vtn import VTN

PRESET = "moving_shapes"
LONGEST = 1000  # frame indices in training reach this far
SAVE_EVERY = 50  # steps


@dataclass(frozen=True)
class Settings:
    """What a run is made of; a run goes on only with its own."""

    seed: int = 0
    frames: int = 8
    window: int = 4
    learning_rate: float = 2e-3
    steps: tuple[int, ...] = (2400, 1200, 600, 300)
    frames_a_batch: int = 512
    where_weight: float = 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="+", help="optimizer steps of each stage")
    parser.add_argument("--evaluate", action="store_true", help="evaluate the trained weights instead of training")
    parser.add_argument("--clips", type=int, nargs=3, default=(1000, 100, 20), help="clips of <= 64, 250, 1000 frames")
    arguments = parser.parse_args()
    if arguments.evaluate:
        model = load_weights(arguments.out / "model.safetensors")
        result = evaluate(model, dict(zip(("64", "250", "1000"), arguments.clips, strict=True)))
        (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))
        return
    steps = tuple(arguments.steps) if arguments.steps else Settings.steps
    train(arguments.out, Settings(seed=arguments.seed, steps=steps))


def train(out: Path, settings: Settings) -> VTN:
    """Trains in `out`: state.pt to go on from, log.jsonl, model.safetensors at the end. Returns the model."""
    from rich.progress import Progress
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    stages = staged_schedule(
        frames=settings.frames, window=settings.window, learning_rate=settings.learning_rate, steps=settings.steps
    )
    model = with_window(initial_model(settings.seed), settings.window).train()
    torch.manual_seed(settings.seed)
    where = nn.Linear(model.config.hidden_dim or 0, 4)
    state = _read_state(out / "state.pt", settings)
    first, step = 0, 0
    if state is not None:
        first, step = state["stage"], state["step"]
    for stage in stages[first:]:
        model = with_window(model, stage.window)
        optimizer = torch.optim.AdamW([*model.parameters(), *where.parameters()], lr=stage.learning_rate)
        if state is not None:
            model.load_state_dict(state["model"])
            where.load_state_dict(state["where"])
            optimizer.load_state_dict(state["optimizer"])
            state = None
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
                    _log(out, stage, step, sums / done, (time.perf_counter() - began) / done)
                    began, seen, sums = time.perf_counter(), step, np.zeros(3)
                    _save(out / "state.pt", settings, stage.number, step, model, where, optimizer)
        step = 0
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    temporary = out / ".model.safetensors"
    save_file(weights, temporary)
    temporary.replace(out / "model.safetensors")
    return model.eval()


def initial_model(seed: int) -> VTN:
    """Random weights, with sinusoids as positions: neighbours begin alike, and all thousand rows learn from each."""
    model = random_model(PRESET, seed)
    table = model.temporal_encoder.embeddings.position_embeddings.weight
    rows, width = table.shape
    rates = torch.exp(torch.arange(0, width, 2) / width * -np.log(2 * LONGEST))
    angles = torch.arange(rows)[:, None] * rates
    with torch.no_grad():
        table.copy_(0.3 * torch.stack([angles.sin(), angles.cos()], -1).flatten(1))
    return model


def load_weights(path: Path) -> VTN:
    from vtn_export.model.checkpoint import load

    return load(path, PRESET)


def batches(settings: Settings, stage: Stage, start: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Batches `start`.. of a stage, made in another process, a few ahead."""
    size = max(4, settings.frames_a_batch // stage.frames)
    ahead = 4
    with ProcessPoolExecutor(1, initializer=os.nice, initargs=(2,)) as pool:
        pending: list[Future[Any]] = []
        for number in range(start, stage.steps + ahead):
            if number < stage.steps:
                pending.append(pool.submit(make_batch, settings.seed, stage.number, number, size, stage.frames))
            if number >= start + ahead - 1 or number >= stage.steps:
                if not pending:
                    return
                yield tuple(torch.from_numpy(part) for part in pending.pop(0).result())  # type: ignore[misc]


def make_batch(seed: int, stage: int, number: int, size: int, frames: int) -> tuple[Any, ...]:
    """frames uint8 [B, T, 48, 48, 3], frame indices int64 [B, T], labels int64 [B], truth float32 [B, T, 4]."""
    rng = np.random.default_rng([seed, stage, number])
    clips = [shapes.clip(int(rng.integers(1 << 40)), frames) for _ in range(size)]
    index = np.stack([_indices(rng, frames) for _ in clips])
    return (
        np.stack([shapes.model_frames(clip.frames) for clip in clips]),
        index,
        np.array([clip.label for clip in clips]),
        np.stack([clip.truth for clip in clips]),
    )


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


def _read_state(path: Path, settings: Settings) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["settings"] != json.dumps(asdict(settings)):
        raise SystemExit(f"{path}: of a run with other settings; choose another --out or delete it")
    return state


def _save(path: Path, settings: Settings, stage: int, step: int, model: VTN, where: nn.Linear, optimizer: Any) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "settings": json.dumps(asdict(settings)), "stage": stage, "step": step, "model": model.state_dict(),
            "where": where.state_dict(), "optimizer": optimizer.state_dict(),
        },
        temporary,
    )  # fmt: skip
    temporary.replace(path)


def _log(out: Path, stage: Stage, step: int, means: Any, seconds: float) -> None:
    loss, accuracy, place = (round(float(value), 4) for value in means)
    with (out / "log.jsonl").open("a") as file:
        row = {**asdict(stage), "step": step, "loss": loss, "accuracy": accuracy, "position_loss": place}
        file.write(json.dumps({**row, "seconds_a_step": round(seconds, 4)}) + "\n")


@torch.no_grad()
def evaluate(model: VTN, clips: dict[str, int]) -> dict[str, Any]:
    """Held-out clips of up to 64 frames, of 250 and of 1,000: top-1; single frames and shuffled ones as a check."""
    model.eval()
    result: dict[str, Any] = {}
    for name, count in clips.items():
        right: dict[str, list[bool]] = {"in order": [], "one frame": [], "shuffled directions": []}
        for number in range(count):
            rng = np.random.default_rng([7, int(name), number])
            frames = int(rng.integers(16, 65)) if name == "64" else int(name)
            clip = shapes.clip(number, frames, "heldout", number % len(shapes.LABELS))
            pixels = torch.from_numpy(shapes.model_frames(clip.frames))
            features = torch.cat([model.features(part[None])[0] for part in pixels.split(64)])
            right["in order"].append(int(model.classify(features[None]).argmax()) == clip.label)
            one = int(rng.integers(frames))
            right["one frame"].append(int(model.classify(features[None, one : one + 1]).argmax()) == clip.label)
            if clip.label in shapes.DIRECTIONS:
                order = torch.from_numpy(rng.permutation(frames))
                right["shuffled directions"].append(int(model.classify(features[None, order]).argmax()) == clip.label)
        result[name] = {kind: {"clips": len(found), "top1": float(np.mean(found))} for kind, found in right.items()}
    return result


if __name__ == "__main__":
    main()
