"""Exported graphs of every promised backbone: they agree where they were not traced, and are made as promised."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests import oracle
from tests.model import small
from tests.onnx import graphs
from tests.onnx.graphs import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, Exported
from tests.tolerances import tolerance
from vtn_export.errors import ConfigError, ExportError
from vtn_export.model.checkpoint import random_model
from vtn_export.model.config import ModelConfig
from vtn_export.onnx.export import export_backbone, export_temporal
from vtn_export.onnx.op import OP_DOMAIN, OP_TYPE
from vtn_export.onnx.precision import rounding_copy, to_precision

TINY = small.config(layers=2)


def _preset(name: str, *, crop: int = 224, options: dict[str, Any] | None = None) -> ModelConfig:
    """A shipped preset's backbone before the tiny temporal part, which is traced once; at a small crop
    where the network takes any."""
    data = TINY.to_json()
    data["backbone"] = {"name": ModelConfig.from_any(name).backbone.name, "options": options or {}}
    data["preprocessing"] |= {"crop_size": crop, "short_side": crop + 8}
    return ModelConfig.from_dict(data)


def _published() -> ModelConfig:
    """The published preset as it is, but for 2 of the ViT's 12 equal blocks."""
    data = ModelConfig.from_any("vit_b_vtn").to_json()
    data["backbone"]["options"] = {"depth": 2}
    return ModelConfig.from_dict(data)


# name -> (config, LayerNorms of its backbone, GELUs of its backbone)
CASES: dict[str, tuple[ModelConfig, int, int]] = {
    "vit_base_patch16_224": (_published(), 5, 2),
    "deit_tiny_patch16_224": (_preset("deit_tiny_vtn", options={"depth": 3}), 7, 3),
    "resnet50": (_preset("resnet50_vtn", crop=64), 0, 0),
    "convnext_tiny": (_preset("convnext_tiny_vtn", crop=64), 23, 18),
    "mobilenetv4_conv_small": (_preset("mobilenetv4_vtn", crop=64), 0, 0),
    "tf_efficientnet_lite0": (_preset("efficientnet_lite0_vtn", crop=64), 0, 0),
    "tests.nets:patches": (TINY, 1, 1),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tiny: Exported) -> tuple[str, Exported]:
    config, _, _ = CASES[request.param]
    assert config.backbone.name == request.param
    if config is TINY:
        return request.param, tiny
    own_temporal = request.param == "vit_base_patch16_224"
    return request.param, graphs.export(config, temporal_of=None if own_temporal else tiny)


def test_backbone_agrees_at_other_chunks(case: tuple[str, Exported]) -> None:
    _, exported = case
    frames, expected = exported.pool
    for start, stop in ((0, 1), (2, 4), (0, 6)):  # traced: 3
        got = graphs.run(exported.sessions["backbone"], frames=frames[start:stop])
        assert got.dtype == np.float32
        assert oracle.error(got, expected[start:stop]) <= tolerance("graph_fp32")


@pytest.mark.parametrize(("batch", "frames"), [(1, 1), (3, 2), (2, 18), (1, 32), (2, 37), (3, 130), (1, 700)])
def test_temporal_agrees_at_other_lengths(case: tuple[str, Exported], batch: int, frames: int) -> None:
    _, exported = case
    inputs = graphs.temporal_inputs(exported.model.config.hidden_dim or 0, batch, frames)
    got = graphs.run(exported.sessions["temporal"], **inputs)
    expected = exported.expected_logits(inputs[FEATURES], inputs[FRAME_INDEX], inputs[LENGTHS])
    assert oracle.error(got, expected) <= tolerance("graph_fp32")


