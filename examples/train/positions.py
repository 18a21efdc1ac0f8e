"""The first part of the training: the backbone learns where the shape is, frame by frame.

A linear layer that is not shipped reads x, y, radius and presence from each frame's feature. Without this the backbone
hears of positions only through the temporal encoder, and takes many times longer.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import numpy as np
import shapes
import torch
from evaluate import heldout_clips
from torch import Tensor, nn

from vtn_export.model.vtn import VTN

FRAMES = 4  # of a clip: the background is the same in all of them, so few
WEIGHTS = (1.0, 1.0, 2.0)  # of x, y and radius in the loss: radii differ less
LOUDNESS = (1.0, 1.0, 3.0, 0.5)  # of x, y, radius and presence: their spreads become alike
CENTER = (0.5, 0.5, 0.14, 0.9)
BATCHES_A_POOL = 8
FRESH = 43  # new clips for each batch
POOLS = 12  # that a batch is drawn from: a clip is seen about three times, mirrored and turned anew

Clips = list[tuple[Any, int, Any]]  # frames uint8 [T, 48, 48, 3], label, truth float32 [T, 4]


def batches(seed: int, steps: int, clips: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches `start`.. of `steps`: frames uint8 [B, T, 48, 48, 3], truth float32 [B, T, 4].

    Each is a function of the seed and its number; clips are made in another process, two pools ahead.
    """
    first, last = start // BATCHES_A_POOL, -(-steps // BATCHES_A_POOL)
    recent: deque[Clips] = deque(maxlen=POOLS)
    with ProcessPoolExecutor(1, initializer=_in_the_background) as workers:
        pending: deque[Future[Clips]] = deque()
        coming = iter(range(max(0, first - POOLS + 1), last))
        for pool in range(max(0, first - POOLS + 1), last):
            while len(pending) < 3 and (following := next(coming, None)) is not None:
                pending.append(workers.submit(_pool, seed, following))
            recent.append(pending.popleft().result())
            if pool < first:
                continue
            known = [clip for made in recent for clip in made]
            for step in range(pool * BATCHES_A_POOL, min((pool + 1) * BATCHES_A_POOL, steps)):
                if step >= start:
                    rng = np.random.default_rng([seed, 3, step])
                    chosen = rng.integers(len(known), size=clips)
                    pixels, _, truth = zip(*(shapes.symmetric(rng, *known[k]) for k in chosen), strict=True)
                    yield torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(truth))


def _in_the_background() -> None:
    os.nice(1)
    torch.set_num_threads(1)


def _pool(seed: int, pool: int) -> Clips:
    made = []
    for number in range(BATCHES_A_POOL * FRESH):
        rng = np.random.default_rng([seed, 5, pool, number])
        clip = shapes.clip(int(rng.integers(1 << 40)), FRAMES)
        made.append((shapes.model_frames(clip.frames), clip.label, clip.truth))
    return made


def loss(model: VTN, where: nn.Linear, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of a batch's places and presences."""
    frames, truth = batch
    guess, seen = where(model.features(frames)), truth[..., 3:]
    apart = (guess[..., :3] - truth[..., :3]) * guess.new_tensor(WEIGHTS)
    return (apart.square() * seen).mean() + (guess[..., 3:] - seen).square().mean() / 4


@torch.no_grad()
def check(model: VTN, where: nn.Linear, clips: int) -> dict[str, float]:
    """On held-out clips of 16 frames: mean distance of x, y in frame widths, and the share that is off by an eighth."""
    model.eval()
    distances = []
    for clip in heldout_clips(clips, 16, seed=1):
        guess = where(model.features(torch.from_numpy(clip.frames)[None])[0])
        truth = torch.from_numpy(clip.truth)
        seen = truth[:, 3] > 0
        distances.append((guess[seen, :2] - truth[seen, :2]).norm(dim=1))
    distance = torch.cat(distances)
    return {"distance": float(distance.mean()), "off": float((distance > 1 / 8).float().mean())}


def loud_directions(width: int, seed: int) -> Tensor:
    """[4, width]: how the features of a sharpened model say x, y, radius and presence."""
    directions = torch.randn(4, width, generator=torch.Generator().manual_seed(seed))
    return directions * torch.tensor(LOUDNESS)[:, None]


@torch.no_grad()
def sharpen(model: VTN, where: nn.Linear, seed: int) -> None:
    """What `where` reads from the features is added to them, loudly: another projection of the same shape.

    Before it the features know positions as a thirtieth of their variance, and a temporal encoder goes on seeing the
    pictures: 28 % of held-out clips right. `where` reads the same from the changed features.
    """
    directions = loud_directions(where.in_features, seed)
    change = torch.eye(where.in_features) + directions.T @ where.weight
    offset = directions.T @ (where.bias - torch.tensor(CENTER))
    model.projection.weight.copy_(change @ model.projection.weight)
    model.projection.bias.copy_(change @ model.projection.bias + offset)
    where.weight.copy_(where.weight @ torch.linalg.inv(change))
    where.bias -= where.weight @ offset
