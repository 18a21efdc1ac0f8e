"""From weights to a bundle: reference numbers, graphs, checks, golden file, manifest, one atomic step."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from vtn_export import __version__
from vtn_export.bundle import (
    GOLDEN,
    LABELS,
    Bundle,
    GraphEntry,
    Manifest,
    check_target,
    write_manifest,
    writing,
)
from vtn_export.errors import ConfigError, UsageError
from vtn_export.model.checkpoint import fingerprint, load, random_model
from vtn_export.model.config import ModelConfig
from vtn_export.model.rounding import rounded_copy, rounding
from vtn_export.model.vtn import VTN, RewrittenVTN, VTNBase
from vtn_export.onnx.check import FP32_TOLERANCE, Check, absolute_error, require_passed, typed_tolerance
from vtn_export.onnx.export import compose_full, export_backbone, export_temporal, spec_of
from vtn_export.onnx.op import OP_VERSION
from vtn_export.onnx.part import write_and_check
from vtn_export.onnx.precision import Kept, to_precision
from vtn_export.runtime import golden
from vtn_export.spec import (
    FEATURES,
    FRAME_INDEX,
    LENGTHS,
    PARTS,
    Array,
    GraphSpec,
    InputType,
    Part,
    Precision,
)
from vtn_export.untrusted import sha256
from vtn_export.video import ClipReader, shipped_clip

Step = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and the checks it passed."""

    bundle: Bundle
    checks: Sequence[Check]
    kept_fp32: Sequence[Kept]


@dataclass(frozen=True)
class _Reference:
    """PyTorch's float64 outputs for the golden inputs, and the bounds that its rounding sets.

    typed_bounds: of a float32 export, what its graphs have to meet when they are typed later.
    """

    temporal: Sequence[dict[str, Array]]
    features: Array  # float64 [8, E]
    full_logits: Sequence[Array]
    temporal_logits: Sequence[Array]
    tolerance: Mapping[Part, float]
    typed_bounds: Mapping[Precision, Mapping[Part, float]]


def create_bundle(
    out: str | Path,
    *,
    checkpoint: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | ModelConfig,
    parts: Sequence[Part] = PARTS,
    precision: Precision = "fp32",
    input_type: InputType = "uint8",
    seed: int = 0,
    labels: Sequence[str] | None = None,
    clip: str | Path | None = None,
    keep_fp32: Sequence[str] = (),
    step: Step = lambda _name: nullcontext(),
) -> Exported:
    """Export a checkpoint (or seeded random weights) to a bundle at `out`, checked against PyTorch.

    labels: one name a class. clip: a video for the golden frames (a shipped one if None). step:
    called with the name of every stage, for progress. Raises CheckpointError, ConfigError,
    ExportError, VideoError, OutputError, and AccuracyError when a graph is beyond its bound; then
    `out` is as it was before.
    """
    out = Path(out)
    check_target(out)
    with step("model"):
        model = load(checkpoint, config) if checkpoint is not None else random_model(config, seed)
        names = _labels(labels, model.config.num_classes)
        weights = _weights_record(model, checkpoint, seed)
    with step("golden frames"):
        frames, frame_index = _golden_frames(clip or shipped_clip(), model)
    with step("PyTorch float64 reference"):
        reference = _reference(model, frames, frame_index, precision)
    resolved = model.config
    with writing(out) as folder:
        (folder / LABELS).write_text("\n".join(names) + "\n", encoding="utf-8")
        golden.save(
            folder / GOLDEN,
            frames,
            frame_index,
            reference.features,
            reference.full_logits,
            list(zip(reference.temporal, reference.temporal_logits, strict=True)),
        )
        with step("export graphs"):
            rewritten = model.rewrite()
            del model
            models, kept = _graphs(rewritten, parts, precision, input_type, keep_fp32)
            del rewritten
        checks: list[Check] = []
        graphs: dict[Part, GraphEntry] = {}
        for part in parts:
            graph, spec = models.pop(part)
            with step(f"check {part}"):
                samples = golden.samples(folder / GOLDEN, part, resolved.preprocessing, input_type)
                tolerance = reference.tolerance[part]
                entry, found = write_and_check(folder, part, graph, spec, samples, precision, tolerance)
                typed: dict[Precision, float | None] = {
                    p: bounds[part] if np.isfinite(bounds[part]) else None
                    for p, bounds in reference.typed_bounds.items()
                }
                graphs[part] = replace(entry, typed_bounds=typed)
                checks += found
            del graph
        require_passed(checks)
        with step("write"):
            manifest = Manifest(
                name=resolved.name,
                precision=precision,
                input_type=input_type,
                op_version=OP_VERSION,
                preprocessing=resolved.preprocessing,
                config=resolved.to_json(),
                graphs=graphs,
                weights=weights,
                tools=_tools(),
            )
            write_manifest(folder, manifest)
    return Exported(Bundle.open(out), checks, kept)


def _labels(labels: Sequence[str] | None, num_classes: int) -> list[str]:
    if labels is None:
        return [f"class_{index}" for index in range(num_classes)]
    if len(labels) != num_classes:
        raise ConfigError(f"labels: got {len(labels)} names, expected {num_classes} (num_classes of the config)")
    return [label.strip() for label in labels]


