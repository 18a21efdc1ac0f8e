"""Typed graphs, the float32 copy that rounds, and PyTorch rounded likewise: the three parts of the 16-bit check."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal, cast

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests import oracle
from tests.model import small
from tests.onnx import graphs
from tests.onnx.graphs import FEATURES, FRAME_INDEX, LENGTHS, Exported
from vtn_export.errors import ExportError
from vtn_export.model.rounding import rounded_copy, rounding
from vtn_export.onnx.op import OP_TYPE
from vtn_export.onnx.precision import max_of, precision_of, round_to, rounding_copy, to_precision, ulp

Half = Literal["fp16", "bf16"]
ONNX_TYPE = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
NUMPY_TYPE = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
EPS = {"fp16": 2.0**-11, "bf16": 2.0**-8}

halves = pytest.mark.parametrize("precision", ["fp16", "bf16"])
parts = pytest.mark.parametrize("part", ["full", "backbone", "temporal"])


@halves
@parts
def test_typed_throughout(tiny: Exported, part: Any, precision: Half, tmp_path: Path) -> None:
    """Every float tensor is 16-bit but for LayerNorm, softmax, pixel normalisation, logits, and casts to those."""
    source = tiny.graphs[part]
    before = source.SerializeToString(deterministic=True)
    typed, kept = to_precision(source, precision)
    assert source.SerializeToString(deterministic=True) == before, "the float32 graph is left as it was"
    onnx.save(typed, tmp_path / "typed.onnx")
    onnx.checker.check_model(str(tmp_path / "typed.onnx"), full_check=True)
    inferred = onnx.shape_inference.infer_shapes(typed)
    types = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    types |= {t.name: t.data_type for t in typed.graph.initializer}
    outputs = {value.name for value in typed.graph.output}
    reasons = {entry.node: entry.reason for entry in kept}
    norms = {name for name, reason in reasons.items() if "computed in float32" in reason}
    seen: Counter[str] = Counter()
    for node in typed.graph.node:
        for name in node.output:
            kind = types.get(name)
            if kind == TensorProto.FLOAT and node.op_type != "Cast":
                seen[node.op_type] += 1
                exempt = node.op_type in ("LayerNormalization", "Softmax") or node.name.startswith("preprocess/")
                big_constant = "beyond fp16" in reasons.get(node.name, "")
                assert exempt or name in outputs or node.name in norms or big_constant, node.name
                assert node.name in reasons
            if kind == ONNX_TYPE[precision]:
                seen["typed"] += 1
        if node.op_type in ("MatMul", "Gemm", "Conv", "Gelu", "Add", OP_TYPE) and node.name not in reasons:
            whole = (ONNX_TYPE[precision], TensorProto.INT64, TensorProto.INT32)
            assert all(types[name] in whole for name in node.output if name not in outputs), node.name
    assert seen["LayerNormalization"] and seen["typed"] > 5
    # what the outside sees is float32 in every precision
    edges = (*typed.graph.input, *typed.graph.output)
    assert {v.type.tensor_type.elem_type for v in edges} <= {TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8}
    assert [v.name for v in edges] == [v.name for v in (*source.graph.input, *source.graph.output)]
    assert precision_of(typed) == precision and precision_of(source) == "fp32"
    names = [node.name for node in typed.graph.node]
    assert len(set(names)) == len(names)
    weights = {t.name: t for t in typed.graph.initializer}
    for name in ("mlp_head.1.weight", "backbone.project.weight"):
        assert name not in weights  # no float32 twin of a typed weight stays in the file


@halves
def test_typed_weights_are_rounded_once(tiny: Exported, precision: Half) -> None:
    typed, _ = to_precision(tiny.graphs["temporal"], precision)
    exact = {t.name: numpy_helper.to_array(t) for t in tiny.graphs["temporal"].graph.initializer}
    checked = 0
    for tensor in typed.graph.initializer:
        if tensor.data_type == ONNX_TYPE[precision]:
            source = exact[tensor.name.removesuffix(f".{precision}")]
            got = np.frombuffer(tensor.raw_data, NUMPY_TYPE[precision]).reshape(source.shape)
            assert np.array_equal(got.astype(np.float32), source.astype(NUMPY_TYPE[precision]).astype(np.float32))
            checked += 1
    assert checked > 10


@halves
def test_rounding_copy_survives_the_optimiser(tiny: Exported, precision: Half, tmp_path: Path) -> None:
    """Its casts are still there after ONNX Runtime's passes, and its numbers are not the float32 graph's."""
    typed, _ = to_precision(tiny.graphs["temporal"], precision)
    copy = rounding_copy(typed)
    floats = {t.data_type for t in copy.graph.initializer} & {TensorProto.FLOAT16, TensorProto.BFLOAT16}
    assert not floats
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    opened = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    casts = [{a.name: a.i for a in n.attribute}["to"] for n in optimised.node if n.op_type == "Cast"]
    rounds = casts.count(ONNX_TYPE[precision])
    products = sum(n.op_type in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm") for n in optimised.node)
    assert rounds >= products > 10
    inputs = graphs.temporal_inputs(128, 2, 50)
    exact = tiny.expected_logits(inputs[FEATURES], inputs[FRAME_INDEX], inputs[LENGTHS])
    error = oracle.error(graphs.run(opened, **inputs), exact)
    plain = oracle.error(graphs.run(tiny.sessions["temporal"], **inputs), exact)
    assert plain < 1e-5 < EPS[precision] / 8 < error < 60 * EPS[precision]


def test_rounding_copy_of_float32_is_the_same_graph(tiny: Exported) -> None:
    inputs = graphs.temporal_inputs(128, 2, 20)
    got = graphs.run(graphs.session(rounding_copy(tiny.graphs["temporal"])), **inputs)
    assert np.array_equal(got, graphs.run(tiny.sessions["temporal"], **inputs))


def _chain(up: float) -> onnx.ModelProto:
    """x → x·up → back: as harmless in float32 as it is impossible in fp16."""
    weights = {"up": np.eye(4, dtype=np.float32) * up, "down": np.eye(4, dtype=np.float32) / up}
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["high"], name="up/MatMul"),
        helper.make_node("Add", ["high", "high"], ["higher"], name="twice/Add"),
        helper.make_node("MatMul", ["higher", "down"], ["low"], name="down/MatMul"),
        helper.make_node("Identity", ["low"], ["y"], name="out/Identity"),
    ]
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


X = np.array([[1.0, 2.0, 3.0, 4.0], [50.0, 60.0, 70.0, 80.0]], np.float32)


def test_overflow_shows_in_the_copy_and_not_in_the_runtime() -> None:
    """The reason for the copy: ONNX Runtime's CPU kernels compute fp16 in float32."""
    typed, _ = to_precision(_chain(1000.0), "fp16")
    got = graphs.run(graphs.session(rounding_copy(typed)), x=X)
    assert np.allclose(got[0], 2 * X[0], rtol=1e-2) and not np.isfinite(got[1]).any()
    bfloat, _ = to_precision(_chain(1000.0), "bf16")
    assert np.allclose(graphs.run(graphs.session(rounding_copy(bfloat)), x=X), 2 * X, rtol=0.03)


