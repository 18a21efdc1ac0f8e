"""`vtn-export bench`: how fast a bundle is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vtn_export.cli.console import note, print_json, print_table, reported
from vtn_export.cli.options import (
    DEFAULT_BUNDLE,
    Backend,
    BundleArgument,
    Checkpoint,
    Threads,
    backend_of,
    check_backend,
    one_of,
)
from vtn_export.errors import UsageError
from vtn_export.spec import PARTS, Part


@reported
def command(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    backend: Backend = "ort",
    part: Annotated[str, typer.Option("--part", help="all, none, or a list of full, backbone, temporal.")] = "all",
    mode: Annotated[str, typer.Option("--mode", help="none, or a list of full, chunked.")] = "chunked",
    frames: Annotated[str, typer.Option("--frames", help="Frame counts, comma-separated.")] = "16,64,250",
    chunk: Annotated[str, typer.Option("--chunk", help="Chunk sizes of the backbone.")] = "1,4,8,16",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes of the temporal and full graphs.")] = "1",
    streams: Annotated[int, typer.Option("--streams", min=1, help="Sessions side by side.")] = 1,
    duration: Annotated[float, typer.Option("--duration", help="Seconds a case, beside at least 20 runs.")] = 3.0,
    video: Annotated[Path | None, typer.Option("--video", help="For the modes (default: a shipped clip).")] = None,
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole result there (`-`: stdout).", allow_dash=True)
    ] = None,
) -> None:
    """Measure latency and throughput by a stated protocol, with percentiles, spread and context."""
    from vtn_export.bundle import Bundle, writing_file
    from vtn_export.evaluate.bench import Plan, bench
    from vtn_export.video import shipped_clip

    check_backend(backend)
    opened = Bundle.open(bundle)
    backend = backend_of(backend, opened, threads=threads)
    have = tuple(opened.manifest.graphs)
    parts = have if part == "all" else tuple(one_of(name, PARTS, "--part") for name in _words(part))
    modes = tuple(one_of(name, ("full", "chunked"), "--mode") for name in _words(mode))
    if modes == ("chunked",) and not {"backbone", "temporal"} <= set(have):
        modes = ()
    plan = Plan(
        parts=cast(tuple[Part, ...], parts),
        modes=modes,
        frames=_numbers(frames, "--frames"),
        chunks=_numbers(chunk, "--chunk"),
        batches=_numbers(batch, "--batch"),
        streams=streams,
        duration=duration,
    )
    result = bench(
        opened,
        plan,
        backend,
        video=video or shipped_clip(),
        threads=threads,
        checkpoint=checkpoint,
        notify=note,
    )
    if json_file is not None and str(json_file) == "-":
        print_json(result)
        return
    if json_file is not None:
        with writing_file(json_file) as temporary:
            temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    rows = [_row(entry) for entry in result["results"]]
    columns = ["case", "p50", "p90", "p99", "mean (95 %)", "frames/s", "runs", "spread"]
    print_table(f"{bundle}: {opened.manifest.name}, {opened.manifest.precision}, {backend}", columns, rows)
    noisy = [entry["case"] for entry in result["results"] if entry.get("noisy")]
    if noisy:
        note(f"NOISY: {len(noisy)} of {len(rows)} cases vary by more than 5 %; other load, clocks or power mode?")


def _row(entry: dict[str, Any]) -> list[str]:
    case = ", ".join(f"{key} {value}" for key, value in entry["case"].items())
    if "p50_seconds" not in entry:
        return [case, "", "", "", "", f"{entry['frames_per_second']:.1f}", str(entry["runs"]), ""]
    low, high = entry["mean_ci95_seconds"]
    return [
        case,
        *(f"{entry[f'p{p}_seconds'] * 1e3:.2f} ms" for p in (50, 90, 99)),
        f"{entry['mean_seconds'] * 1e3:.2f} ({low * 1e3:.2f}–{high * 1e3:.2f})",
        f"{entry['frames_per_second']:.1f}",
        str(entry["runs"]),
        f"{entry['coefficient_of_variation']:.1%}{' NOISY' if entry['noisy'] else ''}",
    ]


def _words(text: str) -> list[str]:
    return [] if text == "none" else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdigit() and int(word) >= 1 for word in words):
        raise UsageError(f"{option}: got {text!r}, expected numbers of at least 1 such as 16,64")
    return tuple(int(word) for word in words)
