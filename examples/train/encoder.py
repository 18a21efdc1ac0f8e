"""The second half of the training: the temporal encoder, in stages of its own, on fixed features.

Once the backbone knows where shapes are, a feature is a feature: those of some thousand clips are made once, and a step
on 32 clips of 64 frames costs a tenth of one through the backbone. The last thing that is learned, clockwise against
anticlockwise (a product of place and velocity), takes a thousand such steps.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from torch import Tensor, nn

from vtn_export.model.dense import use_dense_attention
from vtn_export.model.schedule import staged_schedule, with_window
from vtn_export.model.vtn import VTN

SAVE_EVERY = 100  # steps
UNSURE = (0.05, 0.05, 0.02, 0.1)  # noise of x, y, radius and presence at most
LOUDNESS = (1.0, 1.0, 3.0, 0.5)  # of the same: their spreads become alike
STRETCHED = 30  # times: how far apart the frames of a longer video are at most


@dataclass(frozen=True)
class Settings:
    """clips: how many are made for each number of frames; copies: how often each is used, mirrored and turned anew."""

    seed: int = 0
    frames: int = 32
    window: int = 16
    learning_rate: float = 1e-3
    steps: tuple[int, ...] = (1500, 2000)
    clips: tuple[int, ...] = (1600, 0)
    copies: int = 6
    clips_a_batch: int = 32


def loud_directions(width: int, seed: int) -> Tensor:
    """[4, width]: how the features of a sharpened model say x, y, radius and presence."""
    directions = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    return directions * torch.tensor(LOUDNESS)[:, None]


Check = Callable[[VTN, int], dict[str, float]]


def train_encoder(
    model: VTN, out: Path, settings: Settings, log: Callable[[dict[str, Any]], None], check: Check
) -> VTN:
    """`model` with its temporal encoder and head trained further; the rest is fixed. Resumes from encoder.pt in `out`.

    Clips of a stage that has none of its own are those of the one before; the first stage's have the second's frames.
    """
    from rich.progress import Progress

    stages = staged_schedule(
        frames=settings.frames, window=settings.window, learning_rate=settings.learning_rate, steps=settings.steps
    )
    torch.manual_seed(settings.seed)
    every = nn.Linear(model.config.hidden_dim or 0, model.config.num_classes)  # names the clip at every frame's token
    directions = loud_directions(model.config.hidden_dim or 0, settings.seed)
    state = _read(out / "encoder.pt", settings)
    first, step = (state["stage"], state["step"]) if state else (0, 0)
    for stage in stages[first:]:
        data = clip_features(model, out, settings, stage.number)
        model = use_dense_attention(with_window(model, stage.window)).train()
        model.backbone.eval()
        learned = [*model.temporal_encoder.parameters(), *model.mlp_head.parameters(), model.cls_token]
        optimizer = torch.optim.AdamW([*learned, *every.parameters()], lr=stage.learning_rate)
        if state is not None:
            model.load_state_dict(state["model"])
            every.load_state_dict(state["every"])
            if state["optimizer"] is not None:
                optimizer.load_state_dict(state["optimizer"])
            state = None
        sums, seen = np.zeros(2), step
        with Progress() as bar:
            task = bar.add_task(f"encoder, {stage.frames} frames", total=stage.steps, completed=step)
            while step < stage.steps:
                rate = min(1.0, (step + 1) / 50) * (0.55 + 0.45 * np.cos(np.pi * step / stage.steps))
                for group in optimizer.param_groups:
                    group["lr"] = float(stage.learning_rate * rate)
                rng = np.random.default_rng([settings.seed, 17, stage.number, step])
                sums += _learn(
                    model, every, optimizer, _batch(rng, data, directions, settings.clips_a_batch, stage.frames)
                )
                step += 1
                bar.update(task, completed=step)
                if step % SAVE_EVERY == 0 or step == stage.steps:
                    loss, accuracy = (sums / (step - seen)).round(4).tolist()
                    log({"part": "encoder", **asdict(stage), "step": step, "loss": loss, "accuracy": accuracy})
                    sums, seen = np.zeros(2), step
                    if step < stage.steps:
                        _save(out / "encoder.pt", settings, stage.number, step, model, every, optimizer)
        log({"part": "encoder", **asdict(stage), "heldout": check(model, stage.frames)})
        step = 0
        _save(out / "encoder.pt", settings, stage.number + 1, 0, model, every, None)
    if state is not None:  # all of it was done before
        model.load_state_dict(state["model"])
    return model.eval()


Featured = tuple[Tensor, Tensor]  # [N, T, E], labels [N]


def clip_features(model: VTN, out: Path, settings: Settings, stage: int) -> Featured:
    """Of a stage's clips; made once, kept in `out`."""
    number = max(i for i in range(stage + 1) if settings.clips[i])
    frames = settings.frames << max(number, 1)
    path = out / f"features-{number}.pt"
    if path.exists():
        stored = torch.load(path, weights_only=True)
        return stored["features"], stored["labels"]
    from rich.progress import track

    features, labels = [], []
    model.eval()
    with ProcessPoolExecutor(2) as workers, torch.no_grad():
        work = ((settings, number, k, frames) for k in range(settings.clips[number]))
        for pixels, named in track(workers.map(_copies, work), f"clips of {frames} frames", settings.clips[number]):
            features.append(model.features(torch.from_numpy(pixels)))
            labels += named
    made = torch.cat(features), torch.tensor(labels)
    torch.save({"features": made[0], "labels": made[1]}, path)
    return made


