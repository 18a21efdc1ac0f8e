"""`vtn-export bench`: how fast a bundle is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from vtn_export.cli.console import note, print_json, print_table, reported
from vtn_export.cli.options import (
    DEFAULT_BUNDLE,
    RARE,
    Backend,
    BundleArgument,
    Checkpoint,
    Threads,
    backend_of,
    check_backend,
    one_of,
    seconds_of,
)
from vtn_export.errors import UsageError
from vtn_export.spec import PARTS, Part

if TYPE_CHECKING:
    from vtn_export.backends import Backend as BackendName
    from vtn_export.bundle import Bundle


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
    duration: Annotated[
        str, typer.Option("--duration", help="How long each case runs at least: 10s, 500ms, 2m.")
    ] = "3s",
    min_runs: Annotated[
        int, typer.Option("--min-runs", min=2, help="How often each case runs at least.", rich_help_panel=RARE)
    ] = 20,
    video: Annotated[Path | None, typer.Option("--video", help="For the modes (default: a shipped clip).")] = None,
    vs: Annotated[
        str | None,
        typer.Option("--vs", help="Measure against this bundle, backend or `rewrite`, in turn: the ratio of times."),
    ] = None,
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole result there (`-`: stdout).", allow_dash=True)
    ] = None,
) -> None:
    """Measure latency and throughput by a stated protocol, with percentiles, spread and context."""
    from vtn_export.bundle import Bundle, check_file
    from vtn_export.evaluate.bench import Plan, bench
    from vtn_export.evaluate.versus import versus
    from vtn_export.video import shipped_clip

    check_backend(backend)
    seconds = seconds_of(duration, "--duration")
    if json_file is not None and str(json_file) != "-":
        check_file(json_file, "--json")
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
        duration=seconds,
        min_runs=min_runs,
    )
    if vs is not None:
        sides = (opened, backend), _other_side(vs, opened, backend)
        compared = versus(*sides, plan, threads=threads, checkpoint=checkpoint, notify=note)
        _write(compared, json_file)
        if json_file is None or str(json_file) != "-":
            _print_versus(compared)
        return
    result = bench(
        opened,
        plan,
        backend,
        video=video or shipped_clip(),
        threads=threads,
        checkpoint=checkpoint,
        notify=note,
    )
    _write(result, json_file)
    if json_file is not None and str(json_file) == "-":
        return
    _print(result, f"{bundle}: {opened.manifest.name}, {opened.manifest.precision}, {backend}")


def _print(result: dict[str, Any], title: str) -> None:
    from vtn_export.evaluate.bench_schema import case_name, timed

    entries = timed(result)
    latency = ["case", "first", "p50", "p90", "p95", "p99", "mean (95 %)", "runs", "spread"]
    print_table(f"{title}; milliseconds", latency, [[case_name(entry), *_times(entry)] for entry in entries])
    rows = [[case_name(entry), *_throughput(entry)] for entry in result["results"]]
    print_table("", ["case", "frames/s", "videos/s", "GFLOP/s", "of roofline", "peak memory"], rows)
    modes = [entry for entry in entries if "split_seconds" in entry]
    if modes:
        stages = list(dict.fromkeys(stage for entry in modes for stage in entry["stage_seconds"]))
        rows = [[case_name(entry), *_split(entry, stages)] for entry in modes]
        print_table(
            "where a video's time goes, milliseconds: each stage alone, and (waited for)", ["case", *stages], rows
        )
    loads = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in result["load_seconds"].items())
    peaks = {"host": result["peak_host_bytes"], "device": result["peak_device_bytes"]}
    said = ", ".join(f"{where} {value / 1e6:.0f} MB" for where, value in peaks.items() if value is not None)
    note(f"loaded in: {loads}; peak memory: {said}")
    noisy = [case_name(entry) for entry in entries if entry["noisy"]]
    if noisy:
        names = ", ".join(noisy[:3]) + (", …" if len(noisy) > 3 else "")
        note(
            f"NOISY: {len(noisy)} of {len(entries)} cases vary by more than 5 % (standard deviation over mean): "
            f"{names}; other load, clocks or power mode?"
        )


def _times(entry: dict[str, Any]) -> list[str]:
    low, high = entry["mean_ci95_seconds"]
    return [
        *(f"{entry[f'{key}_seconds'] * 1e3:.2f}" for key in ("first", "p50", "p90", "p95", "p99")),
        f"{entry['mean_seconds'] * 1e3:.2f} ({low * 1e3:.2f}–{high * 1e3:.2f})",
        str(entry["runs"]),
        f"{entry['coefficient_of_variation']:.1%}{' NOISY' if entry['noisy'] else ''}",
    ]


def _throughput(entry: dict[str, Any]) -> list[str]:
    work, memory = entry.get("work"), entry.get("peak_host_bytes")
    return [
        f"{entry['frames_per_second']:.1f}",
        f"{entry['videos_per_second']:.2f}" if "videos_per_second" in entry else "",
        f"{work['flops_per_second'] / 1e9:.0f}" if work else "",
        f"{work['roofline_share']:.0%} ({work['bound']})" if work else "",
        f"{memory / 1e6:.0f} MB" if memory else "",
    ]


def _split(entry: dict[str, Any], stages: list[str]) -> list[str]:
    cells = []
    for stage in stages:
        alone, waited = entry["stage_seconds"].get(stage), entry["split_seconds"].get(stage)
        waiting = f" ({waited * 1e3:.2f})" if stage == "decode" and waited is not None else ""
        cells.append(f"{alone * 1e3:.2f}{waiting}" if alone is not None else "")
    return cells


def _other_side(vs: str, bundle: Bundle, backend: BackendName) -> tuple[Bundle, str]:
    """A backend's or form's name: the same bundle on it; a folder: that bundle on the same backend."""
    from vtn_export.bundle import Bundle
    from vtn_export.evaluate.versus import SIDES, check_side

    if vs not in SIDES and Path(vs).exists():
        return Bundle.open(Path(vs)), backend
    check_side(vs)
    return bundle, vs


def _write(document: dict[str, Any], to: Path | None) -> None:
    from vtn_export.bundle import writing_file

    if to is not None and str(to) == "-":
        print_json(document)
    elif to is not None:
        with writing_file(to) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _print_versus(document: dict[str, Any]) -> None:
    names = [f"{document[side]['path']} on {document[side]['backend']}" for side in ("a", "b")]
    rows = []
    for entry in document["results"]:
        ratio, (low, high) = entry["ratio"]["median"], entry["ratio"]["ci95"]
        verdict = "a is faster" if low > 1 else "b is faster" if high < 1 else "no difference seen"
        case = ", ".join(f"{key} {value}" for key, value in entry["case"].items())
        times = [f"{entry[side]['p50_seconds'] * 1e3:.2f} ms" for side in ("a", "b")]
        rows.append([case, *times, f"{ratio:.3f} ({low:.3f}–{high:.3f})", verdict])
    print_table(f"a: {names[0]}; b: {names[1]}", ["case", "a p50", "b p50", "b / a (95 %)", ""], rows)
    noisy = [entry for entry in document["results"] if entry["a"]["noisy"] or entry["b"]["noisy"]]
    if noisy:
        note(f"NOISY: {len(noisy)} of {len(rows)} cases vary by more than 5 %; the ratio's interval has that in it")


def _words(text: str) -> list[str]:
    return [] if text == "none" else [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str, option: str) -> tuple[int, ...]:
    words = _words(text)
    if not words or not all(word.isdigit() and int(word) >= 1 for word in words):
        raise UsageError(f"{option}: got {text!r}, expected numbers of at least 1 such as 16,64")
    return tuple(int(word) for word in words)
