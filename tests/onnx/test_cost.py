"""FLOPs and bytes of graphs: by hand, against the dense mask, against torch's own counter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from vtn_export.bundle import Bundle
from vtn_export.errors import ExportError
from vtn_export.model.torch_session import model_of
from vtn_export.onnx.cost import graph_cost, seen_columns
from vtn_export.spec import GraphSpec, TensorSpec


def spec(*shape: int | str) -> GraphSpec:
    return GraphSpec((TensorSpec("x", "float32", shape),), (TensorSpec("y", "float32", ()),))


def model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("vtn", 1)])


def test_a_product_by_hand() -> None:
    weight = np.zeros((3, 5), np.float32)
    cost = graph_cost(
        model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight}), spec("batch", 7, 3), {"batch": 2}
    )
    assert cost.flops == 2 * 2 * 7 * 3 * 5
    assert cost.weight_bytes == 60
    assert cost.compulsory_bytes == cost.traffic_bytes == 60 + 4 * 2 * 7 * 3 + 4 * 2 * 7 * 5


def test_a_convolution_and_a_view_by_hand() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], group=2, kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Shape", ["c"], ["s"], end=2),
        helper.make_node("Concat", ["s", "rest"], ["to"], axis=0),
        helper.make_node("Reshape", ["c", "to"], ["y"]),
    ]
    weights = {"w": np.zeros((6, 2, 3, 3), np.float32), "rest": np.array([-1])}
    cost = graph_cost(model(nodes, weights), spec("chunk", 4, 9, 11), {"chunk": 3})
    outputs = 3 * 6 * 4 * 5
    assert cost.flops == 2 * outputs * 2 * 9
    assert cost.traffic_bytes == 4 * (3 * 4 * 9 * 11 + 6 * 2 * 9 + outputs)  # the view moves nothing
    assert [node.op for node in cost.nodes] == ["Conv", "Reshape"]


def test_the_band_by_hand() -> None:
    # 5 tokens, 1 global, 1 on either side: row 0 sees {0, 1}, row 1 {0, 1, 2}, row 2 {0, 1, 2, 3}, rows 3 {0, 2, 3, 4}
    # and 4 {0, 3, 4}
    attributes = {"num_heads": 2, "one_sided_window": 1, "dilation": 1, "num_global_tokens": 1, "causal": 0}
    node = helper.make_node("SlidingWindowAttention", ["x", "lengths"], ["y"], domain="vtn", scale=1.0, **attributes)
    cost = graph_cost(model([node], {"lengths": np.array([5], np.int32)}), spec(1, "tokens", 24), {"tokens": 5})
    assert cost.flops == 2 * (2 * 4) * 2 * (2 + 3 + 4 + 4 + 3)  # q·k and p·v, 2 heads of 4
    assert cost.compulsory_bytes == 4 * (5 * 24 + 5 * 8)  # `lengths` of one element counts as no weight


@pytest.mark.parametrize("tokens", [1, 2, 19, 33, 100])
@pytest.mark.parametrize(
    ("window", "dilation", "num_global", "causal"),
    [(1, 1, 0, False), (9, 1, 1, False), (4, 3, 2, False), (5, 2, 1, True)],
)
@pytest.mark.parametrize("short", [0, 1, 7])
def test_seen_columns_are_the_dense_masks(
    tokens: int, window: int, dilation: int, num_global: int, causal: bool, short: int
) -> None:
    length = max(tokens - short, 0)
    row, column = np.mgrid[:tokens, :tokens]
    offset = column - row
    band = (offset % dilation == 0) & (abs(offset) <= window * dilation) & (column >= num_global)
    if causal:
        band &= offset <= 0
    seen = (band | (column < num_global)) & (row < length) & (column < length)
    options = {"one_sided_window": window, "dilation": dilation, "num_global_tokens": num_global, "causal": causal}
    assert seen_columns(tokens, length, **options) == seen.sum()


@pytest.mark.parametrize("frames", [1, 19, 250])
def test_torch_counts_the_same(small_bundle: Path, frames: int) -> None:
    """The rewritten model in torch does the graph's products; the op's own are counted by its contract instead."""
    bundle = Bundle.open(small_bundle)
    rewritten = model_of(bundle.manifest).rewrite().eval()
    backbone = graph_cost(bundle.graph_path("backbone"), bundle.graph("backbone").spec, {"chunk": frames})
    crop = bundle.manifest.preprocessing.crop_size
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        features = rewritten.frame_features(torch.zeros(frames, crop, crop, 3, dtype=torch.uint8))
    assert backbone.flops == counter.get_total_flops()

    temporal = graph_cost(bundle.graph_path("temporal"), bundle.graph("temporal").spec, {"batch": 1, "frames": frames})
    index, lengths = torch.arange(frames, dtype=torch.int32)[None], torch.tensor([frames], dtype=torch.int32)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        rewritten.classify(features[None], index, lengths)
    (config,) = bundle.manifest.config["temporal"]["one_sided_window"][:1]
    blocked = -(-(frames + 1) // 32) * 32 * (1 + 32 + 2 * config)  # what the op's blocks multiply: whole blocks
    width = features.shape[-1]
    op = temporal.flops_by_op()["SlidingWindowAttention"]
    assert temporal.flops - op == counter.get_total_flops() - 2 * 2 * blocked * width


def test_cost_is_linear_in_frames(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    graph, interface = onnx.load(bundle.graph_path("full")), bundle.graph("full").spec
    counts = [graph_cost(graph, interface, {"batch": 1, "frames": frames}).flops for frames in (100, 200, 300)]
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_what_cannot_be_resolved_is_named() -> None:
    nodes = [helper.make_node("NonZero", ["x"], ["y"], name="where.it.is")]
    with pytest.raises(ExportError, match=r"node where\.it\.is \(NonZero\)"):
        graph_cost(model(nodes, {}), spec("batch", 3), {"batch": 2})
