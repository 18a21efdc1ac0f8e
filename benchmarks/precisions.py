"""What does each precision cost the trained model, and what does it save?

    python benchmarks/precisions.py
    python benchmarks/precisions.py --clips 2 --calibration 8 --precisions int8 --dry

Held-out clips of moving-shapes (examples/train) through the bundle in fp32, typed to fp16 and bf16, and quantized to
int8 and fp8 on other clips, each as its rounding copy in ONNX Runtime: top-1, what the logits lose against fp32,
file sizes, and what TensorRT-RTX builds of it without a GPU. Accuracy does not depend on the machine's load; build
times do. Writes results/precisions.json, a section of README.md and the table of docs/quantize.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from protocol import context, store
from tables import HERE, describe_context, write_section

from engines import _command
from vtn_export.bundle import Bundle
from vtn_export.evaluate.eval import Parts, wilson
from vtn_export.evaluate.forms import Form
from vtn_export.evaluate.metrics import rank_of
from vtn_export.quantize.calibrate import ClipRunner
from vtn_export.quantize.clips import Clip

sys.path.insert(0, str(HERE.parent / "examples" / "train"))
import shapes
from evaluate import SHORT, heldout_clips
from videos import write_video

SCHEMA = 1
FRAMES = SHORT[1]  # of a calibration clip
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
# points of top-1 that may be lost
TARGETS = {"fp16": 0.2, "bf16": 0.2, "int8": 1.0}
_CALIBRATION_SEED = 800_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="moving_shapes", help="its trained weights ship; others get random ones")
    parser.add_argument("--checkpoint", type=Path, help="other weights")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--method", default="max", choices=["max", "entropy", "percentile"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"schema_version": SCHEMA, "context": context(), "frames": list(SHORT), **_told(arguments)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundles = _bundles(folder, arguments)
        found["random_weights"] = bundles["fp32"].manifest.random_weights
        clips, labels = _heldout(arguments.clips, bundles["fp32"])
        reference: Any = None
        found["precisions"] = []
        for precision in ["fp32", *(p for p in arguments.precisions if p != "fp32")]:
            print(f"{precision}: {len(clips)} clips …", flush=True)
            logits = _logits(bundles, precision, clips)
            reference = logits if precision == "fp32" else reference
            row = {"precision": precision, **_accuracy(logits, reference, labels), **_sizes(bundles, precision)}
            found["precisions"].append(row)
    text = "\n".join(table(found))
    print(text)
    if not arguments.dry:
        store("precisions", found)
        write_section("precisions", text)
        write_section("precisions", text.split("\n", 2)[2], HERE.parent / "docs" / "quantize.md")


def _told(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("config", "clips", "calibration", "method")
    return {"checkpoint": str(arguments.checkpoint or ""), **{name: getattr(arguments, name) for name in names}}


def _bundles(folder: Path, arguments: argparse.Namespace) -> dict[str, Bundle]:
    """fp32, and what it is quantized to on clips of the training split, through the command line."""
    weights = [] if arguments.checkpoint is None else [arguments.checkpoint]
    _command("onnx", *weights, "--config", arguments.config, "--out", folder / "fp32")
    videos = folder / "videos"
    videos.mkdir()
    wanted = [precision for precision in ("int8", "fp8") if precision in arguments.precisions]
    for number in range(arguments.calibration if wanted else 0):
        write_video(videos / f"{number:04}.mp4", shapes.clip(_CALIBRATION_SEED + number, FRAMES).frames)  # train split
    for precision in wanted:
        print(f"quantize to {precision} …", flush=True)
        options = ("--method", arguments.method, "--max-drop", 100)  # the loss is what is measured here
        _command(
            "quantize", folder / "fp32", f"--{precision}", "--calibrate", videos, *options, "--out", folder / precision
        )
    return {name: Bundle.open(folder / name) for name in ("fp32", *wanted)}


def _heldout(count: int, bundle: Bundle) -> tuple[list[Clip], Any]:
    """The clips of examples/train's own evaluation as the model sees them, and their labels."""
    size = bundle.manifest.preprocessing.crop_size
    clips, labels = [], []
    print(f"compose {count} held-out clips …", flush=True)
    for made in heldout_clips(count, SHORT):
        small = made.frames[:, :size, :size]
        clips.append(Clip(small, np.arange(len(small), dtype=np.int32)))
        labels.append(made.label)
    return clips, np.array(labels)