@pytest.mark.parametrize(("batch", "frames", "lengths"), [(1, 1, [1]), (2, 3, [3, 1]), (1, 5, [4])])
def test_full_is_its_halves(case: tuple[str, Exported], batch: int, frames: int, lengths: list[int]) -> None:
    _, exported = case
    pool, pool_features = exported.pool
    pixels = pool[: batch * frames].reshape(batch, frames, *pool.shape[1:])
    index = np.cumsum(np.full((batch, frames), 97, np.int32), axis=1, dtype=np.int32)
    valid = np.array(lengths, np.int32)
    got = graphs.run(exported.sessions["full"], frames=pixels, frame_index=index, lengths=valid)
    features = graphs.run(exported.sessions["backbone"], frames=pixels.reshape(-1, *pixels.shape[2:]))
    features = features.reshape(batch, frames, -1)
    two_steps = graphs.run(exported.sessions["temporal"], features=features, frame_index=index, lengths=valid)
    assert oracle.error(got, two_steps) <= tolerance("composition")
    exact = pool_features[: batch * frames].reshape(features.shape)
    assert oracle.error(got, exported.expected_logits(exact, index, valid)) <= tolerance("graph_fp32")


def test_interface(case: tuple[str, Exported]) -> None:
    _, exported = case
    config = exported.model.config
    size, width, classes = config.preprocessing.crop_size, config.hidden_dim, config.num_classes
    pixels = (size, size, 3)
    positions = [(FRAME_INDEX, "INT32", ("batch", "frames")), (LENGTHS, "INT32", ("batch",))]
    logits = [("logits", "FLOAT", ("batch", classes))]
    expected = {
        "backbone": (
            [(FRAMES, "UINT8", ("chunk", *pixels))],
            [("features", "FLOAT", ("chunk", width))],
        ),
        "temporal": ([(FEATURES, "FLOAT", ("batch", "frames", width)), *positions], logits),
        "full": ([(FRAMES, "UINT8", ("batch", "frames", *pixels)), *positions], logits),
    }
    for part, graph in exported.graphs.items():
        assert (_values(graph.graph.input), _values(graph.graph.output)) == expected[part], part


