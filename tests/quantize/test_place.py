"""Q/DQ by themselves: scales, numbers against float64, where they stand, and which layers get them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from vtn_export.errors import UsageError
from vtn_export.onnx.precision import precision_of, rounding_copy, to_precision
from vtn_export.quantize.layers import EXCLUDED, check_excluded, find_layers
from vtn_export.quantize.place import LARGEST, SWITCHES, place, scales
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import GraphSpec, QuantizedPrecision, TensorSpec

FORMATS: tuple[QuantizedPrecision, ...] = ("int8", "fp8")


def _graph(text: str, **weights: Any) -> onnx.ModelProto:
    """A float32 model from ONNX's text form; node names are given in order after `;` of each line."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    for node in model.graph.node:
        node.name = f"backbone.{node.output[0]}/{node.op_type}"
    for name, values in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
    return model


@given(st.floats(1e-9, 1e6), st.sampled_from(FORMATS))
def test_scales_clip_nothing_and_are_fp16(largest: float, precision: QuantizedPrecision) -> None:
    scale = float(scales(np.array(largest), precision))
    assert scale * LARGEST[precision] >= largest or not np.isfinite(np.float16(scale))
    assert float(np.float16(scale)) == scale
    assert scale <= max(largest / LARGEST[precision] * (1 + 2**-10), 2**-14)


def _fake(x: Any, scale: Any, precision: QuantizedPrecision) -> Any:
    """Quantized and back in float64, written apart from the product's own code."""
    steps = x.astype(np.float64) / scale
    if precision == "int8":
        return np.clip(np.round(steps), -128, 127) * scale
    return np.clip(steps, -448, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * scale


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize("rows", [1, 7, 33])
def test_products_have_float64s_numbers(precision: QuantizedPrecision, rows: int) -> None:
    rng = np.random.default_rng(rows)
    w, g = rng.standard_normal((40, 48)), rng.standard_normal((24, 48)) * np.logspace(-3, 1, 24)[:, None]
    c = rng.standard_normal((32, 24, 3, 3))
    model = _graph(
        """g (float[n, 40] x, float[m, 24, 5, 5] p) => (float[n, 24] y, float[m, 32, 3, 3] z) {
        a = MatMul(x, w)
        y = Gemm<transB = 1>(a, g)
        z = Conv(p, c)
        }""",
        w=w, g=g, c=c,
    )  # fmt: skip
    layers, kept = find_layers(model, precision)
    assert [layer.name for layer in layers] == ["backbone.a/MatMul", "backbone.y/Gemm", "backbone.z/Conv"] and not kept
    x = rng.standard_normal((rows, 40)).astype(np.float32)
    p = rng.standard_normal((rows, 24, 5, 5)).astype(np.float32)
    ranges = {("backbone.a/MatMul", 0): 2.0, ("backbone.y/Gemm", 0): 40.0, ("backbone.z/Conv", 0): 9.0}
    placed = place(model, layers, ranges, precision)
    onnx.checker.check_model(placed, full_check=True)
    assert precision_of(placed) == precision
    spec = GraphSpec(
        (TensorSpec("x", "float32", ("n", 40)), TensorSpec("p", "float32", ("m", 24, 5, 5))),
        (TensorSpec("y", "float32", ("n", 24)), TensorSpec("z", "float32", ("m", 32, 3, 3))),
    )
    with OrtSession(placed.SerializeToString(), spec) as session:
        got = session.run({"x": x, "p": p})

    def side(values: Any, place: str) -> Any:
        return _fake(values, float(scales(np.array(ranges[place, 0]), precision)), precision)

    def weight(values: Any, axis: int) -> Any:
        others = tuple(i for i in range(values.ndim) if i != axis)
        step = np.expand_dims(scales(np.abs(values.astype(np.float32)).max(others), precision, 2.0**-20), others)
        return _fake(values.astype(np.float32), step, precision)

    a = side(x, "backbone.a/MatMul") @ weight(w, 1)
    y = side(a, "backbone.y/Gemm") @ weight(g, 0).T
    # a value that lies between two steps may fall either way in float32
    step = float(scales(np.array(40.0), precision)) * (1 if precision == "int8" else 32)
    assert np.abs(got["y"] - y).max() <= step * np.abs(g).max() + 1e-4
    assert np.abs(got["y"] - y).mean() <= 2e-3 * np.abs(y).max()
    windows = np.lib.stride_tricks.sliding_window_view(side(p, "backbone.z/Conv"), (3, 3), axis=(2, 3))
    z = np.einsum("bchwij,ocij->bohw", windows, weight(c, 0))
    assert np.abs(got["z"] - z).max() <= 1e-4 * np.abs(z).max()


def test_saturates_and_keeps_the_residual_exact() -> None:
    w = np.eye(32)
    model = _graph("g (float[n, 32] x) => (float[n, 32] y) {\na = MatMul(x, w)\ny = Add(a, x)\n}", w=w)
    layers, _ = find_layers(model, "int8")
    placed = place(model, layers, {("backbone.a/MatMul", 0): 1.0}, "int8")
    add = placed.graph.node[-1]
    assert add.op_type == "Add" and "x" in add.input  # not what was quantized for the product
    spec = GraphSpec((TensorSpec("x", "float32", ("n", 32)),), (TensorSpec("y", "float32", ("n", 32)),))
    x = np.full((1, 32), 5.0, np.float32)
    with OrtSession(placed.SerializeToString(), spec) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], 6.0, atol=2e-3)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_relu_before_quantized_inputs_stays(precision: QuantizedPrecision) -> None:
    """ONNX Runtime has a rewrite that drops it, for int8 where zero is the lowest step, for float8 always."""
    model = _graph(
        "g (float[n, 32, 4, 4] x) => (float[n, 32, 2, 2] y) {\nr = Relu(x)\ny = Conv(r, c)\n}",
        c=np.random.default_rng(0).standard_normal((32, 32, 3, 3)),
    )
    layers, _ = find_layers(model, precision)
    placed = place(model, layers, {("backbone.y/Conv", 0): 4.0}, precision)
    spec = GraphSpec((TensorSpec("x", "float32", ("n", 32, 4, 4)),), (TensorSpec("y", "float32", ("n", 32, 2, 2)),))
    x = np.random.default_rng(1).standard_normal((3, 32, 4, 4)).astype(np.float32)
    with OrtSession(placed.SerializeToString(), spec) as session:
        got, same, nothing = (session.run({"x": part})["y"] for part in (x, np.maximum(x, 0), np.minimum(x, 0)))
    np.testing.assert_allclose(got, same, atol=1e-5)
    assert np.abs(got).max() > 1 and not nothing.any()


