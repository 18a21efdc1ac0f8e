"""`vtn-export eval`: a bundle on labelled videos."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vtn_export.cli.console import note, print_json, print_table, progress_bar, reported
from vtn_export.cli.options import (
    Backend,
    BundleArgument,
    Checkpoint,
    Chunk,
    Frames,
    Json,
    Threads,
    backend_of,
    check_backend,
    frame_count,
)
from vtn_export.errors import VideoError

if TYPE_CHECKING:
    from vtn_export.evaluate.eval import Evaluation

_MOST_ROWS = 40  # classes in the table; the JSON has all


@reported
def command(
    bundle: BundleArgument,
    dataset: Annotated[
        Path, typer.Argument(help="A folder with a sub-folder of videos a class, or a CSV of video,label.")
    ],
    frames: Frames = None,
    chunk: Chunk = 16,
    backend: Backend = "ort",
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """How often a bundle is right on labelled videos: top-1, top-5, confusion matrix, classes."""
    from vtn_export.backends import Sessions
    from vtn_export.bundle import Bundle
    from vtn_export.evaluate.eval import SCHEMA, SCHEMA_VERSION, evaluate
    from vtn_export.evaluate.labelled import read_labelled

    check_backend(backend)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    wanted = frame_count(frames, manifest.preprocessing.num_frames)
    labelled = read_labelled(dataset, opened.labels())
    backend = backend_of(backend, opened, threads=threads)
    if labelled.missing:
        note(f"no video of {len(labelled.missing)} classes: {', '.join(labelled.missing[:10])}")
    start = time.perf_counter()
    with Sessions(opened, backend, checkpoint=checkpoint, threads=threads, exact=True) as sessions:
        with progress_bar("videos", len(labelled.videos)) as advance:
            found = evaluate(opened, sessions, labelled, frames=wanted, chunk=chunk, progress=advance)
        emulated = sessions.emulated
    if as_json:
        print_json(
            {
                "schema": SCHEMA,
                "schema_version": SCHEMA_VERSION,
                "bundle": str(bundle),
                "name": manifest.name,
                "precision": manifest.precision,
                "random_weights": manifest.random_weights,
                "fingerprint": str(manifest.weights.get("fingerprint")),
                "backend": backend,
                "emulated": emulated,
                "dataset": str(dataset),
                "frames": "all" if wanted is None else wanted,
                **found.to_json(),
                "seconds": round(time.perf_counter() - start, 3),
            }
        )
    else:
        if manifest.random_weights:
            note("the bundle has random weights: it can be right by chance alone")
        how = f"{manifest.precision}, {backend}" + (", rounding copy" if emulated else "")
        _print(found, f"{bundle} on {dataset}: {manifest.name}, {how}")
    _finish(found)


def _print(found: Evaluation, title: str) -> None:
    data: dict[str, Any] = found.to_json()
    if data["videos"]:
        low, high = data["top1_interval"]
        print_table(
            title,
            ["videos", "top-1", "95 %", "top-5"],
            [[str(data["videos"]), f"{data['top1']:.1%}", f"{low:.1%} to {high:.1%}", f"{data['top5']:.1%}"]],
        )
        rows = [
            [row["label"], str(row["support"]), _share(row["recall"]), _share(row["precision"]), _mistake(data, index)]
            for index, row in enumerate(data["classes"])
            if row["support"]
        ]
        if len(rows) > _MOST_ROWS:
            note(f"the first {_MOST_ROWS} of {len(rows)} classes; --json has all")
        columns = ["class", "videos", "recall", "precision", "most often taken for"]
        print_table("classes", columns, rows[:_MOST_ROWS])
    for entry in found.unreadable:
        note(f"skipped {entry['video']}: {entry['why']}")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _mistake(data: dict[str, Any], index: int) -> str:
    wrong = [(count, other) for other, count in enumerate(data["confusion"][index]) if other != index and count]
    if not wrong:
        return ""
    count, other = max(wrong, key=lambda one: (one[0], -one[1]))
    return f"{data['labels'][other]} ({count})"


def _finish(found: Evaluation) -> None:
    if found.unreadable:
        names = ", ".join(Path(entry["video"]).name for entry in found.unreadable)
        typer.echo(f"error: videos that cannot be read: {names}", err=True)
        raise typer.Exit(VideoError.exit_code)
