"""The second part of the training: the temporal encoder, in Longformer's stages, on fixed features.

Once the backbone knows where shapes are, a feature is a feature: those of some thousand clips are made once, and a step
on 32 clips costs a tenth of one through the backbone. The last thing that is learned, clockwise against anticlockwise
(a product of place and velocity), takes a thousand such steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from positions import loud_directions
from torch import Tensor, nn

from vtn_export.model.vtn import VTN

LENGTHS = tuple(range(16, 65, 4))  # frames of the clips whose features are made
SHORTEST = 8  # frames of a batch
UNSURE = (0.05, 0.05, 0.02, 0.1)  # noise of x, y, radius and presence at most
STRETCHED = 30  # times: how far apart the frames of a longer video are at most

Featured = list[tuple[Tensor, Tensor]]  # of each length: features [N, T, E], labels [N]
Batch = tuple[Tensor, Tensor, Tensor]  # features [B, T, E], frame indices int64 [B, T], labels [B]


def clip_features(model: VTN, path: Path, seed: int, clips: int, copies: int) -> Featured:
    """Of `clips` clips of each of LENGTHS, mirrored and turned `copies` times; made once, kept in `path`."""
    from rich.progress import Progress

    if path.exists():
        stored: Featured = torch.load(path, weights_only=True)
        return stored
    model.eval()
    made: Featured = []
    with ProcessPoolExecutor(2) as workers, Progress() as bar, torch.no_grad():
        task = bar.add_task("features of clips", total=len(LENGTHS) * clips)
        for frames in LENGTHS:
            features, labels = [], []
            for pixels, named in workers.map(_copies, ((seed, number, frames, copies) for number in range(clips))):
                features.append(model.features(torch.from_numpy(pixels)))
                labels += named
                bar.advance(task)
            made.append((torch.cat(features), torch.tensor(labels)))
    temporary = path.with_suffix(".part")
    torch.save(made, temporary)
    temporary.replace(path)
    return made


def _copies(job: tuple[int, int, int, int]) -> tuple[Any, list[int]]:
    """uint8 [copies, T, 48, 48, 3], labels."""
    seed, number, frames, copies = job
    rng = np.random.default_rng([seed, 13, frames, number])
    clip = shapes.clip(int(rng.integers(1 << 40)), frames)
    small = shapes.model_frames(clip.frames)
    made = [shapes.symmetric(rng, small, clip.label, clip.truth)[:2] for _ in range(copies)]
    return np.stack([pixels for pixels, _ in made]), [label for _, label in made]


def batches(data: Featured, seed: int, stage: int, frames: int, steps: int, clips: int, start: int) -> Iterator[Batch]:
    """Batches `start`.. of `steps`, each a function of the seed and its number: clips of one length, `frames` at most.

    A quarter of the batches, and those whose clips are longer than `frames`, take frames evenly from all of the clip;
    a quarter is played backwards. Half of the clips count as parts of a longer video. Places get noise: over footage
    that the backbone has not seen it is less sure of them.
    """
    directions = loud_directions(data[0][0].shape[2], seed)
    for step in range(start, steps):
        rng = np.random.default_rng([seed, 17, stage, step])
        features, labels = data[rng.integers(len(data))]
        length = min(frames, features.shape[1])
        if rng.random() < 0.25:
            length = int(rng.integers(min(SHORTEST, length), length + 1))
        chosen = torch.from_numpy(rng.integers(len(features), size=clips))
        taken = np.linspace(0, features.shape[1] - 1, length).round().astype(np.int64)
        seen, named = features[chosen][:, taken], labels[chosen]
        if rng.random() < 0.25:
            seen, named = seen.flip(1), torch.tensor(shapes.REVERSED)[named]
        noise = rng.standard_normal((clips, length, 4)) * rng.random((clips, 1, 1)) * UNSURE
        seen = seen + torch.from_numpy(noise.astype(np.float32)) @ directions
        longest = min(1000 / length, STRETCHED)
        stretch = np.where(rng.random(clips) < 0.5, 1.0, longest ** rng.random(clips))
        index = (np.arange(length) * stretch[:, None]).round().astype(np.int64)
        yield seen, torch.from_numpy(index), named


def loss(model: VTN, every: nn.Linear, batch: Batch) -> tuple[Tensor, dict[str, float]]:
    """Of a batch's labels at the CLS token and, by a layer that is not shipped, at every frame's token."""
    features, index, labels = batch
    tokens = model.encode(features, index)
    logits = model.mlp_head(tokens[:, 0])
    named = every(tokens[:, 1:])
    own = nn.functional.cross_entropy(logits, labels)
    helping = nn.functional.cross_entropy(named.flatten(0, 1), labels.repeat_interleave(named.shape[1]))
    accuracy = (logits.argmax(-1) == labels).float().mean()
    return own + helping, {"loss": own.item(), "accuracy": accuracy.item()}