ATTENTION = """g (float[b, s, 32] q, float[b, s, 32] k, float[b, s, 32] v) => (float[b, s, 32] y) {
    t = Transpose<perm = [0, 2, 1]>(k)
    scores = MatMul(q, t)
    scaled = Mul(scores, factor)
    p = Softmax(scaled)
    context = MatMul(p, v)
    y = MatMul(context, w)
}"""


def test_attention_is_quantized_in_fp8_alone() -> None:
    model = _graph(ATTENTION, factor=0.2, w=np.eye(32))
    int8, kept = find_layers(model, "int8")
    assert [layer.op for layer in int8] == ["MatMul"] and len(kept) == 2
    fp8, kept = find_layers(model, "fp8")
    assert [layer.op for layer in fp8] == ["attention", "MatMul"] and not kept
    assert fp8[0].activations == (
        ("backbone.scores/MatMul", 0),
        ("backbone.scores/MatMul", 1),
        ("backbone.context/MatMul", 0),
        ("backbone.context/MatMul", 1),
    )
    ranges = {place: 3.0 for layer in fp8 for place in layer.activations}
    placed = place(model, fp8, ranges, "fp8")
    feeds = {node.output[0]: node.op_type for node in placed.graph.node}
    for node in placed.graph.node:
        if node.op_type == "MatMul":
            assert [feeds[name] for name in node.input] == ["DequantizeLinear"] * 2