def _values(values: Any) -> list[tuple[str, str, tuple[Any, ...]]]:
    return [
        (
            value.name,
            TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


def test_graphs_are_valid(case: tuple[str, Exported], tmp_path: Path) -> None:
    _, exported = case
    for part, graph in exported.graphs.items():
        onnx.save(graph, tmp_path / f"{part}.onnx")
        onnx.checker.check_model(str(tmp_path / f"{part}.onnx"), full_check=True)
        assert graph.graph.name == part
        nodes = [node.name for node in graph.graph.node]
        made = [name for node in graph.graph.node for name in node.output if name]
        given = [v.name for v in graph.graph.input] + [t.name for t in graph.graph.initializer]
        assert all(nodes) and len(set(nodes)) == len(nodes)
        assert len({*made, *given}) == len(made) + len(given)
        read = {name for node in graph.graph.node for name in node.input}
        assert {tensor.name for tensor in graph.graph.initializer} <= read, "weights that nothing reads"
        imports = {entry.domain: entry.version for entry in graph.opset_import}
        assert imports[""] == 20 and graph.ir_version == 10


def test_nothing_local_is_in_the_file(case: tuple[str, Exported]) -> None:
    _, exported = case
    home, here = str(Path.home()), str(Path.cwd())
    for graph in exported.graphs.values():
        text = onnx.ModelProto()
        text.CopyFrom(graph)
        del text.graph.initializer[:]
        blob = text.SerializeToString()
        for needle in (here, home, "site-packages", ".py", os.sep + "tmp", "stack_trace", "pkg.torch"):
            assert len(needle) < 3 or needle.encode() not in blob, needle
        assert not graph.metadata_props and not graph.doc_string
        assert not any(node.doc_string or node.metadata_props for node in graph.graph.node)


def test_norms_and_gelus_stay_single_nodes(case: tuple[str, Exported]) -> None:
    name, exported = case
    _, norms, gelus = CASES[name]
    layers = exported.model.config.temporal.num_layers
    for part, graph in exported.graphs.items():
        count = Counter(node.op_type for node in graph.graph.node)
        assert not {"Erf", "Pow", "Sqrt", "ReduceVariance", "Tanh"} & set(count), part
        own_norms, own_gelus = (0, 0) if part == "temporal" else (norms, gelus)
        if part != "backbone":  # embeddings, two a layer, head; one GELU a layer and the head's
            own_norms, own_gelus = own_norms + 2 + 2 * layers, own_gelus + layers + 1
        assert (count["LayerNormalization"], count["Gelu"]) == (own_norms, own_gelus), part


def test_uint8_is_cast_before_it_is_transposed(case: tuple[str, Exported]) -> None:
    _, exported = case
    for part in ("backbone", "full"):
        graph = exported.graphs[part].graph  # type: ignore[index]
        bytes_ = {FRAMES}
        readers = []
        for node in graph.node:
            if bytes_ & set(node.input):
                readers.append(node.op_type)
                if node.op_type in ("Reshape", "Transpose"):
                    bytes_.update(node.output)
        assert set(readers) <= {"Reshape", "Shape", "Cast"}, readers
        assert readers.count("Cast") == 1


def test_op_nodes_are_complete(case: tuple[str, Exported]) -> None:
    _, exported = case
    config = exported.model.config
    for part in ("temporal", "full"):
        graph = exported.graphs[part]  # type: ignore[index]
        found = [node for node in graph.graph.node if node.op_type == OP_TYPE]
        assert len(found) == config.temporal.num_layers - 1  # the last layer computes token 0 alone
        for node in found:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert node.domain == OP_DOMAIN and len(node.input) == 2
            assert attributes == {
                "num_heads": config.temporal.num_heads,
                "one_sided_window": 9,
                "dilation": 1,
                "num_global_tokens": 1,
                "causal": 0,
                "scale": 0.125,
            }
        assert [(f.domain, f.name) for f in graph.functions] == [(OP_DOMAIN, OP_TYPE)]
        assert {e.domain: e.version for e in graph.opset_import}[OP_DOMAIN] == 1


def test_nothing_is_square_in_the_sequence(case: tuple[str, Exported]) -> None:
    """No tensor of the temporal graph has two free axes made of frames."""
    _, exported = case
    graph = onnx.shape_inference.infer_shapes(exported.graphs["temporal"])
    for value in graph.graph.value_info:
        axes = [dim.dim_param for dim in value.type.tensor_type.shape.dim if "frames" in dim.dim_param]
        assert len(axes) <= 1, value.name


@pytest.mark.parametrize(("precision", "rough"), [("fp16", 0.02), ("bf16", 0.2)])
def test_typed_forms_are_valid_and_run(case: tuple[str, Exported], precision: Any, rough: float) -> None:
    """Every backbone types by the same rules: valid ONNX, and a rounding copy that gives about the same features."""
    _, exported = case
    typed, _ = to_precision(exported.graphs["full"], precision)
    onnx.checker.check_model(typed, full_check=True)
    backbone, _ = to_precision(exported.graphs["backbone"], precision)
    frames, expected = (values[:2] for values in exported.pool)
    got = graphs.run(graphs.session(rounding_copy(backbone)), frames=frames)
    assert np.abs(got - expected).max() <= rough * np.abs(expected).max()
    if precision == "fp16":  # ONNX Runtime has no bf16 kernels on CPUs
        got = graphs.run(graphs.session(backbone), frames=frames)
        assert np.abs(got - expected).max() <= rough * np.abs(expected).max()


VARIANTS: dict[str, dict[str, Any]] = {
    "four heads mixed": {"dilation": [[2, 1, 2, 1], [1, 1, 1, 5]], "layers": 2, "heads": 4, "window": [3, 8]},
    "causal, no globals, dilated": {"globals_": 0, "layers": 1, "causal": True, "dilation": 2},
    "three globals, few positions, window beyond a block, causal": {
        "globals_": 3,
        "positions": 20,
        "window": 50,
        "layers": 2,
        "causal": True,
    },
    "one layer": {"layers": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_temporal_variants(variant: str) -> None:
    model = small.model(**VARIANTS[variant])
    graph = export_temporal(model.rewrite())
    onnx.checker.check_model(graph, full_check=True)
    opened = graphs.session(graph)
    exported = Exported(model.double(), {}, {}, {}, "uint8")
    for batch, frames in ((1, 1), (2, 7), (3, 33), (2, 120)):
        inputs = graphs.temporal_inputs(128, batch, frames)
        got = graphs.run(opened, **inputs)
        expected = exported.expected_logits(inputs[FEATURES], inputs[FRAME_INDEX], inputs[LENGTHS])
        assert oracle.error(got, expected) <= tolerance("graph_fp32")
    gaps = model.config.temporal.dilation
    assert isinstance(gaps, tuple)
    layers = gaps if not model.config.temporal.num_global_tokens else gaps[:-1]
    nodes = [node for node in graph.graph.node if node.op_type == OP_TYPE]
    assert len(nodes) == sum(len(set(row)) for row in layers if isinstance(row, tuple))
    if not nodes:
        assert not graph.functions and {entry.domain for entry in graph.opset_import} == {""}


def test_float_frames(tiny: Exported) -> None:
    """`--input float32`: channels first, normalised outside."""
    exported = graphs.export(TINY, input_type="float32", temporal_of=tiny)
    assert _values(exported.graphs["full"].graph.input)[0] == (FRAMES, "FLOAT", ("batch", "frames", 3, 32, 32))
    assert not any(node.name.startswith("preprocess/") for node in exported.graphs["full"].graph.node)
    frames = graphs.frames_of(exported, 2, 3)
    index, lengths = np.zeros((2, 3), np.int32), np.array([3, 2], np.int32)
    features = exported.expected_features(frames.reshape(-1, 3, 32, 32)).reshape(2, 3, -1)
    got = graphs.run(exported.sessions["full"], frames=frames, frame_index=index, lengths=lengths)
    assert oracle.error(got, exported.expected_logits(features, index, lengths)) <= tolerance("graph_fp32")


def test_padding_is_no_input_of_the_graph(tiny: Exported) -> None:
    """NaN features behind the length do not reach the logits."""
    inputs = graphs.temporal_inputs(128, 3, 40)
    clean = graphs.run(tiny.sessions["temporal"], **inputs)
    dirty = inputs[FEATURES].copy()
    for row, length in enumerate(inputs[LENGTHS]):
        dirty[row, length:] = np.nan
    assert np.array_equal(graphs.run(tiny.sessions["temporal"], **{**inputs, FEATURES: dirty}), clean)


def test_export_is_repeatable(tiny: Exported) -> None:
    again = graphs.export(TINY, temporal_of=tiny)
    for part, graph in tiny.graphs.items():
        assert again.graphs[part].SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_names_say_the_module(tiny: Exported) -> None:
    graph = tiny.graphs["full"].graph
    nodes = {node.name for node in graph.node}
    assert f"temporal_encoder.layer.0.attention/{OP_TYPE}" in nodes
    for scope in ("preprocess/", "backbone.project/", "projection/", "temporal_encoder.layer.1.", "mlp_head.4/"):
        assert any(name.startswith(scope) for name in nodes), scope
    weights = {tensor.name for tensor in graph.initializer}
    assert {"temporal_encoder.embeddings.position_embeddings.weight", "cls_token"} <= weights


def test_data_dependent_backbone_is_refused() -> None:
    data = small.config(layers=1).to_json()
    data["backbone"]["name"] = "tests.nets:branching"
    with pytest.raises(ConfigError, match="depends on the pixels"):
        random_model(data)
    data["backbone"]["feature_dim"] = 64  # not tried before the export then
    model = random_model(data).rewrite()
    with pytest.raises(ExportError) as caught:
        export_backbone(model, "uint8")
    assert "backbone" in str(caught.value) and "\n" not in str(caught.value)
