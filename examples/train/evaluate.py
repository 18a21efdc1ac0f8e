"""Held-out evaluation of moving-shapes: top-1 by length, and whether order in time matters.

    python examples/train/evaluate.py --out runs/shapes          writes runs/shapes/evaluation.json

Clips lie over footage and pictures that training never saw. Two checks that the model watches instead of guessing:
frames in random order, and a baseline that sees single frames (the same temporal encoder and head, trained anew on
single frames' features).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapes
import torch
from torch import Tensor, nn

from vtn_export.model.checkpoint import load, random_model
from vtn_export.model.dense import use_dense_attention
from vtn_export.model.vtn import VTN

PRESET = "moving_shapes"
SHORT = (16, 64)  # frames
COUNTS = {"16-64": 1000, "250": 100, "1000": 20}
LENGTHS: dict[str, int | tuple[int, int]] = {"16-64": SHORT, "250": 250, "1000": 1000}


@dataclass(frozen=True)
class Small:
    """A clip as the model sees it: uint8 [T, 48, 48, 3], and float32 [T, 4], as of `shapes.Clip`."""

    frames: Any
    label: int
    truth: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--clips", type=int, nargs=3, default=tuple(COUNTS.values()), help="of each length")
    arguments = parser.parse_args()
    model = load(arguments.out / "model.safetensors", PRESET)
    counts = dict(zip(COUNTS, arguments.clips, strict=True))
    result = evaluate(model, counts, watched)
    (arguments.out / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def watched(clips: Iterable[Small], total: int, what: str) -> Iterable[Small]:
    """The clips, with a progress bar."""
    from rich.progress import track

    return track(clips, what, total)


Watch = Callable[[Iterable[Small], int, str], Iterable[Small]]


def evaluate(model: VTN, counts: dict[str, int], watch: Watch = lambda clips, total, what: clips) -> dict[str, Any]:
    """Top-1 of `counts` held-out clips of each length of LENGTHS, of the same shuffled, and of one frame of each.

    `shuffled_way_kept`: of the six direction classes, how often the right one beats its opposite (clockwise against
    anticlockwise) once frames are shuffled; chance is a half. Which axis a shape moved along needs no order.
    """
    model = use_dense_attention(model).eval()
    singles = SingleFrames.trained(model)
    result: dict[str, Any] = {}
    for name, count in counts.items():
        if not count:
            continue
        rng = np.random.default_rng(list(counts).index(name))
        guesses: dict[str, list[int]] = {"ordered": [], "shuffled": [], "one_frame": []}
        labels, way_kept = [], []
        for clip in watch(heldout_clips(count, LENGTHS[name]), count, f"{name} frames"):
            seen = features(model, clip.frames)
            order = torch.from_numpy(rng.permutation(seen.shape[1]))
            guesses["ordered"].append(_guess(model, seen))
            shuffled = _logits(model, seen[:, order])
            guesses["shuffled"].append(int(shuffled.argmax()))
            if clip.label in shapes.DIRECTIONS:
                way_kept.append(bool(shuffled[clip.label] > shuffled[shapes.REVERSED[clip.label]]))
            guesses["one_frame"].append(singles.guess(seen[:, order[:1]]))
            labels.append(clip.label)
        result[name] = {**_scores(guesses, np.array(labels)), "shuffled_way_kept": float(np.mean(way_kept))}
    return result


def heldout_clips(count: int, frames: int | tuple[int, int], seed: int = 0) -> Iterator[Small]:
    """Clips over held-out footage, labels in turn, made in two processes. frames: of each, or (fewest, most)."""
    low, high = (frames, frames) if isinstance(frames, int) else frames
    with ProcessPoolExecutor(2) as workers:
        yield from workers.map(_heldout, ((seed, number, low, high) for number in range(count)))


def _heldout(job: tuple[int, int, int, int]) -> Small:
    seed, number, low, high = job
    rng = np.random.default_rng([seed, number, 7])
    length = int(rng.integers(low, high + 1))
    label = number % len(shapes.LABELS)
    clip = shapes.clip(int(rng.integers(1 << 40)), length, "heldout", label)
    return Small(shapes.model_frames(clip.frames), label, clip.truth)


@torch.no_grad()
def features(model: VTN, frames: Any) -> Tensor:
    """[1, T, E] of uint8 [T, 48, 48, 3]."""
    return torch.cat([model.features(part[None])[0] for part in torch.from_numpy(frames).split(128)])[None]


def top1(model: VTN, clips: Iterable[Small]) -> float:
    """Of whole clips, every frame seen."""
    model.eval()
    return float(np.mean([_guess(model, features(model, clip.frames)) == clip.label for clip in clips]))


class SingleFrames:
    """The baseline: the model's temporal encoder and head, trained anew to name a clip from one frame's feature."""

    def __init__(self, model: VTN) -> None:
        self.head = model

    @classmethod
    def trained(cls, model: VTN, clips: int = 600, steps: int = 400) -> SingleFrames:
        """Eight frames of each training clip, all of the clip's time; deterministic."""
        seen = [shapes.clip(number, 8) for number in range(clips)]
        inputs = torch.cat([features(model, shapes.model_frames(clip.frames))[0] for clip in seen])[:, None]
        labels = torch.tensor([clip.label for clip in seen]).repeat_interleave(8)
        fresh = use_dense_attention(random_model(model.config, seed=1))
        optimizer = torch.optim.AdamW([*fresh.temporal_encoder.parameters(), *fresh.mlp_head.parameters()], lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chosen = torch.randint(len(inputs), (256,), generator=generator)
            loss = nn.functional.cross_entropy(fresh.classify(inputs[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return cls(fresh.eval())

    def guess(self, feature: Tensor) -> int:
        """feature: [1, 1, E]."""
        return _guess(self.head, feature)


@torch.no_grad()
def _logits(model: VTN, seen: Tensor) -> Tensor:
    return model.classify(seen)[0]


def _guess(model: VTN, seen: Tensor) -> int:
    return int(_logits(model, seen).argmax())


def _scores(guesses: dict[str, list[int]], labels: Any) -> dict[str, Any]:
    right = {kind: np.array(found) == labels for kind, found in guesses.items()}
    directions = np.isin(labels, list(shapes.DIRECTIONS))
    top = float(right["ordered"].mean())
    return {
        "clips": len(labels),
        "top1": top,
        "standard_error": float(np.sqrt(top * (1 - top) / len(labels))),
        "per_class": {
            label: float(right["ordered"][labels == number].mean())
            for number, label in enumerate(shapes.LABELS)
            if (labels == number).any()
        },
        "shuffled_directions_top1": float(right["shuffled"][directions].mean()),
        "one_frame_top1": float(right["one_frame"].mean()),
    }


if __name__ == "__main__":
    main()
