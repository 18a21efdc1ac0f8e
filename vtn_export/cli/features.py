"""`vtn-export features`: video → stored features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import print_json, progress_bar, reported
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


@reported
def command(
    bundle: BundleArgument,
    video: Annotated[Path, typer.Argument(help="A video file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Where to store them (default: VIDEO.npz here).")] = None,
    frames: Frames = None,
    chunk: Chunk = 16,
    backend: Backend = "ort",
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Run the backbone over a video once and store its features, to be classified later without the video."""
    from vtn_export.backends import Sessions
    from vtn_export.bundle import Bundle
    from vtn_export.errors import OutputError
    from vtn_export.runtime.features import SUFFIX
    from vtn_export.runtime.inference import extract_features
    from vtn_export.video import ClipReader

    check_backend(backend)
    target = out or Path(video.stem + SUFFIX)
    if target.suffix != SUFFIX:
        raise OutputError(f"--out {target}: expected a name that ends in {SUFFIX}")
    if target.is_dir():
        raise OutputError(f"--out {target}: a folder is in the way, expected a file name")
    opened = Bundle.open(bundle)
    wanted = frame_count(frames, opened.manifest.preprocessing.num_frames)
    backend = backend_of(backend, opened, threads=threads, parts=("backbone",))
    with (
        Sessions(opened, backend, checkpoint=checkpoint, threads=threads) as sessions,
        ClipReader(video, opened.manifest.preprocessing, wanted, chunk=chunk) as reader,
    ):
        session = sessions["backbone"]
        with progress_bar("backbone", reader.num_frames) as advance:
            found, seconds = extract_features(session, reader, advance)
    found = replace(found, backbone_fingerprint=opened.manifest.backbone_fingerprint, source=video.name)
    found.save(target)
    if as_json:
        count, width = found.features.shape
        print_json({"features": str(target), "frames": count, "width": width, "seconds": seconds})
        return
    typer.echo(f"{target}: {found.features.shape[0]} frames × {found.features.shape[1]} features")
    typer.echo(f"next: vtn-export run {bundle} {target}")
