"""What does a new frame of a live stream cost, against its backbone alone, and what do cameras gain that share batches?

    python benchmarks/streaming.py                        vit_b_vtn, deit_tiny_vtn on ONNX Runtime and OpenVINO
    python benchmarks/streaming.py --configs deit_tiny_vtn --rounds 1 --window 24 --dry

One round pushes one stride of 8 frames, one by one, into a stream whose ring of 250 is full: 8 frames through the
backbone and one pass of the temporal graph. Beside it, in turn: the same 8 frames through the backbone session alone,
one by one; both again with the 8 frames in one batch; the stream fed with 640 x 360 pictures that it resizes itself;
and 4 cameras, in streams of their own and in a group. Frames are in memory. Weights are random: time does not depend
on them. Writes results/streaming.json and a section of README.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protocol import THREADS, context, interleave, noise, ratios, store, summary
from tables import describe_context, write_section

SCHEMA = 1
STRIDE, WINDOW, CAMERAS = 8, 250, 4
TARGET = 1.15  # cost of a new frame over its backbone's
ROUNDS = {"vit_b_vtn": 3}
DEFAULT_ROUNDS = 9
NAMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="*", default=["vit_b_vtn", "deit_tiny_vtn"], help="VTN presets")
    parser.add_argument("--backends", nargs="*", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--rounds", type=int, help="(default: 3 for vit_b_vtn, 9 for others)")
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    arguments = parser.parse_args()
    found: dict[str, Any] = {
        "schema_version": SCHEMA, "context": context(), "window": arguments.window, "stride": STRIDE,
        "cameras": CAMERAS, "target": TARGET, "rows": [],
    }  # fmt: skip
    for config in arguments.configs:
        rounds = arguments.rounds or ROUNDS.get(config, DEFAULT_ROUNDS)
        found["rows"] += measure(config, arguments.backends, arguments.window, rounds)
    print("\n".join(table(found)))
    if not arguments.dry:
        store("streaming", found)
        write_section("streaming", "\n".join(table(found)))


def measure(config: str, backends: list[str], window: int, rounds: int) -> list[dict[str, Any]]:
    """One row a backend."""
    from vtn_export.backends import Sessions
    from vtn_export.model.config import ModelConfig
    from vtn_export.onnx.create import create_bundle

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{config}: export …", flush=True)
        loaded = ModelConfig.from_any(config)
        bundle = create_bundle(Path(folder) / "bundle", config=loaded, parts=("backbone", "temporal")).bundle
        for backend in backends:
            with Sessions(bundle, backend, threads=THREADS) as sessions:  # type: ignore[arg-type]
                print(f"{config}, {backend}: {rounds} rounds …", flush=True)
                rows.append(
                    {"config": Path(config).name, "backend": backend, **measure_backend(sessions, window, rounds)}
                )
    return rows


def measure_backend(sessions: Any, window: int, rounds: int) -> dict[str, Any]:
    """Seconds of every run, and the ratios that are asked for."""
    import numpy as np

    from vtn_export.runtime.stream import Stream
    from vtn_export.runtime.stream_group import StreamGroup
    from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS

    generator = np.random.default_rng(0)
    crop = sessions.bundle.manifest.preprocessing.crop_size
    frames = generator.integers(0, 256, (STRIDE, crop, crop, 3), dtype=np.uint8)
    pictures = generator.integers(0, 256, (STRIDE, 360, 640, 3), dtype=np.uint8)
    backbone, temporal = sessions["backbone"], sessions["temporal"]
    width = int(backbone.spec.outputs[0].shape[-1])
    stored = generator.standard_normal((window, width)).astype(np.float32)

    def full(**options: Any) -> Stream:
        """A stream whose ring is full; with stored features, which saves a window of backbone calls."""
        stream = Stream(sessions, window, STRIDE, **options)
        core, track = stream._core, stream._track
        core.steps.keep(track, stored, np.arange(window))
        track.since, track.newest = 0, window - 1
        return stream

    stream, batched, resizing = full(preprocessed=True), full(preprocessed=True), full()
    alone = [full(preprocessed=True) for _ in range(CAMERAS)]
    group: StreamGroup[int] = StreamGroup(sessions, window, STRIDE, preprocessed=True)
    for camera in range(CAMERAS):
        group.add(camera)
        track = group._cameras[camera].track
        group._core.steps.keep(track, stored, np.arange(window))
        track.since, track.newest = 0, window - 1

    def pushes(stream: Stream, frames: Any) -> None:
        assert sum(len(stream.push(frame)) for frame in frames) == 1

    def grouped() -> None:
        told = [group.push(dict.fromkeys(range(CAMERAS), frame)) for frame in frames]
        assert all(len(results) == 1 for results in told[-1].values())

    places = {FRAME_INDEX: np.arange(window, dtype=np.int32)[None], LENGTHS: np.array([window], np.int32)}
    runs: dict[str, Callable[[], Any]] = {
        "backbone": lambda: [backbone.run({FRAMES: frame[None]}) for frame in frames],
        "stream": lambda: pushes(stream, frames),
        "backbone_batch": lambda: backbone.run({FRAMES: frames}),
        "stream_batch": lambda: batched.push(frames),
        "stream_pictures": lambda: pushes(resizing, pictures),
        "temporal": lambda: temporal.run({FEATURES: stored[None], **places}),
        "cameras_apart": lambda: [pushes(own, frames) for own in alone],
        "cameras_together": grouped,
    }
    for run in runs.values():
        run()
    seconds = interleave(runs, rounds)
    return {
        "runs": {name: summary(values) for name, values in seconds.items()},
        "cost": ratios(seconds["stream"], seconds["backbone"]),
        "cost_batch": ratios(seconds["stream_batch"], seconds["backbone_batch"]),
        "cost_pictures": ratios(seconds["stream_pictures"], seconds["backbone"]),
        "gain_of_group": ratios(seconds["cameras_apart"], seconds["cameras_together"]),
    }


def table(found: dict[str, Any]) -> list[str]:
    stride, cameras, target = found["stride"], found["cameras"], found["target"]
    lines = [
        "## Live streams (`python benchmarks/streaming.py`)",
        "",
        f"A new frame in a full window of {found['window']}, a result every {stride} frames, float32. Cost: time of "
        f"{stride} pushed frames and their one result over that of the same {stride} frames through the backbone "
        "session alone; both one frame a call, both in one batch, and fed with 640 × 360 pictures that the stream "
        "resizes (the backbone's side is without the resize). Median over rounds (smallest–largest; ratio of the best "
        "times).",
        "",
        "| network | backend | backbone a frame | stream a frame | temporal pass | cost | in one batch | with resize |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        times = {name: entry["median_seconds"] * 1e3 for name, entry in row["runs"].items()}
        lines.append(
            f"| {row['config']} | {NAMES[row['backend']]} | {times['backbone'] / stride:.1f} ms "
            f"| {times['stream'] / stride:.1f} ms | {times['temporal']:.1f} ms | {_ratio(row['cost'])} "
            f"| {_ratio(row['cost_batch'])} | {_ratio(row['cost_pictures'])} |"
        )
    lines += [
        "",
        f"{cameras} cameras, a frame of each in turn: streams of their own against a `StreamGroup`, whose frames share "
        "the backbone's batches.",
        "",
        "| network | backend | apart | together | faster by |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        speed = {
            name: stride * cameras / row["runs"][name]["median_seconds"]
            for name in ("cameras_apart", "cameras_together")
        }
        lines.append(
            f"| {row['config']} | {NAMES[row['backend']]} | {speed['cameras_apart']:.1f} frames/s "
            f"| {speed['cameras_together']:.1f} frames/s | {_ratio(row['gain_of_group'])} × |"
        )
    lines += ["", "| target | measured | |", "| --- | ---: | --- |"]
    for row in found["rows"]:
        met = "met" if row["cost"]["median"] <= target else "**missed**"
        lines.append(
            f"| {row['config']}, {NAMES[row['backend']]}: a new frame at most {target} × its backbone "
            f"| {_ratio(row['cost'])} | {met} |"
        )
    entries = [entry for row in found["rows"] for entry in row["runs"].values()]
    return [*lines, "", noise(entries), "", describe_context(found["context"])]


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['min']:.3f}–{ratio['max']:.3f}; best {ratio['best']:.3f})"


if __name__ == "__main__":
    main()
