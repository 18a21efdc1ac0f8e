"""How fast is the temporal encoder of `vit_b_vtn`, and what does a video cost around its backbone?

    python benchmarks/temporal.py            temporal encoder: time, slope, memory, share of its GEMMs
    python benchmarks/temporal.py --video    also: export of ViT-B, and chunked video against the backbone alone

Compared side by side: the exported graph on ONNX Runtime, Hugging Face's LongformerModel (eager) with
the same weights, and a graph of the same matrix products alone (the ceiling of this machine in this
run). Every round runs all of them one after the other, so that noise meets them alike; ratios are
taken round by round. Writes benchmarks/results/temporal.json and the table in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper
from peers import longformer, temporal_model
from protocol import THREADS, interleave, ratios, store
from tables import RESULTS, write_table

from vtn_export.evaluate.footprint import held, peak_of
from vtn_export.model.vtn import VTN
from vtn_export.onnx.export import export_temporal, spec_of
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS

SCHEMA = 1
ROUNDS = {250: 25, 1024: 11, 4096: 5, 16384: 3}
EXPORT_LIMIT = {"seconds": 60, "gigabytes": 4}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=list(ROUNDS), help="frame counts (default: all four)")
    parser.add_argument("--video", action="store_true", help="also export ViT-B and classify a video with it")
    parser.add_argument("--only-video", action="store_true", help="leave the temporal measurements as they are stored")
    parser.add_argument("--only-slope", action="store_true", help="measure the slope again, keep the rest")
    parser.add_argument("--video-frames", type=int, default=32, help="frames of the video (default 32)")
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    parser.add_argument("--rss", nargs=2, metavar=("GRAPH", "FRAMES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rss:
        print(_run_and_peak(Path(arguments.rss[0]), int(arguments.rss[1])))
        return
    path = RESULTS / "temporal.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results.update(schema_version=SCHEMA)
    if arguments.only_slope:
        results["temporal"]["slope"] = measure_slope()
    elif not arguments.only_video:
        results["temporal"] = {"context": _context(), **measure_temporal(arguments.frames)}
    if arguments.video or arguments.only_video:
        results["video"] = {"context": _context(), **measure_video(arguments.video_frames)}
    if not arguments.dry:
        store("temporal", results)
        write_table(results)


# The temporal encoder


def measure_temporal(frame_counts: Sequence[int]) -> dict[str, Any]:
    """Interleaved medians at every frame count, the slope between the largest two decades, memory a frame."""
    torch.set_num_threads(THREADS)
    model = temporal_model()
    peer = longformer(model)
    spec = spec_of(model.rewrite(), "temporal", "uint8")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "temporal.onnx"
        onnx.save(export_temporal(model.rewrite()), graph)
        with OrtSession(graph, spec, threads=THREADS) as session:
            for frames in frame_counts:
                rows.append(_compare(model, peer, session, frames))
                print(_line(rows[-1]), flush=True)
        memory = _memory(graph)
    print(f"memory beyond weights: {memory['bytes_per_frame'] / 1000:.1f} kB a frame")
    return {"rows": rows, "slope": measure_slope(), "memory": memory}


def measure_slope(short: int = 1024, long: int = 16384, rounds: int = 3) -> dict[str, float]:
    """Cost of a frame at `long` over that at `short`: one long run against as many frames in short ones."""
    model = temporal_model()
    graph = export_temporal(model.rewrite()).SerializeToString()
    generator = np.random.default_rng(0)

    def feed(frames: int) -> dict[str, Any]:
        features = generator.standard_normal((1, frames, model.config.hidden_dim or 0)).astype(np.float32)
        index = np.arange(frames, dtype=np.int32)[None]
        return {FEATURES: features, FRAME_INDEX: index, LENGTHS: np.array([frames], np.int32)}

    short_feed, long_feed = feed(short), feed(long)
    with OrtSession(graph, spec_of(model.rewrite(), "temporal", "uint8"), threads=THREADS) as session:
        session.run(long_feed)
        runs = {
            "short": lambda: [session.run(short_feed) for _ in range(long // short)],
            "long": lambda: session.run(long_feed),
        }
        seconds = interleave(runs, rounds)
    slope = ratios(seconds["long"], seconds["short"])
    print(f"cost of a frame, {long} over {short}: {slope['median']:.2f}", flush=True)
    return slope


def _compare(model: VTN, peer: torch.nn.Module, session: OrtSession, frames: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    width, rows = model.config.hidden_dim or 0, model.config.temporal.max_position_embeddings
    features = generator.standard_normal((1, frames, width)).astype(np.float32)
    index = np.arange(frames, dtype=np.int32)[None]
    feed = {FEATURES: features, FRAME_INDEX: index, LENGTHS: np.array([frames], np.int32)}
    is_global = torch.zeros(1, frames + 1, dtype=torch.int64)
    is_global[:, 0] = 1
    theirs = {
        "inputs_embeds": torch.cat([model.cls_token, torch.from_numpy(features)], dim=1),
        "attention_mask": torch.ones(1, frames + 1, dtype=torch.int64),
        "global_attention_mask": is_global,
        "position_ids": torch.cat([torch.tensor([[rows - 2]]), torch.from_numpy(index).long() % (rows - 2)], dim=1),
        "token_type_ids": is_global.clone(),
    }
    gemm, gemm_feed = _gemm_session(model, frames)

    def run_peer() -> Any:
        with torch.inference_mode():
            return peer(**theirs).last_hidden_state

    runs: dict[str, Callable[[], Any]] = {
        "ort": lambda: session.run(feed),
        "hugging_face": run_peer,
        "gemm": lambda: gemm.run(None, gemm_feed),
    }
    with torch.inference_mode():
        expected = model.mlp_head(run_peer()[:, 0]).numpy()  # the first, untimed run warms up, too
    error = float(np.abs(session.run(feed)[LOGITS] - expected).max() / max(1.0, float(np.abs(expected).max())))
    gemm.run(None, gemm_feed)
    seconds = interleave(runs, ROUNDS.get(frames, 5))
    speedup = ratios(seconds["hugging_face"], seconds["ort"])
    share = ratios(seconds["gemm"], seconds["ort"])
    return {
        "frames": frames,
        "rounds": len(seconds["ort"]),
        **{f"{name}_ms": median(times) * 1e3 for name, times in seconds.items()},
        "best_ms": {name: min(times) * 1e3 for name, times in seconds.items()},
        "speedup": speedup,
        "gemm_share": share,
        "error_against_hugging_face": error,
    }


def _gemm_session(model: VTN, frames: int) -> tuple[Any, dict[str, Any]]:
    """The matrix products of the exported encoder and nothing else, at one length.

    Each whole layer: q·k·v in one, output, both of the feed-forward, the band's two in blocks of 32
    queries; each layer: the global row's five; the last layer and the head for one row. One number
    of each product leaves, so that none is dropped.
    """
    t, width = model.config.temporal, model.config.hidden_dim or 0
    assert t.num_heads is not None
    tokens, heads, dim = frames + 1, t.num_heads, width // t.num_heads
    block, inner = 32, t.intermediate_size
    blocks = -(-tokens // block)
    generator = np.random.default_rng(0)
    nodes, weights, rows = [], [], []
    feed: dict[str, Any] = {"x": generator.standard_normal((tokens, width)).astype(np.float32)}

    def product(a: str, b: str, rank: int = 2) -> str:
        name = f"product_{len(rows)}"
        nodes.append(helper.make_node("MatMul", [a, b], [name]))
        nodes.append(helper.make_node("Slice", [name, f"from{rank}", f"to{rank}"], [f"{name}.first"]))
        nodes.append(helper.make_node("Reshape", [f"{name}.first", "to1"], [f"{name}.out"]))
        rows.append(f"{name}.out")
        return name

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array((generator.standard_normal(shape) * 0.02).astype(np.float32), name))
        return name

    def given(name: str, *shape: int) -> str:
        feed[name] = generator.standard_normal(shape).astype(np.float32)
        return name

    x, row = "x", given("row", 1, width)
    for layer in range(t.num_layers):
        product(row, weight(f"global_q{layer}", width, width))
        product(given(f"global_row{layer}", heads, 1, dim), weight(f"global_k{layer}", heads, dim, width), 3)
        product(x, weight(f"fold{layer}", width, heads))
        product(given(f"global{layer}", heads, tokens), x)
        product(given(f"mixed{layer}", heads, 1, width), weight(f"global_v{layer}", heads, width, dim), 3)
        last = layer == t.num_layers - 1
        if not last:
            columns = t.num_global_tokens + block + 2 * t.one_sided_window[layer]
            product(x, weight(f"qkv{layer}", width, 3 * width))
            product(given(f"q{layer}", heads, blocks, block, dim), given(f"k{layer}", heads, blocks, dim, columns), 4)
            product(
                given(f"p{layer}", heads, blocks, block, columns), given(f"v{layer}", heads, blocks, columns, dim), 4
            )
        x = product(row if last else x, weight(f"out{layer}", width, width))
        x = product(product(x, weight(f"up{layer}", width, inner)), weight(f"down{layer}", inner, width))
    x = product(x, weight("head", width, model.config.mlp_dim))
    product(x, weight("classes", model.config.mlp_dim, model.config.num_classes))
    for name, value in (("from", 0), ("to", 1)):
        weights += [numpy_helper.from_array(np.full(rank, value), f"{name}{rank}") for rank in (1, 2, 3, 4)]
    nodes.append(helper.make_node("Concat", rows, ["y"], axis=0))
    graph = helper.make_graph(
        nodes,
        "gemms",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in feed.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [len(rows)])],
        initializer=weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = THREADS, 1
    options.log_severity_level = 3
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"]), feed


# Memory: peak of a process of its own


def _run_and_peak(graph: Path, frames: int) -> int:
    """Bytes that a run of `frames` adds at its peak to a process that has run one frame; for the child process."""
    width = onnx.load(graph).graph.input[0].type.tensor_type.shape.dim[2].dim_value
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = ort.InferenceSession(
        str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )

    def run(count: int) -> None:
        index = np.arange(count, dtype=np.int32)[None]
        features = np.ones((1, count, width), np.float32)
        session.run(None, {FEATURES: features, FRAME_INDEX: index, LENGTHS: np.array([count], np.int32)})

    run(1)
    before = held()
    return peak_of(lambda: run(frames)) - before


def _memory(graph: Path) -> dict[str, Any]:
    """Peak of a run beyond the loaded session, by frame."""
    command = [sys.executable, __file__, "--rss", str(graph)]
    added = {
        frames: int(subprocess.run([*command, str(frames)], check=True, capture_output=True, text=True).stdout)
        for frames in (4096, 16384)
    }
    return {"bytes": {str(k): v for k, v in added.items()}, "bytes_per_frame": max(v / k for k, v in added.items())}


# A whole video, and the export before it

_EXPORT = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from vtn_export.onnx.create import create_bundle
create_bundle(sys.argv[1], config="vit_b_vtn")
peak = [l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM:")][0].split()[1]
print(time.perf_counter() - start, int(peak) * 1024)
"""


