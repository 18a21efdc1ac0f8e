"""Bundles of arbitrary bytes, for tests of how bundles are written and read."""

from __future__ import annotations

from pathlib import Path

from vtn_export.bundle import (
    Bundle,
    GraphEntry,
    Manifest,
    write_manifest,
    writing,
)
from vtn_export.spec import Preprocessing, graph_spec


def manifest(name: str = "small") -> Manifest:
    spec = graph_spec("temporal", crop_size=32, feature_dim=64, num_classes=3, input_type="uint8")
    return Manifest(
        name=name,
        precision="fp32",
        input_type="uint8",
        op_version=1,
        preprocessing=Preprocessing(),
        config={"name": name, "temporal": {"num_layers": 2}},
        graphs={"temporal": GraphEntry("temporal.onnx", spec, 1e-5, 1e-6, 1000, 10, {"fp16": 0.01, "bf16": None})},
        weights={"checkpoint": None, "seed": 0, "fingerprint": "ab", "backbone_fingerprint": "cd"},
        tools={"vtn-export": "0.1.0"},
    )


def write(path: Path, content: bytes = b"graph", name: str = "small") -> Bundle:
    """A bundle of arbitrary bytes: this module never looks into the files."""
    with writing(path) as folder:
        (folder / "temporal.onnx").write_bytes(content)
        (folder / "labels.txt").write_text("left\nright\nstill\n")
        write_manifest(folder, manifest(name))
    return Bundle.open(path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
