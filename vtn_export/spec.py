"""Tensor names, axes and dtypes of every graph, and the preprocessing that feeds them. Torch-free.

The one place where the graphs' interface is written down: the exporter names its inputs from here,
the manifest repeats it, the sessions check against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from vtn_export.errors import BundleError, ShapeError

Part = Literal["full", "backbone", "temporal"]
TypedPrecision = Literal["fp32", "fp16", "bf16"]  # what a float32 graph can be typed to
QuantizedPrecision = Literal["int8", "fp8"]  # what calibration leads to (vtn_export/quantize); the rest is fp16
Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
InputType = Literal["uint8", "float32"]
if TYPE_CHECKING:
    import numpy as np

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
else:
    Array = Any  # the command line reads this module at start-up: numpy would double its time

PARTS: tuple[Part, ...] = get_args(Part)
TYPED_PRECISIONS: tuple[TypedPrecision, ...] = get_args(TypedPrecision)
QUANTIZED_PRECISIONS: tuple[QuantizedPrecision, ...] = get_args(QuantizedPrecision)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INPUT_TYPES: tuple[InputType, ...] = get_args(InputType)

FRAMES, FRAME_INDEX, LENGTHS = "frames", "frame_index", "lengths"
FEATURES, LOGITS = "features", "logits"
OP_DOMAIN, OP_TYPE = "vtn", "SlidingWindowAttention"  # docs/op.md


@dataclass(frozen=True)
class Preprocessing:
    """How a decoded frame becomes the graph's input (the published pre-processing by default).

    The shorter side is resized to `short_side` (bilinear, align_corners=False, no antialias), the
    centre `crop_size` × `crop_size` is cut out, pixels are rounded to uint8. Normalisation with
    `mean` and `std` (per RGB channel, of values in 0..1) is inside the graph, except for float32
    graphs. `num_frames` frames are spaced evenly over the whole video.
    """

    short_side: int = 256
    crop_size: int = 224
    mean: tuple[float, float, float] = (0.45, 0.45, 0.45)
    std: tuple[float, float, float] = (0.225, 0.225, 0.225)
    num_frames: int = 250

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_json` wrote. Raises BundleError."""
        try:
            mean, std = (tuple(float(v) for v in data[key]) for key in ("mean", "std"))
            short_side, crop_size, num_frames = (int(data[key]) for key in ("short_side", "crop_size", "num_frames"))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"preprocessing: malformed ({error!r})") from None
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or min(short_side, crop_size, num_frames) < 1:
            raise BundleError("preprocessing: values out of range")
        if crop_size > short_side:
            raise BundleError(f"preprocessing: crop_size {crop_size} is larger than short_side {short_side}")
        return cls(short_side, crop_size, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), num_frames)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: numpy dtype name and shape, with names for the free axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def describe(self) -> str:
        return f"{self.name}: {self.dtype} [{', '.join(str(axis) for axis in self.shape)}]"


@dataclass(frozen=True)
class GraphSpec:
    """The interface of one graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        def tensors(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
            return [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in specs]

        return {"inputs": tensors(self.inputs), "outputs": tensors(self.outputs)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> GraphSpec:
        """Read what `to_json` wrote. Raises BundleError."""

        def tensors(items: Any) -> tuple[TensorSpec, ...]:
            specs = []
            for item in items:
                name, dtype, shape = item["name"], item["dtype"], item["shape"]
                ok = isinstance(name, str) and dtype in ("uint8", "int32", "float32")
                if not ok or not all(isinstance(axis, (int, str)) for axis in shape):
                    raise ValueError(item)
                specs.append(TensorSpec(name, dtype, tuple(shape)))
            return tuple(specs)

        try:
            return cls(tensors(data["inputs"]), tensors(data["outputs"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BundleError(f"manifest: malformed graph interface ({error!r})") from None


def graph_spec(part: Part, *, crop_size: int, feature_dim: int, num_classes: int, input_type: InputType) -> GraphSpec:
    """The interface of one part. Integers are int32, features and logits float32 in every precision.

    frames: uint8 RGB `[…, H, W, 3]`, or float32 `[…, 3, H, W]` already normalised.
    """
    pixels: tuple[int | str, ...] = (crop_size, crop_size, 3) if input_type == "uint8" else (3, crop_size, crop_size)
    features = TensorSpec(FEATURES, "float32", ("batch", "frames", feature_dim))
    positions = (
        TensorSpec(FRAME_INDEX, "int32", ("batch", "frames")),
        TensorSpec(LENGTHS, "int32", ("batch",)),
    )
    logits = TensorSpec(LOGITS, "float32", ("batch", num_classes))
    if part == "backbone":
        return GraphSpec(
            (TensorSpec(FRAMES, input_type, ("chunk", *pixels)),),
            (TensorSpec(FEATURES, "float32", ("chunk", feature_dim)),),
        )
    if part == "temporal":
        return GraphSpec((features, *positions), (logits,))
    return GraphSpec((TensorSpec(FRAMES, input_type, ("batch", "frames", *pixels)), *positions), (logits,))


def check_inputs(spec: GraphSpec, inputs: Mapping[str, Array]) -> None:
    """Raise ShapeError unless `inputs` has exactly the arrays that `spec` takes.

    Named axes must agree with each other across inputs and be ≥ 1; `lengths` must be in 1..frames, indices ≥ 0.
    """
    import numpy as np

    names = [tensor.name for tensor in spec.inputs]
    if set(inputs) != set(names):
        raise ShapeError(f"inputs: got {sorted(inputs)}, expected {sorted(names)}")
    axes: dict[str, tuple[int, str]] = {}
    for tensor in spec.inputs:
        array = inputs[tensor.name]
        got = f"{array.dtype} {array.shape}"
        expected = f"{tensor.dtype} ({', '.join(str(a) for a in tensor.shape)})"
        if array.dtype != np.dtype(tensor.dtype) or array.ndim != len(tensor.shape):
            raise ShapeError(f"{tensor.name}: got {got}, expected {expected}{_hint(tensor, array)}")
        for axis, size in zip(tensor.shape, array.shape, strict=True):
            if isinstance(axis, int):
                if axis != size:
                    raise ShapeError(f"{tensor.name}: got {got}, expected {expected}{_hint(tensor, array)}")
            elif size < 1:
                raise ShapeError(f"{tensor.name}: got {got}, expected at least 1 {axis}")
            elif axes.setdefault(axis, (size, tensor.name))[0] != size:
                other_size, other = axes[axis]
                raise ShapeError(f"{tensor.name}: got {size} {axis}, but {other} has {other_size}")
    if LENGTHS in inputs and "frames" in axes:
        lengths, frames = inputs[LENGTHS], axes["frames"][0]
        if lengths.min() < 1 or lengths.max() > frames:
            raise ShapeError(f"lengths: got {lengths.tolist()}, expected values in 1..{frames} (valid frames)")
    if FRAME_INDEX in inputs and (lowest := int(inputs[FRAME_INDEX].min())) < 0:
        raise ShapeError(f"frame_index: got {lowest}, expected indices in the source video, from 0 on")


def _hint(tensor: TensorSpec, array: Array) -> str:
    if tensor.name == FRAMES and array.ndim == len(tensor.shape) and array.ndim >= 4:
        if tensor.shape[-1] == 3 and array.shape[-3] == 3:
            return "; move the channels last"
        if tensor.shape[-3] == 3 and array.shape[-1] == 3:
            return "; move the channels before height and width"
    if array.dtype.kind in "iu" and tensor.dtype == "int32" and str(array.dtype) != "int32":
        return "; cast to int32"
    return ""
