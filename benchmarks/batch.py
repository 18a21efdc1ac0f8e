"""Clips a second of `vtn-export batch` against the number of decode processes, beside one session alone.

    python benchmarks/batch.py [--preset mobilenetv4_vtn] [--clips 60] [--workers 1,2] [--rounds 3]

Clips are copies of the shipped video under other names. The table's first row is what the session alone makes
of frames that are there already: no number of decoders can pass it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from protocol import context, store
from tables import describe_context, write_section

from vtn_export.backends import Sessions
from vtn_export.batch.run import BatchOptions, Progress, run_batch
from vtn_export.bundle import Bundle
from vtn_export.onnx.create import create_bundle
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import classify_features
from vtn_export.spec import FEATURES, FRAMES
from vtn_export.video import ClipReader, shipped_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mobilenetv4_vtn")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        create_bundle(folder / "bundle", config=options.preset)
        bundle = Bundle.open(folder / "bundle")
        (folder / "videos").mkdir()
        for number in range(options.clips):
            shutil.copy(shipped_clip(), folder / "videos" / f"{number:05}.mp4")
        counts = [int(count) for count in options.workers.split(",")]
        rates: dict[str, list[float]] = {"session alone": []} | {str(count): [] for count in counts}
        for turn in range(options.rounds):
            rates["session alone"].append(_session(bundle, options.frames))
            for count in counts:
                rates[str(count)].append(_batch(bundle, folder, options.frames, count, f"{turn}-{count}"))
            print({key: [round(value, 2) for value in values] for key, values in rates.items()}, flush=True)
    result = {
        "preset": options.preset,
        "clips": options.clips,
        "frames": options.frames,
        "clips_per_second": rates,
        "context": context(),
    }
    _store(result)


def _session(bundle: Bundle, frames: int, clips: int = 8) -> float:
    """Clips a second of frames in memory."""
    with Sessions(bundle) as sessions, ClipReader(shipped_clip(), bundle.manifest.preprocessing, frames) as reader:
        backbone, temporal = sessions["backbone"], sessions["temporal"]
        chunks = list(reader)

        def classify() -> None:
            found = [backbone.run({FRAMES: pixels})[FEATURES] for pixels, _ in chunks]
            index = np.concatenate([index for _, index in chunks])
            classify_features(temporal, Features(np.concatenate(found), index, "", ""))

        classify()
        start = time.perf_counter()
        for _ in range(clips):
            classify()
        return clips / (time.perf_counter() - start)


def _batch(bundle: Bundle, folder: Path, frames: int, workers: int, name: str) -> float:
    """Clips a second, from the first outcome to the last: what an archive sees, without the start of the processes."""
    moments: list[float] = []
    progress = Progress(advance=lambda _: moments.append(time.perf_counter()))
    options = BatchOptions(frames=frames, workers=workers)
    run_batch(bundle, str(folder / "videos"), folder / f"out-{name}", options, progress)
    return (len(moments) - 1) / (moments[-1] - moments[0])


def _store(result: dict[str, Any]) -> None:
    store("batch", result)
    lines = [
        "## Many videos (`python benchmarks/batch.py`)",
        "",
        f"`vtn-export batch`, {result['preset']}, {result['clips']} clips of {result['frames']} frames; "
        "median (smallest–largest).",
        "",
        "| decode processes | clips a second | of the session alone |",
        "| --- | ---: | ---: |",
    ]
    alone = median(result["clips_per_second"]["session alone"])
    for name, values in result["clips_per_second"].items():
        middle = median(values)
        lines.append(f"| {name} | {middle:.2f} ({min(values):.2f}–{max(values):.2f}) | {100 * middle / alone:.0f} % |")
    write_section("batch", "\n".join([*lines, "", describe_context(result["context"])]))


if __name__ == "__main__":
    main()
