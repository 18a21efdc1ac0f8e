"""One graph into a bundle's folder: written, checked against its golden samples, its memory measured. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from vtn_export.bundle import GraphEntry
from vtn_export.onnx.check import Check, check_samples, typed_tolerance
from vtn_export.onnx.memory import activation_bytes, linear_model
from vtn_export.onnx.precision import rounding_copy
from vtn_export.runtime.golden import Sample
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import LENGTHS, GraphSpec, Part, Precision

EXTERNAL_DATA_BYTES = 1_000_000_000  # protobuf's own limit is 2 GB; TensorRT and Netron like it smaller


def write_and_check(
    folder: Path,
    part: Part,
    graph: onnx.ModelProto,
    spec: GraphSpec,
    samples: Sequence[Sample],
    precision: Precision,
    tolerance: float | None,
) -> tuple[GraphEntry, list[Check]]:
    """Write `graph` to `folder` and run it; a failed check is the caller's to raise.

    tolerance: what the outputs are held against; None for a quantized graph, whose own error here, doubled, and
    2 ulp of fp16 are what another machine has to meet.
    """
    path = folder / f"{part}.onnx"
    large = graph.ByteSize() > EXTERNAL_DATA_BYTES
    # what this machine's runtime computes: the graph itself, or what shows its rounding
    runnable: Path | bytes = path if precision == "fp32" else rounding_copy(graph).SerializeToString()
    onnx.save(graph, path, save_as_external_data=large, location=f"{path.name}.data")
    del graph
    with OrtSession(runnable, spec) as session:
        checks = check_samples(session, samples, part=part, precision=precision, tolerance=tolerance or 0.0)
    measured = max(check.measured for check in checks)
    if tolerance is None:
        references = [expected for sample in samples for expected in sample.expected.values()]
        tolerance = typed_tolerance(measured, references, "fp16")
        checks = [replace(check, tolerance=tolerance) for check in checks]
    by_frames = sorted((_frames_of(sample), sample) for sample in samples[:2])
    peaks = activation_bytes(runnable, spec, *(sample.inputs for _, sample in by_frames))
    points = [(frames, peak) for (frames, _), peak in zip(by_frames, peaks, strict=True)]
    fixed, per_frame = linear_model(points[0], points[1])
    return GraphEntry(path.name, spec, tolerance, measured, fixed, per_frame), checks


def _frames_of(sample: Sample) -> int:
    """Frames in one call: batch · frames, or the chunk."""
    first = next(iter(sample.inputs.values()))
    return int(np.prod(first.shape[:2])) if LENGTHS in sample.inputs else int(first.shape[0])
