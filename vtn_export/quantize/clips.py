"""Calibration clips: what quantization looks at to learn how large values get. Kept on disk while it works.

A clip is what the model sees at a time: a video gives one for every `num_frames` of its frames (the bundle's
number), at least one; each is a window of the video, `frames` of whose frames, evenly spaced, are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.errors import CalibrationError, VideoError
from vtn_export.evaluate.videos import SUFFIXES
from vtn_export.spec import Array
from vtn_export.video import ClipReader, sample_indices

FEWEST, FEW = 8, 100  # refused below, warned below
MOST = 512  # clips: NVIDIA asks for at least 500 for a ViT
FRAMES = 16  # looked at in a clip
NOISE_CLIPS = 100
NOISE = "random noise"

_EXPECTED = "expected a folder of real videos like those it will see, or one video"
Progress = Callable[[int], None]  # called with the videos read since the last call


@dataclass(frozen=True)
class Clip:
    """frames uint8 `[n, H, W, 3]` (mapped from disk), frame_index int32 `[n]`."""

    frames: Array
    frame_index: Array


@dataclass(frozen=True)
class Clips:
    """The clips, and where they are from."""

    source: str
    clips: Sequence[Clip]
    videos: int
    unreadable: Sequence[dict[str, str]] = field(default_factory=tuple)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)

    def __len__(self) -> int:
        return len(self.clips)

    def remarks(self) -> Iterator[str]:
        """Lines about what the clips are not."""
        if self.source == NOISE:
            yield "calibrating on RANDOM NOISE: the ranges are not those of real video; for trials alone"
        for entry in self.unreadable:
            yield f"skipped {entry['video']}: {entry['why']}"
        if len(self.clips) < FEW:
            yield f"warning: calibrating on {len(self.clips)} clips; {FEW} or more make its ranges reliable"

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "videos": self.videos,
            "clips": len(self.clips),
            "frames_a_clip": max((len(clip.frames) for clip in self.clips), default=0),
            "unreadable": [dict(entry) for entry in self.unreadable],
        }


def list_videos(source: Path) -> list[Path]:
    """One video, or every video of a folder and the folders in it. Raises CalibrationError."""
    try:
        if source.is_file():
            return [source]
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        next(source.iterdir(), None)  # rglob is silent about a folder that it may not read
    except OSError as error:
        raise CalibrationError(f"--calibrate {source}: {error.strerror or error}; {_EXPECTED}") from None
    if not found:
        raise CalibrationError(f"--calibrate {source}: no videos in it; {_EXPECTED}")
    return found


def read_clips(
    bundle: Bundle,
    videos: Sequence[Path],
    folder: Path,
    *,
    most: int = MOST,
    frames: int = FRAMES,
    progress: Progress = lambda _videos: None,
) -> Clips:
    """Clips of the videos, stored in `folder`. A video that cannot be read is left out and named.

    most: of more clips than that, evenly chosen ones. Raises CalibrationError for none that can be read, and for
    fewer than FEWEST.
    """
    preprocessing = bundle.manifest.preprocessing
    chosen = [videos[i] for i in dict.fromkeys(sample_indices(len(videos), min(most, len(videos))).tolist())]
    windows = max(1, most // len(chosen))
    clips: list[Clip] = []
    unreadable: list[dict[str, str]] = []
    for path in chosen:
        try:
            with ClipReader(path, preprocessing, 1, chunk=1) as probe:
                length = probe.num_video_frames or 1
            count = min(max(1, length // preprocessing.num_frames), windows)
            size = min(frames, preprocessing.num_frames)
            with ClipReader(path, preprocessing, count * size, chunk=size) as reader:
                found = [_stored(folder, len(clips) + i, *part) for i, part in enumerate(reader)]
        except VideoError as error:
            unreadable.append({"video": str(path), "why": " ".join(str(error).split())})
        else:
            clips += found
        progress(1)
    if not clips:
        why = unreadable[0]["why"]
        raise CalibrationError(f"--calibrate: none of {len(unreadable)} videos can be read ({why}); {_EXPECTED}")
    if len(clips) < FEWEST:
        raise CalibrationError(
            f"--calibrate: got {len(clips)} clips from {len(chosen)} videos, expected at least {FEWEST} and better "
            f"{FEW} (a video gives one for every {preprocessing.num_frames} frames); give more or longer videos"
        )
    return Clips("videos", clips, len(chosen) - len(unreadable), unreadable)


def noise_clips(bundle: Bundle, folder: Path, frames: int = FRAMES, seed: int = 0) -> Clips:
    """Frames of random pixels: what no camera sees. For trials without footage."""
    preprocessing = bundle.manifest.preprocessing
    size, crop = min(frames, preprocessing.num_frames), preprocessing.crop_size
    generator = np.random.default_rng(seed)
    index = np.arange(size, dtype=np.int32)
    clips = [
        _stored(folder, i, generator.integers(0, 256, (size, crop, crop, 3), np.uint8), index)
        for i in range(NOISE_CLIPS)
    ]
    return Clips(NOISE, clips, 0)


def _stored(folder: Path, number: int, frames: Array, frame_index: Array) -> Clip:
    path = folder / f"clip.{number}.npy"
    np.save(path, frames)
    return Clip(np.load(path, mmap_mode="r"), frame_index.copy())
