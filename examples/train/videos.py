"""Writes moving-shapes clips as videos, with a list of their labels: what `vtn-export run` and `eval` take.

    python examples/train/videos.py --out demo/shapes --clips 3 --film vtn_export/data/clip.mp4
    python examples/train/videos.py --out shapes --clips 200      over the held-out pictures and footage

H.264, 192 × 192 (each pixel of a clip as 2 × 2), 25 frames a second, 16 to 64 frames. labels.csv: path,label.
"""

from __future__ import annotations

import argparse
import csv
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import shapes

ZOOM = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, nargs=2, default=(16, 64), metavar=("FEWEST", "MOST"))
    parser.add_argument("--split", choices=sorted(shapes.PICTURES), default="heldout")
    parser.add_argument("--film", type=Path, help="a video to compose over instead of the split's footage")
    arguments = parser.parse_args()
    film = shapes.read_film(arguments.film)[1] if arguments.film else None
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for number in range(arguments.clips):
            rng = np.random.default_rng([arguments.seed, number, 11])
            frames = int(rng.integers(arguments.frames[0], arguments.frames[1] + 1))
            label = number * 3 % len(shapes.LABELS)  # a few clips are of several kinds
            clip = shapes.clip(int(rng.integers(1 << 40)), frames, arguments.split, label, film)
            name = f"{number:04}-{shapes.LABELS[label].replace(' ', '-')}.mp4"
            write_video(arguments.out / name, clip.frames)
            rows.writerow([name, shapes.LABELS[label]])


def write_video(path: Path, frames: Any) -> None:
    """frames: [T, H, W, 3] uint8 RGB."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = (side * ZOOM for side in frames.shape[1:3])
        stream.pix_fmt = "yuv420p"
        for frame in np.repeat(np.repeat(frames, ZOOM, 1), ZOOM, 2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    main()
