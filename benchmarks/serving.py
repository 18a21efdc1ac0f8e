"""A real tritonserver against the number of clients, beside the session in this process.

    python benchmarks/serving.py [--preset mobilenetv4_vtn] [--frames 16] [--clients 1,2,4,8,16] [--seconds 15]
    python benchmarks/serving.py --frames 2 --clients 1,2 --seconds 2 --dry     # smallest

Each client has one connection and sends its next request when the last is answered. Server, clients and model share the
machine's processors: a client's own work (150 KB a frame to send) is in the numbers.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from protocol import context, store
from tables import describe_context, write_section

from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.onnx.create import create_bundle
from vtn_export.serve.repository import ServeOptions, write_repository
from vtn_export.serve.server import TritonServer
from vtn_export.spec import FRAME_INDEX, FRAMES, LENGTHS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="mobilenetv4_vtn")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--clients", default="1,2,4,8,16")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"exporting {options.preset} …", flush=True)
        create_bundle(folder / "bundle", config=options.preset)
        bundle = Bundle.open(folder / "bundle")
        crop = bundle.manifest.preprocessing.crop_size
        shape = (1, options.frames, crop, crop, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        rows.append({"where": "in process", "clients": 1, **_in_process(bundle, frames, options.seconds)})
        print(rows[-1], flush=True)
        write_repository(bundle, folder / "models", ServeOptions(max_frames=64 * options.frames))
        with TritonServer(folder / "models") as server:
            for protocol in ("http", "grpc"):
                for clients in map(int, options.clients.split(",")):
                    measured = _crowd(server, protocol, clients, frames, options.seconds)
                    rows.append({"where": protocol, "clients": clients, **measured})
                    print(rows[-1], flush=True)
    result = {"preset": options.preset, "frames": options.frames, "rows": rows, "context": context()}
    section = _section(result)
    print(section)
    if not options.dry:
        store("serving", result)
        write_section("serving", section)


def _in_process(bundle: Bundle, frames: Any, seconds: float) -> dict[str, float]:
    count = frames.shape[1]
    inputs = {
        FRAMES: frames,
        FRAME_INDEX: np.arange(count, dtype=np.int32)[None],
        LENGTHS: np.array([count], np.int32),
    }
    with Sessions(bundle) as sessions:
        session = sessions["full"]
        session.run(inputs)
        return _summary(_repeat(lambda: session.run(inputs), seconds), seconds)


def _crowd(server: TritonServer, protocol: str, clients: int, frames: Any, seconds: float) -> dict[str, float]:
    if protocol == "http":
        import tritonclient.http as triton
    else:
        import tritonclient.grpc as triton
    latencies: list[float] = []
    ready = threading.Barrier(clients)

    def client() -> None:
        connection = triton.InferenceServerClient(server.http if protocol == "http" else server.grpc)
        tensor = triton.InferInput(FRAMES, list(frames.shape), "UINT8")
        tensor.set_data_from_numpy(frames)
        connection.infer("vtn", [tensor])
        ready.wait()
        latencies.extend(_repeat(lambda: connection.infer("vtn", [tensor]), seconds))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _summary(latencies, seconds)


def _repeat(call: Any, seconds: float) -> list[float]:
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return times


def _summary(latencies: list[float], seconds: float) -> dict[str, float]:
    return {
        "requests": len(latencies),
        "clips_per_second": len(latencies) / seconds,
        "p50_ms": float(np.percentile(latencies, 50)) * 1e3,
        "p99_ms": float(np.percentile(latencies, 99)) * 1e3,
    }


def _section(result: dict[str, Any]) -> str:
    lines = [
        "## Serving (`python benchmarks/serving.py`)",
        "",
        f"Triton's Python backend with ONNX Runtime inside, `--form full`, {result['preset']}, "
        f"clips of {result['frames']} frames.",
        "",
        "| | clients | clips a second | p50 | p99 |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['where']} | {row['clients']} | {row['clips_per_second']:.1f} "
        f"| {row['p50_ms']:.0f} ms | {row['p99_ms']:.0f} ms |"
        for row in result["rows"]
    ]
    return "\n".join([*lines, "", describe_context(result["context"])])


if __name__ == "__main__":
    main()