def _weights_record(model: VTN, checkpoint: str | Path | None, seed: int) -> dict[str, Any]:
    return {
        "checkpoint": None if checkpoint is None else Path(checkpoint).name,
        "checkpoint_sha256": None if checkpoint is None else sha256(Path(checkpoint)),
        "seed": seed if checkpoint is None else None,
        "fingerprint": fingerprint(model, backbone_only=False),
        "backbone_fingerprint": fingerprint(model, backbone_only=True),
    }


def _golden_frames(clip: str | Path, model: VTN) -> tuple[Array, Array]:
    with ClipReader(clip, model.config.preprocessing, golden.NUM_FRAMES, chunk=golden.NUM_FRAMES) as reader:
        for frames, frame_index in reader:
            return frames, frame_index
    raise UsageError(f"golden clip {clip}: no frames")


def _reference(model: VTN, frames: Array, frame_index: Array, precision: Precision) -> _Reference:
    """One float64 pass over the golden frames; every sample of every part is a choice among their features."""
    with torch.no_grad():
        model.double()
        features = np.concatenate([_features(model, frames[i : i + 2]) for i in range(0, len(frames), 2)])
        width = features.shape[1]
        temporal = golden.temporal_inputs(float(features.std()), width, seed=0)
        full = golden.full_inputs(frames, frame_index)
        rows = [np.array(rows) for rows, _ in golden.FULL_SAMPLES]
        full_logits = [_classify(model, features[index], inputs) for index, inputs in zip(rows, full, strict=True)]
        temporal_logits = [_classify(model, inputs[FEATURES].astype(np.float64), inputs) for inputs in temporal]
        model.float()

        def bounds(precision: Precision) -> dict[Part, float]:
            twin = rounded_copy(model.rewrite(), precision)
            with rounding(twin, precision):
                got = _features(twin, frames)
                got_full = [_classify(twin, got[index], inputs) for index, inputs in zip(rows, full, strict=True)]
                got_temporal = [_classify(twin, inputs[FEATURES], inputs) for inputs in temporal]

            def bound(outputs: Sequence[Array], references: Sequence[Array]) -> float:
                error = float(np.max([absolute_error(a, b) for a, b in zip(outputs, references, strict=True)]))
                return typed_tolerance(error, references, precision)

            return {
                "backbone": bound([got], [features]),
                "full": bound(got_full, full_logits),
                "temporal": bound(got_temporal, temporal_logits),
            }

        typed: dict[Precision, dict[Part, float]] = {}
        if precision == "fp32":
            tolerance: dict[Part, float] = dict.fromkeys(PARTS, FP32_TOLERANCE)
            typed = {"fp16": bounds("fp16"), "bf16": bounds("bf16")}
        else:
            tolerance = bounds(precision)
    return _Reference(temporal, features, full_logits, temporal_logits, tolerance, typed)


def _features(model: VTNBase, frames: Array) -> Array:
    result: Array = model.frame_features(torch.from_numpy(frames)).numpy()
    return result


def _classify(model: VTNBase, features: Array, inputs: Mapping[str, Array]) -> Array:
    index, lengths = torch.from_numpy(inputs[FRAME_INDEX]), torch.from_numpy(inputs[LENGTHS])
    result: Array = model.classify(torch.from_numpy(features), index, lengths).numpy()
    return result


def _graphs(
    model: RewrittenVTN, parts: Sequence[Part], precision: Precision, input_type: InputType, keep_fp32: Sequence[str]
) -> tuple[dict[Part, tuple[onnx.ModelProto, GraphSpec]], list[Kept]]:
    """The parts' graphs, typed. `full` shares the weights' memory with its halves only while it is put together."""
    graphs: dict[Part, tuple[onnx.ModelProto, GraphSpec]] = {}
    kept: list[Kept] = []
    keep = set(keep_fp32)
    halves: dict[Part, onnx.ModelProto] = {}
    exporters: dict[Part, Callable[[], onnx.ModelProto]] = {
        "backbone": lambda: export_backbone(model, input_type),
        "temporal": lambda: export_temporal(model),
    }
    for half, export in exporters.items():
        if half in parts or "full" in parts:
            plain = export()
            own = keep & {node.name for node in plain.graph.node}
            halves[half], left = to_precision(plain, precision, own)
            keep -= own
            kept += left
    if keep:
        raise UsageError(f"keep-fp32: no node {sorted(keep)[0]!r} in the exported graphs")
    if "full" in parts:
        spec = spec_of(model, "full", input_type)
        graphs["full"] = (compose_full(halves["backbone"], halves["temporal"], spec), spec)
    for half, typed in halves.items():
        if half in parts:
            graphs[half] = (typed, spec_of(model, half, input_type))
    return graphs, kept


def _tools() -> dict[str, str]:
    found = {"vtn-export": __version__, "python": platform.python_version()}
    for name in ("torch", "timm", "onnx", "onnxruntime", "onnxscript"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
