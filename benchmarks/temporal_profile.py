"""Where does the time of the temporal encoder go, ours and a peer's, at one length? The reason behind a row.

    python benchmarks/temporal_profile.py --frames 250 --peer sdpa
    python benchmarks/temporal_profile.py --frames 16384 --peer flex --small

By kind of operation, the largest first: ONNX Runtime's own profile of ours (and of torchscript_ort), PyTorch's of the
others. For temporal_peers.py's table, where a peer is faster at some length. Prints; stores nothing. A profiled run
is slower than one that is not: shares are meant, not times.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from peers import PEERS, Peers, inputs, temporal_model
from protocol import THREADS

from vtn_export.spec import FEATURES

OPENVINO = "openvino"  # keeps no profile here: `ort` stands for ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=250)
    parser.add_argument("--peer", default="sdpa", choices=[name for name in PEERS if name not in ("ort", OPENVINO)])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="a small encoder, for a quick look")
    arguments = parser.parse_args()
    model = temporal_model(arguments.small)
    model.requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(THREADS)
        made = Peers(model, Path(folder), THREADS)
        for name in ("ort", arguments.peer):
            run = made.run(name, arguments.frames)  # writes the graph that is profiled
            graph = {"ort": "temporal.onnx", "torchscript_ort": "torchscript.onnx"}.get(name)
            if graph is None:
                found = of_torch(run, arguments.runs)
            else:
                feed = inputs(model, arguments.frames)
                given = feed if name == "ort" else {FEATURES: feed[FEATURES]}
                found = of_onnxruntime(Path(folder) / graph, given, arguments.runs)
            print("\n".join(table(f"{PEERS[name]}, {arguments.frames} frames", found)), flush=True)


def of_onnxruntime(graph: Path, feed: dict[str, Any], runs: int) -> dict[str, float]:
    """Kind of node → seconds a run."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(graph.with_suffix(""))
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    session.run(None, feed)  # the first run packs weights
    for _ in range(runs):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // (runs + 1) :]
    found: dict[str, float] = {}
    for event in kernels:
        kind = event["args"]["op_name"]
        found[kind] = found.get(kind, 0.0) + event["dur"] / 1e6 / runs
    return found


def of_torch(run: Callable[[], Any], runs: int) -> dict[str, float]:
    """Kind of operation → its own seconds a run."""
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(runs):
            run()
    return {entry.key: entry.self_cpu_time_total / 1e6 / runs for entry in profile.key_averages()}


def table(title: str, found: dict[str, float], rows: int = 10) -> list[str]:
    total = sum(found.values())
    largest = sorted(found.items(), key=lambda item: -item[1])[:rows]
    lines = [f"{title}: {total * 1e3:.1f} ms", "", "| operation | ms | share |", "| --- | ---: | ---: |"]
    return [*lines, *(f"| {kind} | {seconds * 1e3:.2f} | {seconds / total:.0%} |" for kind, seconds in largest), ""]


if __name__ == "__main__":
    main()
