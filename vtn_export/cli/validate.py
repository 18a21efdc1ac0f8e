"""`vtn-export validate`: a bundle against PyTorch's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import Steps, print_json, print_table, reported
from vtn_export.cli.options import (
    DEFAULT_BUNDLE,
    Backend,
    BundleArgument,
    Checkpoint,
    Frames,
    Json,
    Threads,
    backend_of,
    check_backend,
    frame_count,
)
from vtn_export.errors import AccuracyError


@reported
def command(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    video: Annotated[
        Path | None, typer.Option("--video", help="Also compare the three modes (and PyTorch, if here) on this video.")
    ] = None,
    frames: Frames = "32",
    backend: Backend = "ort",
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check every file's hash and every graph against the PyTorch outputs stored in the bundle.

    Needs no torch. Exit 1 when anything is beyond its tolerance.
    """
    from vtn_export.backends import Sessions
    from vtn_export.bundle import Bundle
    from vtn_export.evaluate.validate import validate_golden, validate_video

    check_backend(backend)
    opened = Bundle.open(bundle)
    backend = backend_of(backend, opened, threads=threads)
    steps = Steps()
    with steps("hashes"):
        opened.verify()
    with Sessions(opened, backend, checkpoint=checkpoint, threads=threads, exact=True) as sessions:
        checks = []
        for part in opened.manifest.graphs:
            with steps(f"golden samples, {part}"):
                checks += validate_golden(opened, sessions[part], part)
        if video is not None:
            with steps(f"modes on {video.name}"):
                wanted = frame_count(frames, opened.manifest.preprocessing.num_frames)
                checks += validate_video(opened, sessions, video, wanted, checkpoint)
        emulated = sessions.emulated
    passed = all(check.passed for check in checks)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "backend": backend,
                "emulated": emulated,
                "passed": passed,
                "checks": [check.to_json() for check in checks],
                "seconds": steps.seconds,
            }
        )
    else:
        how = "rounding copy" if emulated else backend
        print_table(
            f"{bundle}: {opened.manifest.name}, {opened.manifest.precision}, {how}",
            ["part", "output", "error", "tolerance", "worst sample", "verdict"],
            [
                [
                    c.part,
                    c.output,
                    f"{c.measured:.2e}",
                    f"{c.tolerance:.2e}",
                    c.worst_sample,
                    "ok" if c.passed else "FAIL",
                ]
                for c in checks
            ],
        )
    if not passed:
        failed = [check.describe() for check in checks if not check.passed]
        if as_json:
            typer.echo(f"error: {'; '.join(failed)}", err=True)
            raise typer.Exit(AccuracyError.exit_code)
        raise AccuracyError("; ".join(failed))
