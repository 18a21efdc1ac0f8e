"""`validate --layers`: where the error starts. Tensors of the graph beside the outputs of PyTorch's modules.

Nodes are named after the modules they come from (onnx/names.py), so the last node of a module makes its
output. The truth is the rewritten model in float64; a layer's bound is the graph's own rule (onnx/check.py)
applied to that layer, with PyTorch rounded to the type as the yardstick of 16-bit graphs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from vtn_export.deps import require
from vtn_export.errors import BackendError, UsageError
from vtn_export.evaluate.finite import NotFinite
from vtn_export.evaluate.forms import Form
from vtn_export.evaluate.layer_match import Match, Outputs, match
from vtn_export.onnx.check import FP32_TOLERANCE, absolute_error, relative_error, typed_tolerance
from vtn_export.onnx.precision import max_of
from vtn_export.runtime.golden import Sample, bundle_samples
from vtn_export.spec import (
    FRAMES,
    QUANTIZED_PRECISIONS,
    Array,
    GraphSpec,
    Part,
    Precision,
    TensorSpec,
)
from vtn_export.trt.ranges import session_of

FP16_SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class LayerErrors:
    """One tensor that both sides have. error, bound: by the report's measure, over all samples.

    largest: max|value| in the graph; fp16_share: that over fp16's end (65504; above 1 overflows; bf16
    ends where float32 does); below_fp16: the share of non-zero values under fp16's smallest normal number,
    where its digits run out.
    """

    layer: str
    node: str
    tensor: str
    error: float
    bound: float
    largest: float
    fp16_share: float
    below_fp16: float
    finite: bool
    worst_sample: str

    @property
    def beyond(self) -> bool:
        return not (math.isfinite(self.error) and self.error <= self.bound)

    @property
    def ratio(self) -> float:
        """Error over bound: what the ranking goes by; infinite where a value is not finite."""
        return self.error / self.bound if math.isfinite(self.error) and self.bound else math.inf

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "beyond": self.beyond, "ratio": self.ratio}


@dataclass(frozen=True)
class LayerReport:
    """Layers of one part in the order of the graph. measure: of error and bound; unmatched: modules that ran
    in PyTorch and have no tensor of their own in the graph, with the reason."""

    part: str
    form: str
    precision: str
    measure: str
    layers: tuple[LayerErrors, ...]
    unmatched: tuple[tuple[str, str], ...]

    @property
    def first(self) -> LayerErrors | None:
        """The first layer beyond its bound."""
        return next((layer for layer in self.layers if layer.beyond), None)

    @property
    def not_finite(self) -> list[NotFinite]:
        """The first layer with a NaN or an infinity, if there is one."""
        bad = next((layer for layer in self.layers if not layer.finite), None)
        if bad is None:
            return []
        return [NotFinite(self.part, bad.worst_sample, bad.layer, bad.node, "NaN or Inf")]

    def ranked(self, count: int = 10) -> list[LayerErrors]:
        """The layers that are furthest beyond (or nearest to) their bounds."""
        return sorted(self.layers, key=lambda layer: -layer.ratio)[:count]

    def to_json(self) -> dict[str, Any]:
        first = self.first
        return {
            "part": self.part,
            "form": self.form,
            "precision": self.precision,
            "measure": self.measure,
            "first_beyond": None if first is None else first.layer,
            "ranked": [layer.layer for layer in self.ranked()],
            "layers": [layer.to_json() for layer in self.layers],
            "unmatched": [{"layer": name, "why": why} for name, why in self.unmatched],
        }


def compare_layers(form: Form, part: Part, extra: Sequence[Mapping[str, Array]] = ()) -> LayerReport:
    """A part's layers over its golden samples and `extra` calls, frames one at a time.

    Raises BackendError for a form whose tensors cannot be looked at here, CheckpointError without the
    bundle's weights.
    """
    run_graph: Any
    if form.name == "trt":
        from vtn_export.evaluate.layers_trt import engine_tensors

        run_graph = engine_tensors
    elif form.has_graph:
        run_graph = _ort_tensors
    else:
        raise BackendError(f"--layers: {form.name} shows no tensors; use --backend ort, fp16, bf16 or trt")
    precision = form.precision(part)
    if precision in QUANTIZED_PRECISIONS:
        raise UsageError(
            f"--layers: got a graph of {precision}, whose layers have no bound of their own; which of them cost most "
            f"is in the manifest's quantization when `vtn-export quantize` had to measure it"
        )
    require("torch")
    from vtn_export.model.vtn import VTN

    model = form.model()
    model = model.rewrite() if isinstance(model, VTN) else model  # what was exported
    samples = [*_one_frame_each(bundle_samples(form.bundle, part), part), *_named(extra)]
    graph = form.graph(part)
    truth = Outputs(copy.deepcopy(model).double())
    yardstick = None if precision == "fp32" else _rounded(model, precision)
    reference = truth.of(samples[0].inputs, part)
    matches, unmatched = match(graph, reference, truth)
    measure = "relative error" if precision == "fp32" else "absolute error"
    found: dict[str, list[_Seen]] = {one.layer: [] for one in matches}
    mismatched: dict[str, str] = {}
    with run_graph(form, part, graph, [one.tensor for one in matches]) as run:
        for sample in samples:
            expected = truth.of(sample.inputs, part)
            rounded = yardstick.of(sample.inputs, part) if yardstick is not None else {}
            got = run(sample.inputs)
            for one in matches:
                want, have = expected[one.layer], got[one.tensor]
                if want.shape != have.shape:
                    mismatched[one.layer] = f"shape {want.shape} in PyTorch, {have.shape} in the graph"
                    continue
                found[one.layer].append(_seen(sample.name, have, want, rounded.get(one.layer)))
    layers = tuple(_summary(one, found[one.layer], precision) for one in matches if one.layer not in mismatched)
    return LayerReport(part, form.name, precision, measure, layers, (*unmatched, *sorted(mismatched.items())))


@dataclass(frozen=True)
class _Seen:
    sample: str
    relative: float
    absolute: float
    rounded: float  # the yardstick's error
    expected: Array  # one value: the largest magnitude
    largest: float
    below: float
    finite: bool


def _seen(sample: str, got: Array, want: Array, rounded: Array | None) -> _Seen:
    sizes = np.abs(got)
    finite = bool(np.isfinite(got).all())
    present = sizes[sizes > 0]
    below = float((present < FP16_SMALLEST_NORMAL).mean()) if present.size else 0.0
    return _Seen(
        sample,
        relative_error(got, want),
        absolute_error(got, want),
        0.0 if rounded is None or rounded.shape != want.shape else absolute_error(rounded, want),
        np.array([np.abs(want).max() if want.size else 0.0]),
        float(sizes.max()) if sizes.size else 0.0,
        below,
        finite,
    )


def _summary(one: Match, seen: Sequence[_Seen], precision: Precision) -> LayerErrors:
    def error(entry: _Seen) -> float:
        return entry.relative if precision == "fp32" else entry.absolute

    worst = max(seen, key=lambda entry: error(entry) if math.isfinite(error(entry)) else math.inf)
    if precision == "fp32":
        bound = FP32_TOLERANCE
    else:
        bound = typed_tolerance(
            float(np.max([entry.rounded for entry in seen])), [entry.expected for entry in seen], precision
        )
    largest = float(np.max([entry.largest for entry in seen]))
    return LayerErrors(
        layer=one.layer,
        node=one.node,
        tensor=one.tensor,
        error=error(worst),
        bound=bound,
        largest=largest,
        fp16_share=largest / max_of("fp16"),
        below_fp16=max(entry.below for entry in seen),
        finite=all(entry.finite for entry in seen),
        worst_sample=worst.sample,
    )


@contextmanager
def _ort_tensors(form: Form, part: Part, graph: onnx.ModelProto, tensors: Sequence[str]) -> Iterator[Any]:
    spec = form.bundle.graph(part).spec
    have = {value.name for value in graph.graph.output}
    for name in tensors:
        if name not in have:
            graph.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
            have.add(name)
    outputs = tuple(TensorSpec(name, "float32", ()) for name in dict.fromkeys(tensors))
    with session_of(graph, GraphSpec(spec.inputs, outputs)) as session:
        yield session.run


def _rounded(model: Any, precision: Precision) -> Outputs:
    from vtn_export.model.rounding import rounded_copy

    return Outputs(rounded_copy(model, precision), precision)


def _one_frame_each(samples: Sequence[Sample], part: Part) -> Iterator[Sample]:
    if part != "backbone":
        yield from samples
        return
    frames = [frame for sample in samples for frame in sample.inputs[FRAMES]]
    yield from (Sample(f"frame {index}", {FRAMES: frame[None]}, {}) for index, frame in enumerate(frames))


def _named(calls: Sequence[Mapping[str, Array]]) -> Iterator[Sample]:
    yield from (Sample(f"video, call {index}", inputs, {}) for index, inputs in enumerate(calls))