def _copies(job: tuple[Settings, int, int, int]) -> tuple[Any, list[int]]:
    """A clip mirrored, turned, reversed and recoloured: uint8 [copies, T, 48, 48, 3], labels."""
    settings, number, k, frames = job
    rng = np.random.default_rng([settings.seed, 13, number, k])
    clip = shapes.clip(int(rng.integers(1 << 40)), frames)
    small = shapes.model_frames(clip.frames)
    made = [shapes.symmetric(rng, small, clip.label, clip.truth)[:2] for _ in range(settings.copies)]
    return np.stack([pixels for pixels, _ in made]), [label for _, label in made]


def _batch(
    rng: np.random.Generator, data: Featured, directions: Tensor, count: int, frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Features [B, T, E], frame indices [B, T], labels [B]; half of the batches are shorter than `frames`.

    Frames of a clip are taken evenly; half of the clips count as parts of a longer video. Places get noise: over
    footage that the backbone has not seen it is less sure of them.
    """
    features, labels = data
    chosen = torch.from_numpy(rng.integers(len(features), size=count))
    length = frames if rng.random() < 0.5 else int(rng.integers(min(8, frames), frames + 1))
    taken = np.linspace(0, features.shape[1] - 1, length).round().astype(np.int64)
    seen, named = features[chosen][:, taken], labels[chosen]
    if rng.random() < 0.5:
        seen, named = seen.flip(1), torch.tensor(shapes.REVERSED)[named]
    noise = rng.standard_normal((count, length, 4)) * rng.random((count, 1, 1)) * UNSURE
    seen = seen + torch.from_numpy(noise.astype(np.float32)) @ directions
    longest = min(1000 / length, STRETCHED)
    stretch = np.where(rng.random(count) < 0.5, 1.0, longest ** rng.random(count))
    index = (np.arange(length) * stretch[:, None]).round().astype(np.int64)
    return seen, torch.from_numpy(index), named


def _learn(model: VTN, every: nn.Linear, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor]) -> Any:
    """One step. Returns loss and accuracy."""
    features, index, labels = batch
    tokens = model.encode(features, index)
    logits = model.mlp_head(tokens[:, 0])
    loss = nn.functional.cross_entropy(logits, labels)
    named = every(tokens[:, 1:])
    helping = nn.functional.cross_entropy(named.flatten(0, 1), labels.repeat_interleave(named.shape[1]))
    optimizer.zero_grad()
    (loss + helping).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return np.array([loss.item(), (logits.argmax(-1) == labels).float().mean().item()])


def _read(path: Path, settings: Settings) -> dict[str, Any] | None:
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, weights_only=True)
    if state["settings"] != json.dumps(asdict(settings)):
        raise SystemExit(f"{path}: of a run with other settings; choose another --out or delete it")
    return state


def _save(path: Path, settings: Settings, stage: int, step: int, model: VTN, every: nn.Linear, optimizer: Any) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {
            "settings": json.dumps(asdict(settings)), "stage": stage, "step": step, "model": model.state_dict(),
            "every": every.state_dict(), "optimizer": optimizer and optimizer.state_dict(),
        },
        temporary,
    )  # fmt: skip
    temporary.replace(path)
