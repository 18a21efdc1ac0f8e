"""Clips a second of `vtn-export batch` against the number of decode processes, beside one session alone.

    python benchmarks/batch.py [--preset mobilenetv4_vtn] [--clips 60] [--workers 1,2] [--rounds 3]
    python benchmarks/batch.py --clips 4 --frames 4 --rounds 1 --long 6 --long-clips 2 --dry     # smallest

Clips are copies of the shipped video under other names. The table's first row is what the session alone makes
of frames that are there already: no number of decoders can pass it. A second table fills in the cost model of
docs/batch.md: processor seconds of decoding and of the session for a clip of --long frames, what the model makes of
them, and what a run of such clips really took.
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
from vtn_export.batch.decode import DecodeSettings, Failed, decode_video
from vtn_export.batch.run import BatchOptions, Progress, run_batch
from vtn_export.bundle import Bundle
from vtn_export.onnx.create import create_bundle
from vtn_export.runtime.features import Features
from vtn_export.runtime.inference import classify_features
from vtn_export.runtime.session import available_cpus
from vtn_export.spec import FEATURES, FRAMES
from vtn_export.video import ClipReader, shipped_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mobilenetv4_vtn")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, default=250, help="frames of a clip in the cost model: 10 s")
    parser.add_argument("--long-clips", type=int, default=6)
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"exporting {options.preset} …", flush=True)
        create_bundle(folder / "bundle", config=options.preset)
        bundle = Bundle.open(folder / "bundle")
        (folder / "videos").mkdir()
        for number in range(options.clips):
            shutil.copy(shipped_clip(), folder / "videos" / f"{number:05}.mp4")
        counts = [int(count) for count in options.workers.split(",")]
        rates: dict[str, list[float]] = {"session alone": []} | {str(count): [] for count in counts}
        costs: list[dict[str, float]] = []
        for turn in range(options.rounds):
            rates["session alone"].append(_session(bundle, options.frames))
            for count in counts:
                rates[str(count)].append(_batch(bundle, folder, options.frames, count, f"{turn}-{count}"))
            costs.append(_cost(bundle, folder, options.long, options.long_clips, max(counts), turn))
            print(f"round {turn + 1} of {options.rounds}, clips a second:", flush=True)
            print({key: [round(value, 2) for value in values] for key, values in rates.items()}, flush=True)
            print({key: round(value, 3) for key, value in costs[-1].items()}, flush=True)
    result = {
        "preset": options.preset,
        "clips": options.clips,
        "frames": options.frames,
        "clips_per_second": rates,
        "long_frames": options.long,
        "cost": costs,
        "context": context(),
    }
    section = _section(result)
    print(section)
    if not options.dry:
        store("batch", result)
        write_section("batch", section)


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


def _batch(bundle: Bundle, folder: Path, frames: int, workers: int, name: str, inputs: str = "videos") -> float:
    """Clips a second, from the first outcome to the last: what an archive sees, without the start of the processes."""
    moments: list[float] = []
    progress = Progress(advance=lambda _: moments.append(time.perf_counter()))
    options = BatchOptions(frames=frames, workers=workers)
    run_batch(bundle, str(folder / inputs), folder / f"out-{name}", options, progress)
    return (len(moments) - 1) / (moments[-1] - moments[0])


def _cost(bundle: Bundle, folder: Path, frames: int, clips: int, workers: int, turn: int) -> dict[str, float]:
    """What the model asks for, each measured alone; clips a second that it forecasts for this machine, and seen."""
    (folder / "long.txt").write_text("".join(f"{folder}/videos/{n:05}.mp4\n" for n in range(clips)))
    settings = DecodeSettings(bundle.manifest.preprocessing, frames, 16)
    path = str(folder / "videos" / "00000.mp4")
    start = time.process_time()
    for event in decode_video(path, settings):
        assert not isinstance(event, Failed), event
    decode, start = time.process_time() - start, time.process_time()
    _session(bundle, frames, clips=1)  # once to warm up, once timed: two clips, and opening the sessions
    session = (time.process_time() - start) / 2
    forecast = available_cpus() / (decode + session)
    seen = _batch(bundle, folder, frames, workers, f"long-{turn}", "long.txt")
    return {"decode_s": decode, "session_s": session, "forecast": forecast, "seen": seen}


def _section(result: dict[str, Any]) -> str:
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
    return "\n".join([*lines, "", *_cost_lines(result), describe_context(result["context"])])


def _cost_lines(result: dict[str, Any]) -> list[str]:
    """The model of docs/batch.md, filled in: hours for a million clips on nodes like this one."""
    cost = {key: median(entry[key] for entry in result["cost"]) for key in result["cost"][0]}
    rate, cores = cost["seen"], result["context"].get("cpus", available_cpus())
    return [
        f"A clip of {result['long_frames']} frames costs {cost['decode_s']:.2f} processor seconds to decode and "
        f"{cost['session_s']:.2f} in the session (each alone). The model forecasts {cost['forecast']:.2f} clips a "
        f"second for {cores} processors, a run of such clips made {rate:.2f}, e = {rate / cost['forecast']:.2f}. "
        "10⁶ clips then take, if nodes do not disturb each other (not measured):",
        "",
        "| nodes like this | hours |",
        "| ---: | ---: |",
        *(f"| {nodes} | {1e6 / 3600 / rate / nodes:,.1f} |" for nodes in (1, 10, 100)),
        "",
    ]


if __name__ == "__main__":
    main()
