"""`vtn-export batch`: classify many videos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from vtn_export.cli.batch_progress import watching
from vtn_export.cli.console import fail, note, print_json, reported
from vtn_export.cli.options import (
    RARE,
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
    one_of,
)
from vtn_export.errors import INTERRUPTED_EXIT_CODE, UsageError

MODES = ("chunked", "full", "features")


@reported
def command(
    bundle: BundleArgument,
    inputs: Annotated[
        str, typer.Argument(help="A folder, a glob in quotes, a .txt, .csv or .parquet list; or results with features.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The folder for the results (Parquet).")],
    mode: Annotated[
        str, typer.Option("--mode", help="chunked, full, or features (INPUTS: results of a run with --features).")
    ] = "chunked",
    frames: Frames = None,
    chunk: Chunk = 16,
    backend: Backend = "ort",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Decode processes (default: one a processor).")
    ] = None,
    ray: Annotated[
        str | None, typer.Option("--ray", help="Run on Ray Data: `auto` (or start one here), or a cluster's address.")
    ] = None,
    actors: Annotated[
        int, typer.Option("--actors", min=1, help="With --ray: sessions, one a device.", rich_help_panel=RARE)
    ] = 1,
    features: Annotated[bool, typer.Option("--features", help="Store the features too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run into --out ended.")] = False,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes a row names.")] = 5,
    part_rows: Annotated[
        int, typer.Option("--part-rows", min=1, help="Rows a partition holds at most.", rich_help_panel=RARE)
    ] = 1000,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Classify many videos into Parquet: nothing is lost, a killed run goes on with --resume."""
    one_of(mode, MODES, "--mode")
    check_backend(backend)
    from vtn_export.batch.run import BatchOptions, run_batch
    from vtn_export.batch.stage import PARTS_OF, Mode
    from vtn_export.bundle import Bundle
    from vtn_export.runtime.session import available_cpus

    if mode == "features" and frames is not None:
        raise UsageError(f"--frames: got {frames} with --mode features, expected none: the stored features decide")
    opened = Bundle.open(bundle)
    options = BatchOptions(
        mode=cast(Mode, mode),
        backend=backend_of(backend, opened, threads=threads, parts=PARTS_OF[cast(Mode, mode)]),
        frames=frame_count(frames, opened.manifest.preprocessing.num_frames),
        chunk=chunk,
        workers=workers or available_cpus(),
        threads=threads,
        checkpoint=checkpoint,
        features=features,
        resume=resume,
        top=top,
        ray=ray,
        actors=actors,
        part_rows=part_rows,
    )
    try:
        with watching() as (progress, seconds):
            summary = run_batch(opened, inputs, out, options, progress)
    except KeyboardInterrupt:
        text = f"interrupted; what was finished is in {out}, go on with --resume"
        fail(text, INTERRUPTED_EXIT_CODE, as_json=as_json)
    took = seconds()
    rate = summary.written / took if took else 0.0
    if as_json:
        print_json(
            {
                "results": str(out),
                "inputs": summary.total,
                "already_done": summary.skipped,
                "written": summary.written,
                "failed": summary.failed,
                "frames": summary.frames,
                "seconds": round(took, 3),
                "videos_per_second": round(rate, 3),
            }
        )
        return
    typer.echo(
        f"{out}: {summary.written} videos in {took:.1f} s, {rate:.2f} a second; {summary.skipped} were done before"
    )
    if summary.failed:
        note(f"{summary.failed} of them could not be read or classified: column `error` says why")
