"""`vtn-export triton`: a model repository for Triton Inference Server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from vtn_export.cli.console import Steps, note, print_json, reported
from vtn_export.cli.options import RARE, BundleArgument, Chunk, Json, Threads, one_of

FORMS = ("full", "ensemble", "stream")
BACKENDS = ("ort", "openvino", "trt")


@reported
def command(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", help="The model repository: a new or empty folder.")],
    form: Annotated[
        str, typer.Option("--form", help="full (one graph), ensemble (backbone, temporal) or stream (cameras).")
    ] = "full",
    backend: Annotated[str, typer.Option("--backend", help="ort, openvino or trt, inside the server.")] = "ort",
    name: Annotated[str, typer.Option("--name", help="The model's name on the server.")] = "vtn",
    instances: Annotated[int, typer.Option("--instances", min=1, help="Processes, each with a session.")] = 1,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Clips a call, at most.")] = 8,
    max_frames: Annotated[int, typer.Option("--max-frames", min=1, help="Frames a request, at most.")] = 1024,
    window: Annotated[int | None, typer.Option("--window", min=1, help="stream: frames a result looks at.")] = None,
    stride: Annotated[int | None, typer.Option("--stride", min=1, help="stream: frames from result to result.")] = None,
    idle_seconds: Annotated[
        float,
        typer.Option("--idle-seconds", min=0.1, help="stream: silence that ends a camera.", rich_help_panel=RARE),
    ] = 60.0,
    chunk: Chunk = 16,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Write a repository that `tritonserver --model-repository` loads as it is."""
    one_of(form, FORMS, "--form")
    one_of(backend, BACKENDS, "--backend")
    from vtn_export.backends import Backend
    from vtn_export.bundle import Bundle
    from vtn_export.serve.repository import Form, ServeOptions, write_repository

    opened = Bundle.open(bundle)
    options = ServeOptions(
        form=cast(Form, form),
        name=name,
        backend=cast(Backend, backend),
        instances=instances,
        threads=threads,
        max_batch=max_batch,
        max_frames=max_frames,
        chunk=chunk,
        window=window,
        stride=stride,
        idle_seconds=idle_seconds,
    )
    with Steps()("repository"):
        models = write_repository(opened, out, options)
    if as_json:
        print_json({"repository": str(out), "form": form, "backend": backend, "models": models})
        return
    typer.echo(f"{out}: {', '.join(models)}")
    note(f"next: tritonserver --model-repository={out.resolve()}")
