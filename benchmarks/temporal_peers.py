"""Is any other way to run the temporal encoder of `vit_b_vtn` faster than ours, at any length?

    python benchmarks/temporal_peers.py                       every peer, 250 to 16384 frames
    python benchmarks/temporal_peers.py --frames 250 1024     shorter

Peers (benchmarks/peers.py) have the same weights and inputs. Each runs in a process of its own; rounds take
turns. Time: median of the rounds. Memory: peak of a run beyond what the process held before its
first one (peers that compile: their second run at a length). Error: against
float64. Slope: p of time ~ frames^p. Writes results/temporal_peers.json, a section of README.md and a plot.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from figures import plot_lengths
from protocol import THREADS, Worker, context, noise, ratios, serve, slope, store, summary
from tables import describe_context, write_section

from vtn_export.evaluate.footprint import held, peak_of

SCHEMA = 1
ROUNDS = {250: 15, 1024: 7, 4096: 3, 16384: 2}
PATIENCE = 30.0  # seconds of timed runs a peer and length; a slower peer gets fewer, at least one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=list(ROUNDS), help="frame counts (default: all four)")
    parser.add_argument("--peers", nargs="+", help="only these (default: all)")
    parser.add_argument("--small", action="store_true", help="a small encoder, for a quick look")
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    parser.add_argument("--worker", nargs=2, metavar=("PEER", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(arguments.worker[0], Path(arguments.worker[1]), arguments.small)
        return

    def keep(results: dict[str, Any]) -> None:
        if not arguments.dry:
            store("temporal_peers", results)
            write_section("temporal_peers", "\n".join(table(results)))
            plot_lengths(results)

    results = measure(arguments.frames, arguments.peers, small=arguments.small, keep=keep)
    print("\n".join(table(results)))


def measure(
    frame_counts: Sequence[int],
    names: Sequence[str] | None = None,
    *,
    small: bool = False,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Every peer at every length; a peer that fails at one is left out there, with its reason.

    keep: called with what there is after every length, so that a long one that fails costs only itself.
    """
    import numpy as np
    from peers import PEERS, reference, temporal_model

    names = list(PEERS) if names is None else list(names)
    found: dict[str, Any] = {"schema_version": SCHEMA, "context": context(), "rows": []}
    size = ["--small"] if small else []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = {}
        for name in names:
            workers[name] = stack.enter_context(Worker(__file__, "--worker", name, folder, *size))
        model = temporal_model(small)
        for frames in frame_counts:
            np.save(Path(folder) / f"{frames}.npy", reference(model, frames))
            row = _measure_length(workers, frames, ROUNDS.get(frames, 5))
            found["rows"].append(row)
            for name, entry in row["peers"].items():
                said = entry.get("error_text") or f"{entry['median_seconds'] * 1e3:9.1f} ms, error {entry['error']:.1e}"
                print(f"{frames:6d} frames  {name:22s} {said}", flush=True)
            found["slopes"] = slopes(found["rows"])
            keep(found)
    return found


def _measure_length(workers: dict[str, Worker], frames: int, rounds: int) -> dict[str, Any]:
    entries: dict[str, dict[str, Any]] = {}
    for name, worker in workers.items():
        answer = worker.ask(frames=frames)
        entries[name] = {"error_text": answer["error"]} if "error" in answer else answer["made"]
    alive = [name for name, entry in entries.items() if "error_text" not in entry]
    seconds: dict[str, list[float]] = {name: [] for name in alive}
    wanted = {name: max(1, min(rounds, int(PATIENCE / max(entries[name]["run_seconds"], 1e-9)))) for name in alive}
    for turn in range(rounds):
        for name in [*alive[turn % len(alive) :], *alive[: turn % len(alive)]] if alive else []:
            if turn >= wanted[name]:
                continue
            time.sleep(0.1)  # the threads of the one before stop spinning
            answer = workers[name].ask(frames=None)
            if "error" in answer:
                entries[name] = {"error_text": answer["error"]}
            else:
                seconds[name].append(answer["seconds"])
    alive = [name for name in alive if "error_text" not in entries[name]]
    for name in alive:
        entries[name].update(summary(seconds[name]))
        if "ort" in alive:  # of the rounds that both ran
            both = min(len(seconds[name]), len(seconds["ort"]))
            entries[name]["over_ort"] = ratios(seconds[name][:both], seconds["ort"][:both])
    ours = [name for name in ("ort", "openvino") if name in alive]
    return {"frames": frames, "peers": entries, "faster": faster(entries, ours)}


def faster(entries: dict[str, dict[str, Any]], ours: Sequence[str]) -> list[str]:
    """Peers whose median is below that of the faster of ours."""
    if not ours:
        return []
    best = min(entries[name]["median_seconds"] for name in ours)
    return [
        name
        for name, entry in entries.items()
        if name not in ("ort", "openvino") and "median_seconds" in entry and entry["median_seconds"] < best
    ]