def _logits(bundles: Mapping[str, Bundle], precision: str, clips: list[Clip]) -> Any:
    """float32 `[clips, classes]`."""
    with ExitStack() as stack:
        own = bundles.get(precision, bundles["fp32"])
        form = "ort" if precision in bundles else precision
        sessions: Parts = stack.enter_context(Form(own, form))
        runner = ClipRunner(own)
        return np.stack([runner.logits(sessions, clip) for clip in clips])


def _accuracy(logits: Any, reference: Any, labels: Any) -> dict[str, Any]:
    known = labels < logits.shape[1]  # a config of fewer classes, in the smoke test
    right = rank_of(logits[known], labels[known]) == 0
    before = rank_of(reference[known], labels[known]) == 0
    errors = np.abs(logits.astype(np.float64) - reference)
    return {
        "top1": float(right.mean()),
        "top1_interval": list(wilson(float(right.mean()), int(known.sum()))),
        "lost_points": 100 * float(before.mean() - right.mean()),
        "changed_clips": int((logits.argmax(1) != reference.argmax(1)).sum()),
        "logits_max_abs": float(errors.max()),
        "logits_mean_abs": float(errors.mean()),
        "logits_std": float(reference.std()),
    }


def _sizes(bundles: Mapping[str, Bundle], precision: str) -> dict[str, Any]:
    """Bytes of the two halves' engines, seconds of their builds, and products that take 8 bits."""
    own = bundles.get(precision, bundles["fp32"])
    runs = []
    for part in ("backbone", "temporal"):
        options = ("--part", part, f"--{precision}", "--flavor", "rtx", "--compute-capability", "8.9", "--force")
        (built,) = _command("trt", own.path, *options)["parts"]
        runs.append(built["result"])
    graphs = [own.manifest.graphs[part].file for part in ("backbone", "temporal")]
    return {
        "graph_bytes": sum((own.path / name).stat().st_size for name in graphs) if precision in bundles else None,
        "engine_bytes": sum(run["engine_bytes"] for run in runs),
        "build_seconds": sum(run["build_seconds"] for run in runs),
        "quantized_products": sum(run.get("quantized_products", 0) for run in runs),
        "engine_version": runs[0]["version"],
    }


def table(found: dict[str, Any]) -> list[str]:
    rows, (low, high) = found["precisions"], found["frames"]
    weights = "seeded RANDOM weights" if found["random_weights"] else "its trained weights"
    lines = [
        "## Precisions (`python benchmarks/precisions.py`)",
        "",
        f"{found['config']} with {weights}: {found['clips']} held-out clips of {low} to {high} frames in "
        f"ONNX Runtime (rounding copies, Q/DQ unfused), int8 and fp8 calibrated ({found['method']}) on "
        f"{found['calibration']} other clips with every layer quantized. Engines: TensorRT-RTX "
        f"{rows[0]['engine_version']} for SM 8.9, backbone and temporal, built without a GPU and not run.",
        "",
        "| type | top-1 (95 %) | points lost | named otherwise | logits off by: mean, max | graphs | engines | build |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = row["top1_interval"]
        graphs = "" if row["graph_bytes"] is None else f"{row['graph_bytes'] / 1e6:.2f} MB"
        lines.append(
            f"| {row['precision']} | {row['top1']:.1%} ({low:.1%}–{high:.1%}) | {row['lost_points']:.1f} "
            f"| {row['changed_clips']} | {row['logits_mean_abs']:.2g}, {row['logits_max_abs']:.2g} | {graphs} "
            f"| {row['engine_bytes'] / 1e6:.2f} MB | {row['build_seconds']:.1f} s |"
        )
    judged = [
        f"{row['precision']} at most {TARGETS[row['precision']]:g}: "
        + ("met" if row["lost_points"] <= TARGETS[row["precision"]] + 1e-9 else "**missed**")
        for row in rows
        if row["precision"] in TARGETS
    ]
    lines += ["", f"Points lost, targets: {'; '.join(judged)}. The logits' own spread is {rows[0]['logits_std']:.2g}."]
    lines += ["Build times are one run each on a shared machine; the other columns do not depend on its load.", ""]
    return [*lines, describe_context(found["context"])]


if __name__ == "__main__":
    main()
