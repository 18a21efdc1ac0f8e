"""How large the activations of the layers get over real clips, by one of three rules.

max: the largest magnitude. percentile (99.99 % of the magnitudes) and entropy (the clipping that loses least
information to 8 bits) trade a few clipped values for finer steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from vtn_export.bundle import Bundle
from vtn_export.errors import QuantizeError
from vtn_export.evaluate.eval import Parts
from vtn_export.quantize.clips import Clip
from vtn_export.quantize.histogram import Histogram
from vtn_export.quantize.layers import Layer
from vtn_export.runtime.golden import graph_frames
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, GraphSpec, Part, TensorSpec
from vtn_export.trt.ranges import session_of

Method = Literal["max", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)

PERCENTILE = 99.99
CHUNK = 8  # frames a call of the backbone


class Observer:
    """Collects magnitudes of tensors, call by call."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.active = True  # False: values pass unseen
        self._largest: dict[str, float] = {}
        self._histograms: dict[str, Histogram] = {}

    def add(self, values: Mapping[str, Array]) -> None:
        if not self.active:
            return
        for name, array in values.items():
            self._largest[name] = max(self._largest.get(name, 0.0), float(np.abs(array).max()))
            if self.method != "max":
                self._histograms.setdefault(name, Histogram()).add(array)

    def result(self) -> dict[str, float]:
        """Tensor -> the magnitude that its scale has to hold; never beyond the largest seen."""
        if self.method == "max":
            return dict(self._largest)
        return {name: min(self._clipped(name), largest) for name, largest in self._largest.items()}

    def _clipped(self, name: str) -> float:
        histogram = self._histograms[name]
        return histogram.percentile(PERCENTILE) if self.method == "percentile" else histogram.entropy()


class Watched:
    """A float32 graph that also gives the layers' activations; `run` feeds them to the observer."""

    def __init__(self, session: OrtSession, spec: GraphSpec, tensors: Sequence[str], observer: Observer) -> None:
        self.spec, self.backend = spec, session.backend
        self._session, self._tensors, self._observer = session, tensors, observer

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        outputs = self._session.run(inputs)
        self._observer.add({name: outputs[name] if name in outputs else inputs[name] for name in self._tensors})
        return {tensor.name: outputs[tensor.name] for tensor in self.spec.outputs}

    def close(self) -> None:
        self._session.close()


def watched(
    stack: ExitStack, model: onnx.ModelProto, spec: GraphSpec, layers: Sequence[Layer], observer: Observer
) -> Watched:
    """Opens the watched form of `model`, whose content it takes, until `stack` closes."""
    tensors = activations_of(model, layers)
    given = {value.name for value in (*model.graph.input, *model.graph.output)}
    extra = [name for name in tensors if name not in given]
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in extra)
    outputs = (*spec.outputs, *(TensorSpec(name, "float32", ()) for name in extra))
    session = stack.enter_context(session_of(model, GraphSpec(spec.inputs, outputs)))
    return Watched(session, spec, tensors, observer)


def ranges_of(model: onnx.ModelProto, layers: Sequence[Layer], observer: Observer) -> dict[tuple[str, int], float]:
    """What the scale of every activation has to hold, by the node and the place that read it."""
    nodes = {node.name: node for node in model.graph.node}
    found = observer.result()
    return {(name, at): found[nodes[name].input[at]] for layer in layers for name, at in layer.activations}


def activations_of(model: onnx.ModelProto, layers: Sequence[Layer]) -> list[str]:
    """Names of the tensors that get a scale, each once."""
    nodes = {node.name: node for node in model.graph.node}
    return list(dict.fromkeys(nodes[node].input[position] for layer in layers for node, position in layer.activations))


class ClipRunner:
    """Clips through a bundle's graphs, whichever form of them: by the backbone and the temporal part, or `full`."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises QuantizeError for a bundle that cannot classify a video."""
        have = bundle.manifest.graphs
        self.manifest = bundle.manifest
        self.parts: tuple[Part, ...] = ("backbone", "temporal")
        if not all(part in have for part in self.parts):
            if "full" not in have:
                raise QuantizeError(
                    f"bundle {bundle.path}: got {', '.join(have)} alone, expected what classifies a video; "
                    f"export it with --part all"
                )
            self.parts = ("full",)

    def logits(self, sessions: Parts, clip: Clip, frames: slice = slice(None)) -> Array:
        """float32 `[classes]`; the backbone takes CHUNK frames a call."""
        pixels, index = np.asarray(clip.frames[frames]), clip.frame_index[frames]
        positions = {FRAME_INDEX: index[None], LENGTHS: np.array([len(index)], np.int32)}
        if self.parts == ("full",):
            whole: Array = sessions["full"].run({FRAMES: self._input(pixels)[None], **positions})[LOGITS][0]
            return whole
        chunks = [self._input(pixels[start : start + CHUNK]) for start in range(0, len(pixels), CHUNK)]
        features = np.concatenate([sessions["backbone"].run({FRAMES: chunk})[FEATURES] for chunk in chunks])
        logits: Array = sessions["temporal"].run({FEATURES: features[None], **positions})[LOGITS][0]
        return logits

    def _input(self, pixels: Array) -> Array:
        return graph_frames(pixels, self.manifest.preprocessing, self.manifest.input_type)