def slopes(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The exponent of every peer that ran at two lengths at least."""
    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, entry in row["peers"].items():
            if "median_seconds" in entry:
                points.setdefault(name, {})[row["frames"]] = entry["median_seconds"]
    return {name: slope(times) for name, times in points.items() if len(times) > 1}


def _work(name: str, folder: Path, small: bool) -> None:
    """The worker: a request with frames prepares a length (and tells first run, memory, error); without, one run."""
    import numpy as np
    import torch
    from peers import COMPILED, Peers, temporal_model

    torch._logging.set_logs(all=logging.ERROR)
    model = temporal_model(small)
    model.requires_grad_(False)
    own = folder / name
    own.mkdir(exist_ok=True)
    torch.set_num_threads(THREADS)
    made = Peers(model, own, THREADS)
    current: list[Any] = []
    base: list[int] = []  # what the process holds before its first run

    def handle(frames: int | None) -> dict[str, Any]:
        if frames is None:
            start = time.perf_counter()
            current[0]()
            return {"seconds": time.perf_counter() - start}
        current.clear()
        run = made.run(name, frames)
        if not base:
            base.append(held())
        got: list[Any] = []
        start = time.perf_counter()
        peak = peak_of(lambda: got.append(run()))
        first = seconds = time.perf_counter() - start
        if name in COMPILED:  # what compiling took is not what a run takes
            start = time.perf_counter()
            peak = peak_of(run)
            seconds = time.perf_counter() - start
        expected = np.load(folder / f"{frames}.npy")
        error = float(np.abs(got[0] - expected).max() / max(1.0, float(np.abs(expected).max())))
        current.append(run)
        told = {"first_seconds": first, "run_seconds": seconds, "peak_bytes": peak - base[0], "error": error}
        return {"made": told}

    serve(handle)


# The section of README.md


def table(found: dict[str, Any]) -> list[str]:
    from peers import PEERS

    rows = found["rows"]
    lines = [
        "## Temporal encoder against its peers (`python benchmarks/temporal_peers.py`)",
        "",
        "The temporal encoder of `vit_b_vtn` (3 Longformer layers, width 768, one-sided window 9), one video, "
        "features to logits, float32, the same weights everywhere. Masks and block masks are made before the clock "
        "starts. Each peer in a process of its own, rounds in turns; *slope* is p of time ~ frames^p; *first* the "
        "first run, with whatever it compiles.",
        "",
        "| | " + " | ".join(f"{row['frames']} frames" for row in rows) + " | slope |",
        "| --- |" + " ---: |" * (len(rows) + 1),
    ]
    names = [name for name in PEERS if any(name in row["peers"] for row in rows)]
    for name in names:
        cells = [_time(row["peers"].get(name, {}), row) for row in rows]
        p = found["slopes"].get(name)
        lines.append(f"| {PEERS[name]} | {' | '.join(cells)} | {'' if p is None else f'{p:.2f}'} |")
    for title, key, show in (
        ("Peak memory of a run beyond the loaded process", "peak_bytes", lambda v: f"{v / 1e6:.0f} MB"),
        ("Error of the logits against float64", "error", lambda v: f"{v:.1e}"),
        ("First run at this length", "first_seconds", lambda v: f"{v:.1f} s"),
    ):
        lines += ["", f"{title}:", "", "| | " + " | ".join(f"{row['frames']} frames" for row in rows) + " |"]
        lines.append("| --- |" + " ---: |" * len(rows))
        for name in names:
            cells = [show(row["peers"][name][key]) if key in row["peers"].get(name, {}) else "" for row in rows]
            lines.append(f"| {PEERS[name]} | {' | '.join(cells)} |")
    lines += ["", verdict(rows)]
    failed = {
        f"{PEERS[name]} at {row['frames']} frames: {entry['error_text']}"
        for row in rows
        for name, entry in row["peers"].items()
        if "error_text" in entry
    }
    lines += [f"Failed: {text}." for text in sorted(failed)]
    entries = [entry for row in rows for entry in row["peers"].values() if "spread" in entry]
    lines += ["", noise(entries), "", "![time against frames](results/temporal_peers.png)", ""]
    return [*lines, describe_context(found["context"])]


def _time(entry: dict[str, Any], row: dict[str, Any]) -> str:
    if "median_seconds" not in entry:
        return "failed" if entry else ""
    times = (
        f"{entry['median_seconds'] * 1e3:.0f} ms ({entry['min_seconds'] * 1e3:.0f}–{entry['max_seconds'] * 1e3:.0f})"
    )
    best = min(e["median_seconds"] for e in row["peers"].values() if "median_seconds" in e)
    return f"**{times}**" if entry["median_seconds"] == best else times


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """Whether a peer was faster than the faster of ours at some length; every one is named."""
    from peers import PEERS

    beaten = [f"{PEERS[name]} at {row['frames']} frames" for row in rows for name in row["faster"]]
    if not beaten:
        return "No peer is faster than the faster of our two CPU backends at any length."
    return f"**Faster than ours: {'; '.join(beaten)}.**"


if __name__ == "__main__":
    main()