def measure_video(num_frames: int) -> dict[str, Any]:
    """Export ViT-B (all parts, in a process of its own), then video in chunks against the backbone alone."""
    from vtn_export.bundle import Bundle
    from vtn_export.runtime.inference import classify_chunked
    from vtn_export.spec import FRAMES
    from vtn_export.video import ClipReader, shipped_clip

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        done = subprocess.run([sys.executable, "-c", _EXPORT, str(out)], check=True, capture_output=True, text=True)
        seconds, peak = done.stdout.split()
        export = {"seconds": float(seconds), "peak_bytes": int(peak), "limits": EXPORT_LIMIT}
        print(f"export of ViT-B, all parts: {float(seconds):.0f} s, peak {int(peak) / 1e9:.2f} GB", flush=True)
        bundle = Bundle.open(out)
        backbone, temporal = (
            OrtSession(bundle.graph_path(part), bundle.graph(part).spec, threads=THREADS)
            for part in ("backbone", "temporal")
        )
        with ClipReader(shipped_clip(), bundle.manifest.preprocessing, num_frames, chunk=16) as reader:
            chunks = [frames for frames, _ in reader]
            runs: dict[str, Callable[[], Any]] = {
                "chunked": lambda: classify_chunked(backbone, temporal, reader),
                "backbone": lambda: [backbone.run({FRAMES: frames}) for frames in chunks],
            }
            backbone.run({FRAMES: chunks[0]})
            times = interleave(runs, 3)
    share = ratios(times["backbone"], times["chunked"])
    frames_per_second = {name: num_frames / median(values) for name, values in times.items()}
    print(f"chunked video: {share['median']:.3f} of the backbone's own throughput", flush=True)
    return {
        "export": export,
        "num_frames": num_frames,
        "frames_per_second": frames_per_second,
        "throughput_share": share,
    }


def _context() -> dict[str, Any]:
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "cpu": cpu[0] if cpu else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": THREADS,
        "load_at_start": round(os.getloadavg()[0], 2),
        "nice": os.nice(0),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "onnx", "onnxruntime", "numpy")},
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['frames']:6d} frames: {row['ort_ms']:8.0f} ms, Hugging Face {row['hugging_face_ms']:8.0f} ms "
        f"({row['speedup']['median']:.2f} ×), GEMMs alone {row['gemm_ms']:8.0f} ms "
        f"({row['gemm_share']['median']:.2f}), error {row['error_against_hugging_face']:.1e}"
    )


if __name__ == "__main__":
    main()
