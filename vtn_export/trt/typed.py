"""The graph that is built: typed as asked, what stays float32 and why, and the check it passed.

The yardstick of a 16-bit typing is PyTorch rounded to that type. Torch is not there on a device, so
`vtn-export onnx` stores the bound that it sets (`typed_bounds` in the manifest) beside the golden
outputs. That rounding keeps values beyond the type's end finite, so an overflow here is no excuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx

from vtn_export.bundle import Bundle
from vtn_export.errors import BundleError, UsageError
from vtn_export.onnx.check import Check, check_samples, require_passed
from vtn_export.onnx.precision import Kept, precision_of, rounding_copy, to_precision
from vtn_export.runtime.golden import bundle_samples, graph_frames
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import (
    FEATURES,
    FRAME_INDEX,
    FRAMES,
    LENGTHS,
    OP_TYPE,
    QUANTIZED_PRECISIONS,
    Array,
    Part,
    Precision,
)
from vtn_export.trt import ranges

CALIBRATION_FRAMES = 32
_CHUNK = 4
_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose", OP_TYPE)


@dataclass(frozen=True)
class TypedGraph:
    """A part's graph in the precision to build. path: the bundle's own file, where nothing was changed."""

    model: onnx.ModelProto
    path: Path | None
    precision: Precision
    kept: Sequence[Kept]
    checks: Sequence[Check]  # empty where the export's own check holds

    @property
    def products_kept(self) -> bool:
        """Whether every matrix product and convolution stays float32."""
        kept = {entry.node for entry in self.kept}
        products = [node.name for node in self.model.graph.node if node.op_type in _PRODUCTS]
        return bool(products) and kept.issuperset(products)

    @property
    def weight_bytes(self) -> int:
        return sum(_bytes(tensor) for tensor in self.model.graph.initializer)


def resolve_precision(bundle: Bundle, asked: Precision | None) -> Precision:
    """The precision to build. Raises UsageError for one that the bundle's weights no longer have."""
    have = bundle.manifest.precision
    if asked is None or asked == have:
        return have
    if asked in QUANTIZED_PRECISIONS:
        raise UsageError(
            f"--{asked}: got a bundle of {have}, expected one of {asked}; make it with `vtn-export quantize "
            f"{bundle.path} --{asked} --calibrate VIDEOS --out DIR`"
        )
    if have != "fp32":
        raise UsageError(
            f"--{asked}: got a bundle of {have}, whose weights are rounded already; "
            f"expected an fp32 bundle (vtn-export onnx --precision fp32) or build it as {have}"
        )
    return asked


def typed_graph(
    bundle: Bundle,
    part: Part,
    precision: Precision,
    *,
    keep_fp32: Sequence[str] = (),
    calibrate: Path | None = None,
) -> TypedGraph:
    """Type a part's graph and check it against its golden outputs.

    An fp32 bundle asked for as fp16 or bf16 is typed here; nodes that come near the type's end on
    the golden samples (and on frames of `calibrate`) stay float32. Raises AccuracyError beyond the
    bound, UsageError for options that a graph typed at export cannot take.
    """
    path = bundle.graph_path(part)
    typing = precision != bundle.manifest.precision
    near: dict[str, str] = {}
    if typing and precision == "fp16":  # bf16 ends where float32 does
        # before the graph itself is loaded: two large models are not held at a time
        near = near_limit(bundle, part, precision, calibrate)
    model = load(path)
    if not typing:
        if keep_fp32 or calibrate is not None:
            option = "--keep-fp32" if keep_fp32 else "--calibrate"
            raise UsageError(f"{option}: the bundle is {precision} already, nothing is typed; it is for fp32 bundles")
        if precision_of(model) != precision:
            raise BundleError(f"{path}: its weights are {precision_of(model)}, the manifest says {precision}")
        return TypedGraph(model, path, precision, (), ())
    spec = bundle.graph(part).spec
    bound = tolerance(bundle, part, precision)
    samples = bundle_samples(bundle, part)
    names = {node.name for node in model.graph.node}
    found = {name: reason for name, reason in near.items() if name in names}
    typed, kept = to_precision(model, precision, {*(names & set(keep_fp32)), *found})
    del model  # a large model's weights are here once at a time, as far as that goes
    with ranges.session_of(rounding_copy(typed), spec) as session:
        checks = check_samples(session, samples, part=part, precision=precision, tolerance=bound)
    require_passed(checks)
    told = ranges.with_reasons(((entry.node, entry.reason) for entry in kept), found)
    return TypedGraph(typed, None, precision, [Kept(node, reason) for node, reason in told], checks)