@pytest.mark.parametrize(
    ("precision", "shape", "group", "quantized"),
    [
        ("int8", (64, 3, 7, 7), 1, True),
        ("int8", (64, 1, 3, 3), 64, True),  # depthwise
        ("int8", (12, 3, 3, 3), 1, False),
        ("fp8", (64, 3, 7, 7), 1, False),
        ("fp8", (64, 1, 3, 3), 64, False),
        ("fp8", (64, 32, 3, 3), 1, True),
        ("fp8", (64, 32, 7, 7), 1, False),
    ],
)
def test_convolutions_without_a_kernel_stay(
    precision: QuantizedPrecision, shape: tuple[int, ...], group: int, quantized: bool
) -> None:
    channels = shape[1] * group
    model = _graph(
        f"g (float[n, {channels}, 9, 9] x) => (float[n, {shape[0]}, a, b] y) {{\ny = Conv<group = {group}>(x, w)\n}}",
        w=np.ones(shape),
    )
    layers, kept = find_layers(model, precision)
    assert bool(layers) is quantized and bool(kept) is not quantized


def test_excluded_by_module_or_pattern() -> None:
    model = _graph(ATTENTION, factor=0.2, w=np.eye(32))
    for pattern in ("backbone.y", "backbone.y/MatMul", "*y/MatMul"):
        layers, kept = find_layers(model, "fp8", [pattern])
        assert [layer.op for layer in layers] == ["attention"]
        assert [(one.node, one.reason) for one in kept] == [("backbone.y/MatMul", EXCLUDED)]
        check_excluded([model], [pattern])
    with pytest.raises(UsageError, match="no matrix product or convolution is named 'head'"):
        check_excluded([model], ["head"])


def test_typed_q_and_dq_have_the_type_around_them() -> None:
    """fp16 scales where values are fp16; the rounding copy of it runs and rounds."""
    rng = np.random.default_rng(0)
    model = _graph(
        "g (float[n, 32] x) => (float[n, 32] z) {\na = Mul(x, f)\ny = MatMul(a, w)\nz = Identity(y)\n}",
        f=1.0, w=rng.standard_normal((32, 32)),
    )  # fmt: skip
    layers, _ = find_layers(model, "int8")
    placed = place(model, layers, {(layers[0].name, 0): 3.0}, "int8")
    for keep, wanted in (((), onnx.TensorProto.FLOAT16), (("backbone.a/Mul",), onnx.TensorProto.FLOAT)):
        typed, _ = to_precision(placed, "fp16", keep)
        onnx.checker.check_model(typed, full_check=True)
        types = {tensor.name: tensor.data_type for tensor in typed.graph.initializer}
        (q,) = [node for node in typed.graph.node if node.op_type == "QuantizeLinear"]
        assert types[q.input[1]] == wanted
        spec = GraphSpec((TensorSpec("x", "float32", ("n", 32)),), (TensorSpec("z", "float32", ("n", 32)),))
        x = rng.standard_normal((3, 32)).astype(np.float32)
        with OrtSession(rounding_copy(typed).SerializeToString(), spec) as session:
            got = session.run({"x": x})["z"]
        assert np.array_equal(got, got.astype(np.float16))
        assert np.abs(got - x @ numpy_helper.to_array(model.graph.initializer[1])).max() < 0.5


def test_switched_layers_are_plain_or_quantized() -> None:
    rng = np.random.default_rng(2)
    model = _graph(
        "g (float[n, 32] x) => (float[n, 32] y) {\na = MatMul(x, w)\ny = MatMul(a, v)\n}",
        w=rng.standard_normal((32, 32)), v=rng.standard_normal((32, 32)),
    )  # fmt: skip
    layers, _ = find_layers(model, "int8")
    ranges = {(layer.name, 0): 20.0 for layer in layers}
    spec = GraphSpec((TensorSpec("x", "float32", ("n", 32)),), (TensorSpec("y", "float32", ("n", 32)),))
    wide = GraphSpec((*spec.inputs, TensorSpec(SWITCHES, "bool", (2,))), spec.outputs)
    index = {layer.name: number for number, layer in enumerate(layers)}
    x = rng.standard_normal((5, 32)).astype(np.float32)
    with OrtSession(place(model, layers, ranges, "int8", switched=index).SerializeToString(), wide) as session:
        for flags in ([False, False], [True, False], [False, True], [True, True]):
            chosen = [layer for layer, flag in zip(layers, flags, strict=True) if flag]
            with OrtSession(place(model, chosen, ranges, "int8").SerializeToString(), spec) as own:
                expected = own.run({"x": x})["y"]
            got = session.run({"x": x, SWITCHES: np.array(flags)})["y"]
            np.testing.assert_allclose(got, expected, atol=1e-4)
