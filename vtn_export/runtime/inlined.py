"""A graph without model-local functions, for readers that do not expand them (OpenVINO's). Torch-free."""

from __future__ import annotations

import onnx
import onnx.inliner


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a portable graph in which every call of the op is its body: standard ONNX only, no functions.

    Inputs, outputs, initializers (external data keeps its place) and metadata stay. Weights do not pass through
    the inliner, which would serialise them twice and stop at 2 GB. `model` is as before on return, too.
    """
    weights = list(model.graph.initializer)
    bare = onnx.ModelProto()
    del model.graph.initializer[:]
    try:
        bare.CopyFrom(model)
    finally:
        model.graph.initializer.extend(weights)
    result = onnx.inliner.inline_local_functions(bare)
    result.graph.initializer.extend(weights)
    return result
