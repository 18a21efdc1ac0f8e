"""`vtn-export run`: classify a video."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import note, print_json, print_table, progress_bar, reported
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
from vtn_export.errors import UsageError
from vtn_export.spec import Part

MODES = ("full", "chunked", "features")


@reported
def command(
    bundle: BundleArgument,
    video: Annotated[
        Path | None, typer.Argument(help="A video file, or features that `vtn-export features` stored.")
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="full, chunked or features (default: chunked for videos, features for .npz)."),
    ] = None,
    frames: Frames = None,
    chunk: Chunk = 16,
    backend: Backend = "ort",
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to print.")] = 5,
    stream: Annotated[
        str | None,
        typer.Option("--stream", help="Instead of VIDEO: a file, device, URL or - (a pipe), classified as it comes."),
    ] = None,
    window: Annotated[
        int | None, typer.Option("--window", min=1, help="With --stream: frames of a look (default: the bundle's).")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="With --stream: frames from result to result (default: 8).")
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            help="With --stream, for frames that come too fast: drop-oldest (default for devices and URLs), "
            "drop-newest, block (default for files and pipes).",
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help="With --stream -: WIDTHxHEIGHT of raw frames; without: a container.")
    ] = None,
    pixel_format: Annotated[
        str | None,
        typer.Option("--pixel-format", help="Of raw frames (default: rgb24; FFmpeg's names).", rich_help_panel=RARE),
    ] = None,
    every: Annotated[
        int,
        typer.Option("--every", min=1, help="With --stream: take every N-th frame.", rich_help_panel=RARE),
    ] = 1,
    index: Annotated[
        str,
        typer.Option(
            "--index",
            help="With --stream: a frame's place is its number (frames), or follows its timestamp (time).",
            rich_help_panel=RARE,
        ),
    ] = "frames",
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue", min=1, help="With --stream: frames that may wait (default: one stride).", rich_help_panel=RARE
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            min=0,
            help="With --stream: seconds after which a result is late.",
            rich_help_panel=RARE,
        ),
    ] = None,
    source_format: Annotated[
        str | None,
        typer.Option("--source-format", help="FFmpeg's name of the source's format.", rich_help_panel=RARE),
    ] = None,
    source_option: Annotated[
        list[str] | None,
        typer.Option(
            "--source-option", help="NAME=VALUE for FFmpeg's input, as rtsp_transport=tcp.", rich_help_panel=RARE
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Name what happens in a video: the whole of it in one look, or live with --stream."""
    if stream is not None:
        from vtn_export.cli.run_stream import StreamRequest, run_stream

        for name, got in (("VIDEO", video), ("--mode", mode), ("--frames", frames)):
            if got is not None:
                raise UsageError(f"--stream: got {name} {got} as well, expected one of the two")
        request = StreamRequest(
            stream, window, stride, policy, queue, deadline, every, index, size, pixel_format, source_format,
            source_option or [],
        )  # fmt: skip
        run_stream(bundle, request, backend=backend, top=top, checkpoint=checkpoint, threads=threads, as_json=as_json)
        return
    if video is None:
        raise UsageError("VIDEO: got none, expected a video file, stored features, or --stream SOURCE")
    given = {"--window": window, "--stride": stride, "--policy": policy, "--size": size}
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"{name}: got {value} without --stream")
    from vtn_export.backends import Sessions
    from vtn_export.bundle import Bundle
    from vtn_export.runtime import inference
    from vtn_export.runtime.features import SUFFIX, Features
    from vtn_export.video import ClipReader, count_frames

    chosen = one_of(mode or ("features" if video.suffix == SUFFIX else "chunked"), MODES, "--mode")
    check_backend(backend)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    labels = opened.labels()
    if (chosen == "features") != (video.suffix == SUFFIX):
        stored_features = f"stored features; make them with `vtn-export features {bundle} {video}`"
        expected = stored_features if chosen == "features" else "a video"
        raise UsageError(f"--mode {chosen}: got {video}, expected {expected}")
    needed: dict[str, tuple[Part, ...]] = {"full": ("full",), "features": ("temporal",)}
    backend = backend_of(backend, opened, threads=threads, parts=needed.get(chosen, ("backbone", "temporal")))
    with Sessions(opened, backend, checkpoint=checkpoint, threads=threads) as sessions:
        if chosen == "features":
            stored = Features.load(video)
            stored.require_backbone_of(opened)
            result = inference.classify_features(sessions["temporal"], stored)
        else:
            wanted = frame_count(frames, manifest.preprocessing.num_frames)
            with ClipReader(video, manifest.preprocessing, wanted, chunk=chunk) as reader:
                if chosen == "full":
                    inference.require_memory_for_full(opened, reader.num_frames or count_frames(video))
                    session = sessions["full"]
                    with progress_bar("decode", reader.num_frames) as advance:
                        result = inference.classify_full(session, reader, advance)
                else:
                    backbone, temporal = sessions["backbone"], sessions["temporal"]
                    with progress_bar("backbone", reader.num_frames) as advance:
                        result = inference.classify_chunked(backbone, temporal, reader, advance)
        emulated = sessions.emulated
    if emulated:
        note(f"{manifest.precision} is emulated: a float32 copy of the graph rounds after every node")
    ranking = result.top(min(top, len(labels)), labels)
    if as_json:
        print_json(
            {
                "bundle": str(bundle),
                "input": str(video),
                "mode": chosen,
                "backend": backend,
                "emulated": emulated,
                "random_weights": manifest.random_weights,
                "frames": len(result.frame_index),
                "frame_index": {"first": int(result.frame_index[0]), "last": int(result.frame_index[-1])},
                "top": [{"label": label, "probability": probability} for label, probability in ranking],
                "logits": [float(value) for value in result.logits],
                "seconds": {stage: round(value, 4) for stage, value in result.seconds.items()},
            }
        )
        return
    if manifest.random_weights:
        note("the bundle has random weights: the numbers are right, the names mean nothing")
    print_table(
        f"{video.name}: {len(result.frame_index)} frames, {chosen}, {backend}",
        ["class", "probability"],
        [[label, f"{probability:.4f}"] for label, probability in ranking],
    )
    typer.echo("  ".join(f"{stage} {value:.2f} s" for stage, value in result.seconds.items()))
