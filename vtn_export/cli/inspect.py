"""`vtn-export inspect`: what is in a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vtn_export.cli.console import print_json, print_table, reported
from vtn_export.cli.options import DEFAULT_BUNDLE, BundleArgument, Json


@reported
def command(bundle: BundleArgument = DEFAULT_BUNDLE, as_json: Json = False) -> None:
    """Show a bundle's graphs, interfaces, accuracy, memory and weights; every file's hash is compared."""
    from vtn_export.bundle import Bundle
    from vtn_export.trt.sidecar import describe_engines

    opened = Bundle.open(bundle)
    opened.verify()
    manifest = opened.manifest
    sizes = {name: (opened.path / name).stat().st_size for name in manifest.files}
    engines = describe_engines(opened)
    if as_json:
        print_json({"bundle": str(bundle), **manifest.to_json(), "bytes": sizes, "engines": engines})
        return
    weights = manifest.weights
    origin = f"RANDOM, seed {weights.get('seed')}" if manifest.random_weights else str(weights.get("checkpoint"))
    p = manifest.preprocessing
    rows = [
        ["model", manifest.name],
        ["precision", manifest.precision],
        ["weights", origin],
        ["fingerprint", str(weights.get("fingerprint"))[:16] + "…"],
        ["preprocessing", f"short side {p.short_side}, crop {p.crop_size}, mean {p.mean}, std {p.std}"],
        ["frames a video", str(p.num_frames)],
        ["classes", str(len(opened.labels()))],
        ["custom op", f"vtn::SlidingWindowAttention version {manifest.op_version}"],
        ["made with", ", ".join(f"{name} {version}" for name, version in manifest.tools.items())],
    ]
    if manifest.quantization is not None:
        rows += _quantization(manifest.quantization)
    print_table(str(bundle), ["", ""], rows)
    graphs = []
    for part, graph in manifest.graphs.items():
        interface = [f"in  {t.describe()}" for t in graph.spec.inputs] + [
            f"out {t.describe()}" for t in graph.spec.outputs
        ]
        size = sum(size for name, size in sizes.items() if name.startswith(graph.file))
        graphs.append(
            [
                part,
                "\n".join(interface),
                f"{size / 1e6:.1f} MB",
                f"{graph.bytes_per_frame / 1e3:.0f} kB",
                f"{graph.measured:.1e} ≤ {graph.tolerance:.1e}",
            ]
        )
    print_table("graphs", ["part", "interface", "file", "memory a frame", "error ≤ tolerance"], graphs)
    if engines:
        _print_engines(engines)


def _quantization(record: Mapping[str, Any]) -> list[list[str]]:
    calibration, accuracy = record.get("calibration", {}), record.get("accuracy", {})
    layers, kept = record.get("layers", []), record.get("kept", [])
    return [
        ["quantized", f"{len(layers)} layers; {len(kept)} products and convolutions stay fp16"],
        ["calibrated", f"{record.get('method')}, {calibration.get('clips')} clips ({calibration.get('source')})"],
        ["measured", f"{accuracy.get('measure')}: {accuracy.get('drop')} points lost on {accuracy.get('clips')} clips"],
    ]


def _print_engines(engines: list[dict[str, Any]]) -> None:
    rows = []
    for engine in engines:
        if "part" not in engine:
            rows.append([engine["name"], "", "", "", "\n".join(engine["problems"])])
            continue
        profiles = "\n".join(
            ", ".join(f"{axis} {':'.join(map(str, sizes))}" for axis, sizes in profile.items())
            for profile in engine["profiles"]
        )
        layers = engine["layers"]
        made = f"{len(layers)} layers" if layers is not None else f"{engine['build']['layers']} before fusion"
        rows.append(
            [
                engine["name"],
                f"{engine['flavor']} {engine['version']}\n{engine['runs_on']}",
                profiles,
                f"{engine['engine_bytes'] / 1e6:.1f} MB\n{made}",
                "\n".join([*engine["problems"], f"rebuild: {engine['command']}"]) if engine["problems"] else "ok",
            ]
        )
    print_table("engines", ["engine", "for", "profiles", "size", "state"], rows)