@lru_cache(maxsize=4)
def near_limit(bundle: Bundle, part: Part, precision: Precision, calibrate: Path | None) -> dict[str, str]:
    """Nodes whose values come near the type's end on the golden samples and the frames of `calibrate` → why.

    `full` is looked at through its halves where the bundle has them: their nodes have the same names,
    and the backbone takes one frame at a time, in a sixth of the memory.
    """
    halves: tuple[Part, ...] = ("backbone", "temporal")
    if part == "full" and all(half in bundle.manifest.graphs for half in halves):
        found = [near_limit(bundle, half, precision, calibrate) for half in halves]
        return {**found[0], **found[1]}
    model = load(bundle.graph_path(part))
    calls = [*_golden_calls(bundle, part), *(calibration_calls(bundle, part, calibrate) if calibrate else ())]
    seen = ranges.observe(model, bundle.graph(part).spec, calls)
    return ranges.near_limit(model, seen, precision)


def _golden_calls(bundle: Bundle, part: Part) -> Iterator[Mapping[str, Array]]:
    """The golden inputs; frames one at a time, and for the temporal part the real frames' features too."""
    samples = bundle_samples(bundle, part)
    if part == "backbone":
        yield from ({FRAMES: frame[None]} for sample in samples for frame in sample.inputs[FRAMES])
        return
    yield from (sample.inputs for sample in samples)
    if part == "temporal":
        real = np.concatenate([sample.expected[FEATURES] for sample in bundle_samples(bundle, "backbone")])
        count = len(real)
        index = np.arange(count, dtype=np.int32)[None]
        yield {FEATURES: real[None], FRAME_INDEX: index, LENGTHS: np.array([count], dtype=np.int32)}


def check_keep_list(bundle: Bundle, parts: Sequence[Part], keep_fp32: Sequence[str]) -> None:
    """Every name is a node of one of the parts: a list of the whole model's fits each. Raises UsageError."""
    left = set(keep_fp32)
    for part in parts if left else ():
        graph = onnx.load(bundle.graph_path(part), load_external_data=False).graph
        left -= {node.name for node in graph.node}
    if left:
        raise UsageError(f"--keep-fp32: no node {sorted(left)[0]!r} in {', '.join(parts)}")


def tolerance(bundle: Bundle, part: Part, precision: Precision) -> float:
    """What a typing of this fp32 graph has to meet. Raises BundleError when the bundle does not say."""
    bound = bundle.graph(part).typed_bounds.get(precision)
    if bound is None:
        raise BundleError(
            f"bundle {bundle.path}: no accuracy bound for {part} in {precision}; "
            f"export it again, with --precision {precision} or with this version of vtn-export"
        )
    return bound


def calibration_calls(bundle: Bundle, part: Part, video: Path) -> Iterator[dict[str, Array]]:
    """Calls of a part on frames spread over a video. Raises VideoError; BundleError without a backbone for temporal."""
    from vtn_export.video import ClipReader

    manifest = bundle.manifest
    with ClipReader(video, manifest.preprocessing, CALIBRATION_FRAMES, chunk=_CHUNK) as reader:
        chunks = [(graph_frames(frames, manifest.preprocessing, manifest.input_type), at) for frames, at in reader]
    if part == "backbone":
        yield from ({FRAMES: frame[None]} for frames, _ in chunks for frame in frames)
    elif part == "full":
        for frames, at in chunks:
            lengths = np.array([len(frames)], dtype=np.int32)
            yield {FRAMES: frames[None], FRAME_INDEX: at[None], LENGTHS: lengths}
    else:
        with OrtSession(bundle.graph_path("backbone"), bundle.graph("backbone").spec) as backbone:
            features = np.concatenate([backbone.run({FRAMES: frames})[FEATURES] for frames, _ in chunks])
        index = np.concatenate([at for _, at in chunks])
        lengths = np.array([len(features)], dtype=np.int32)
        yield {FEATURES: features[None], FRAME_INDEX: index[None], LENGTHS: lengths}


def load(path: Path) -> onnx.ModelProto:
    """Read a graph, external data beside it included. Raises BundleError."""
    try:
        return onnx.load(path)
    except Exception as error:  # protobuf's and onnx's own exceptions have no common base
        raise BundleError(f"{path}: cannot be read as ONNX ({' '.join(str(error).split())[:200]})") from None


def describe_checks(checks: Sequence[Check]) -> Mapping[str, float] | None:
    """Measured error and bound, for the sidecar."""
    if not checks:
        return None
    worst = max(checks, key=lambda check: check.measured)
    return {"measured": worst.measured, "tolerance": worst.tolerance}


def _bytes(tensor: onnx.TensorProto) -> int:
    size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(np.prod(tensor.dims, dtype=np.int64)) * size
