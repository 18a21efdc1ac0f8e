"""What does an engine cost to build, and how much smaller is a graph with the plugin?

    python benchmarks/engines.py
    python benchmarks/engines.py --configs deit_tiny_vtn --precisions fp32 --parts temporal --rounds 1 --dry

TensorRT-RTX builds without a GPU: parse and build seconds, peak memory of the builder's process, engine size and
layers. Nodes are counted in the portable graph (the op as one node, and with its body inlined, which is what a
runtime sees) and in the plugin form (one node, made by the plugin). No engine runs here; `make gpu-check` times
them where there is a GPU. Writes results/engines.json and a section of README.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import context, noise, store, summary
from tables import describe_context, write_section

SCHEMA = 1
CONFIGS = ("deit_tiny_vtn", "vit_b_vtn")
PRECISIONS = ("fp32", "fp16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--parts", nargs="+", default=["backbone", "temporal"])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"schema_version": SCHEMA, "context": context(), "builds": [], "graphs": []}
    with tempfile.TemporaryDirectory() as folder:
        for config in arguments.configs:
            bundle = Path(folder) / Path(config).stem
            print(f"{config}: export …", flush=True)
            _command("onnx", "--config", config, "--out", bundle)
            found["graphs"] += [count_nodes(bundle, config, part) for part in arguments.parts]
            cases = [(part, precision) for part in arguments.parts for precision in arguments.precisions]
            found["builds"] += measure(bundle, config, cases, arguments.rounds)
    print("\n".join(table(found)))
    if not arguments.dry:
        store("engines", found)
        write_section("engines", "\n".join(table(found)))


def count_nodes(bundle: Path, config: str, part: str) -> dict[str, Any]:
    """Nodes of one part's graph in its forms."""
    import onnx

    from vtn_export.runtime.inlined import inlined
    from vtn_export.trt.plugin_form import op_nodes, plugin_form

    model = onnx.load(bundle / f"{part}.onnx", load_external_data=False)
    return {
        "config": config,
        "part": part,
        "op_nodes": len(op_nodes(model)),
        "portable_nodes": len(model.graph.node),
        "portable_inlined_nodes": len(inlined(model).graph.node),
        "plugin_nodes": len(plugin_form(model).graph.node),
    }


def measure(bundle: Path, config: str, cases: Sequence[tuple[str, str]], rounds: int) -> list[dict[str, Any]]:
    """Every case in every round, each build in a process of its own (the command line makes one)."""
    results: dict[tuple[str, str], list[dict[str, Any]]] = {case: [] for case in cases}
    for turn in range(rounds):
        at = turn % len(cases)
        for part, precision in [*cases[at:], *cases[:at]]:
            options = ("--part", part, f"--{precision}", "--flavor", "rtx", "--force")
            (built,) = _command("trt", bundle, *options)["parts"]
            results[part, precision].append(built["result"])
            print(f"  {part} {precision}: {built['result']['build_seconds']:.1f} s", flush=True)
    return [
        {
            "config": config,
            "part": part,
            "precision": precision,
            "flavor": "rtx",
            "version": runs[0]["version"],
            "layers": runs[0]["layers"],
            "engine_bytes": runs[0]["engine_bytes"],
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "parse": summary([run["parse_seconds"] for run in runs]),
            "build": summary([run["build_seconds"] for run in runs]),
        }
        for (part, precision), runs in results.items()
    ]


def _command(*arguments: object) -> Any:
    command = [sys.executable, "-m", "vtn_export", *(str(argument) for argument in arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"engines: {' '.join(command[3:])}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Engines (`python benchmarks/engines.py`)",
        "",
        f"TensorRT-RTX {found['builds'][0]['version']}, built without a GPU; nothing of this has run on one here. "
        "Every GPU from SM 8.0 on, the default profiles, the portable form (TensorRT-RTX takes no plugins).",
        "",
        "| model | part | type | parse | build (runs) | peak memory | engine | layers |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["builds"]:
        build = row["build"]
        lines.append(
            f"| {row['config']} | {row['part']} | {row['precision']} | {row['parse']['median_seconds']:.2f} s "
            f"| {build['median_seconds']:.1f} s ({build['min_seconds']:.1f}–{build['max_seconds']:.1f}) "
            f"| {row['peak_bytes'] / 1e9:.2f} GB | {row['engine_bytes'] / 1e6:.0f} MB | {row['layers']} |"
        )
    lines += [
        "",
        "Nodes of the graphs: what a parser makes layers of. The plugin form has no body: each attention is one node.",
        "",
        "| model | part | attentions | portable, body inlined | plugin | fewer by |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["graphs"]:
        inlined, plugin = row["portable_inlined_nodes"], row["plugin_nodes"]
        lines.append(
            f"| {row['config']} | {row['part']} | {row['op_nodes']} | {inlined} | {plugin} | {inlined - plugin} |"
        )
    lines += ["", noise([row["build"] for row in found["builds"]]), ""]
    return [*lines, describe_context(found["context"])]


if __name__ == "__main__":
    main()
