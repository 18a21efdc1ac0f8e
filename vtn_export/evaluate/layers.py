"""`validate --layers`: where the error starts. Tensors of the graph beside the outputs of PyTorch's modules.

Nodes are named after the modules they come from (onnx/names.py), so the last node of a module makes its
output. The truth is the rewritten model in float64; a layer's bound is the graph's own rule (onnx/check.py)
applied to that layer, with PyTorch rounded to the type as the yardstick of 16-bit graphs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper

from vtn_export.deps import require
from vtn_export.errors import BackendError
from vtn_export.evaluate.finite import NotFinite
from vtn_export.evaluate.forms import Form
from vtn_export.onnx.check import FP32_TOLERANCE, absolute_error, relative_error, typed_tolerance
from vtn_export.onnx.precision import max_of, tensor_types
from vtn_export.runtime.golden import Sample, bundle_samples
from vtn_export.spec import (
    FEATURES,
    FRAME_INDEX,
    FRAMES,
    LENGTHS,
    OP_TYPE,
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


@dataclass(frozen=True)
class Match:
    """A module (or call of the op), the node that makes its output, and that tensor."""

    layer: str
    node: str
    tensor: str


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
    require("torch")
    from vtn_export.model.vtn import VTN

    model = form.model()
    model = model.rewrite() if isinstance(model, VTN) else model  # what was exported
    samples = [*_one_frame_each(bundle_samples(form.bundle, part), part), *_named(extra)]
    graph = form.graph(part)
    truth = Outputs(copy.deepcopy(model).double())
    precision = form.precision(part)
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


class Outputs:
    """A PyTorch model that remembers the output of every module and of every call of the op."""

    def __init__(self, model: Any, precision: Precision = "fp32") -> None:
        self.model, self.precision = model, precision
        self.calls: dict[str, int] = {}
        self.input_of: dict[str, str] = {}  # module -> the one that made its input
        self.batch_norms: set[str] = set()

    def of(self, inputs: Mapping[str, Array], part: Part) -> dict[str, Array]:
        """float64 arrays by module name; calls of the op as `MODULE/SlidingWindowAttention`."""
        import torch

        from vtn_export.model.attention import op_observer

        outputs: dict[str, Array] = {}
        made_by: dict[int, str] = {}
        alive: list[Any] = []  # ids are only good while their tensors live
        self.calls, self.input_of = {}, {}
        stack: list[str] = []

        def enter(name: str) -> Any:
            return lambda _module, _inputs: stack.append(name)

        def leave(name: str, leaf: bool, batch_norm: bool) -> Any:
            def look(_module: Any, arguments: Any, output: Any) -> None:
                stack.pop()
                self.calls[name] = self.calls.get(name, 0) + 1
                if not (isinstance(output, torch.Tensor) and output.is_floating_point()):
                    return
                outputs[name] = output.detach().to(torch.float64, copy=True).numpy()  # activations may work in place
                if (leaf or batch_norm) and arguments and id(arguments[0]) in made_by:
                    self.input_of[name] = made_by[id(arguments[0])]
                if leaf:
                    alive.append(output)
                    made_by[id(output)] = name

            return look

        handles = []
        for name, module in self.model.named_modules():
            handles.append(module.register_forward_pre_hook(enter(name)))
            batch_norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
            if batch_norm:
                self.batch_norms.add(name)
            handles.append(module.register_forward_hook(leave(name, not list(module.children()), batch_norm)))
        outer = op_observer.get()

        def observe(op: Any) -> Any:
            result = op() if outer is None else outer(op)
            name = f"{stack[-1] if stack else part}/{OP_TYPE}"
            count = self.calls[name] = self.calls.get(name, 0) + 1
            outputs[name if count == 1 else f"{name}_{count - 1}"] = (
                result.detach().to(torch.float64, copy=True).numpy()
            )
            return result

        mode: Any = nullcontext()
        if self.precision != "fp32":
            from vtn_export.model.rounding import rounding

            mode = rounding(self.model, self.precision)
        try:
            with mode:
                outer = op_observer.get()
                token = op_observer.set(observe)
                try:
                    with torch.no_grad():
                        _call(self.model, inputs, part)
                finally:
                    op_observer.reset(token)
        finally:
            for handle in handles:
                handle.remove()
        return outputs


def match(
    graph: onnx.ModelProto, reference: Mapping[str, Array], torch_side: Outputs
) -> tuple[list[Match], list[tuple[str, str]]]:
    """What both sides have, in the order of the graph, and the modules that have no tensor of their own.

    A module without children, or whose last node is its own, has its output in the graph. A module that
    left no node was folded into the one before it (BatchNorm into a convolution): that node's
    tensor is then the folded module's output.
    """
    types = tensor_types(graph)
    last: dict[str, onnx.NodeProto] = {}
    ops: dict[str, onnx.NodeProto] = {}
    for node in graph.graph.node:
        if node.op_type == OP_TYPE:
            ops[node.name] = node
        # casts of the typing pass and of a rounding copy are named after tensors, whose names have a slash too
        if node.name.count("/") != 1 or not any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output):
            continue
        module = node.name.rpartition("/")[0]
        while module:
            last[module] = node
            module = module.rpartition(".")[0]
    found: dict[str, Match] = {}
    unmatched: list[tuple[str, str]] = []
    for name in reference:
        if "/" in name:
            if name in ops:
                found[name] = Match(name, name, _tensor(ops[name]))
            else:
                unmatched.append((name, "the graph has no such node"))
            continue
        calls = torch_side.calls.get(name, 1)
        if not name or calls != 1:
            if name:
                unmatched.append((name, f"called {calls} times"))
            continue
        into = torch_side.input_of.get(name)
        if name in torch_side.batch_norms and into in found and name in last and not _has(graph, name):
            del found[into]
            unmatched.append((into, f"{name} is folded into it"))
        if name not in last:
            # the graph's tensor is this module's output now (unless it passed its input on, as dropout does)
            if into in found and not np.array_equal(reference[name], reference[into]):
                found[name] = Match(name, found[into].node, found.pop(into).tensor)
            continue
        node = last[name]
        if node.name.rpartition("/")[0] == name:
            found[name] = Match(name, node.name, _tensor(node))
    order = {node.name: place for place, node in enumerate(graph.graph.node)}
    return sorted(found.values(), key=lambda one: order[one.node]), unmatched


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


def _call(model: Any, inputs: Mapping[str, Array], part: Part) -> None:
    import torch

    dtype = next(model.parameters()).dtype
    tensors = {name: torch.from_numpy(value.copy()) for name, value in inputs.items()}
    tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
    if part == "backbone":
        model.frame_features(tensors[FRAMES])
    elif part == "temporal":
        model.classify(tensors[FEATURES], tensors[FRAME_INDEX], tensors[LENGTHS])
    else:
        model(tensors[FRAMES], tensors[FRAME_INDEX], tensors[LENGTHS])


def _one_frame_each(samples: Sequence[Sample], part: Part) -> Iterator[Sample]:
    if part != "backbone":
        yield from samples
        return
    frames = [frame for sample in samples for frame in sample.inputs[FRAMES]]
    yield from (Sample(f"frame {index}", {FRAMES: frame[None]}, {}) for index, frame in enumerate(frames))


def _named(calls: Sequence[Mapping[str, Array]]) -> Iterator[Sample]:
    yield from (Sample(f"video, call {index}", inputs, {}) for index, inputs in enumerate(calls))


def _has(graph: onnx.ModelProto, batch_norm: str) -> bool:
    return any(
        node.op_type == "BatchNormalization" and node.name.startswith(f"{batch_norm}/") for node in graph.graph.node
    )


def _tensor(node: onnx.NodeProto) -> str:
    """The tensor that a node makes, by its name after a rounding copy's casts."""
    return str(node.output[0]).removesuffix(".unrounded")