def test_kept_nodes_stay_float32() -> None:
    names = ["up/MatMul", "twice/Add", "down/MatMul"]
    typed, kept = to_precision(_chain(1000.0), "fp16", names)
    assert {entry.node: entry.reason for entry in kept if entry.node in names} == dict.fromkeys(names, "asked for")
    assert np.allclose(graphs.run(graphs.session(rounding_copy(typed)), x=X), 2 * X, rtol=1e-3)
    with pytest.raises(ExportError, match="no node 'up/Matmul' in graph chain"):
        to_precision(_chain(1.0), "fp16", ["up/Matmul"])


def test_constants_beyond_the_type_stay_float32() -> None:
    typed, kept = to_precision(_chain(1e5), "fp16")
    assert any(entry.node == "up/MatMul" and "1e+05 is beyond fp16" in entry.reason for entry in kept)
    weight = next(t for t in typed.graph.initializer if t.name == "up")
    assert weight.data_type == TensorProto.FLOAT
    _, kept = to_precision(_chain(1e5), "bf16")
    assert not any("beyond" in entry.reason for entry in kept)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.5, 3.0, 1000.0, 65504.0, 1e-5, 6e-8])
def test_ulp(value: float) -> None:
    assert ulp(value, "fp16") == float(np.spacing(np.float16(abs(value)))) or value == 65504.0
    assert ulp(65504.0, "fp16") == 32
    assert ulp(1.0, "bf16") == 2**-7 and ulp(1.0, "fp32") == 2**-23
    assert ulp(300.0, "bf16") == 2


def test_round_to_and_range() -> None:
    assert max_of("fp16") == 65504 and max_of("bf16") == pytest.approx(3.39e38, rel=1e-2)
    got = round_to(np.array([1 / 3, 7e4, -1e6, 2049.0], np.float32), "fp16")
    assert got.dtype == np.float32 and np.array_equal(got, np.array([0.33325195, np.inf, -np.inf, 2048], np.float32))


@halves
def test_yardstick_rounds_and_leaves_the_model_alone(precision: Half) -> None:
    """PyTorch rounded likewise: an error of the type's size, larger for bf16, and no trace afterwards."""
    model = small.model(layers=2)
    rewritten = model.rewrite()
    features, index, lengths = small.inputs(128, 2, 60, ragged=True)
    exact = rewritten.classify(features, index, lengths)
    twin = rounded_copy(rewritten, precision)
    with rounding(twin, precision):
        rounded = twin.classify(features, index, lengths)
    assert EPS[precision] / 8 < oracle.error(rounded, exact) < 60 * EPS[precision]
    assert torch.equal(rewritten.classify(features, index, lengths), exact)
    # outside the block the twin is its rounded weights alone
    weights_only = twin.classify(features, index, lengths)
    assert not torch.equal(weights_only, rounded)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    own = dict(twin.named_parameters())
    kept = [name for name in own if "norm" in name.lower() or name.startswith(("mlp_head.0", "mlp_head.4"))]
    assert kept
    for name, p in rewritten.named_parameters():
        expected = p if name in kept else p.to(dtype).float()
        assert torch.equal(own[name], expected), name


def test_bf16_is_coarser_than_fp16() -> None:
    model = small.model(layers=2).rewrite()
    inputs = small.inputs(128, 2, 60)
    exact, errors = model.classify(*inputs), {}
    for precision in ("fp16", "bf16"):
        twin = rounded_copy(model, cast(Half, precision))
        with rounding(twin, cast(Half, precision)):
            errors[precision] = oracle.error(twin.classify(*inputs), exact)
    assert 2 < errors["bf16"] / errors["fp16"] < 40


def test_yardstick_does_not_overflow() -> None:
    """It says what rounding costs; if it went to infinity with the graph, it would excuse the graph."""
    model = small.model(layers=1, backbone="tests.nets:loud", options={"factor": 1e6})
    twin = rounded_copy(model.rewrite(), "fp16")
    frames = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with rounding(twin, "fp16"):
        rounded = twin.frame_features(frames)
    exact = model.frame_features(frames)
    assert torch.isfinite(rounded).all()
    assert 0 < oracle.error(rounded, exact) < 0.1
