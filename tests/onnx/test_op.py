"""`vtn::SlidingWindowAttention`: the function body in ONNX Runtime and the PyTorch op, against docs/op.md."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise, product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch.utils._python_dispatch import TorchDispatchMode

from tests import oracle
from tests.tolerances import tolerance
from vtn_export.model import attention
from vtn_export.onnx import op
from vtn_export.onnx.memory import activation_bytes
from vtn_export.spec import GraphSpec, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def _model(precision: str, **attributes: Any) -> onnx.ModelProto:
    """One node, its body attached; float32 at the graph's edge, the precision inside."""
    kind = TYPES[precision]
    nodes = [
        helper.make_node("Cast", ["qkv"], ["typed"], to=kind),
        helper.make_node(op.OP_TYPE, ["typed", "lengths"], ["typed_output"], domain=op.OP_DOMAIN, **attributes),
        helper.make_node("Cast", ["typed_output"], ["output"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "op",
        [
            helper.make_tensor_value_info("qkv", TensorProto.FLOAT, ["batch", "tokens", "width"]),
            helper.make_tensor_value_info("lengths", TensorProto.INT32, ["batch"]),
        ],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "tokens", None])],
    )
    imports = [helper.make_opsetid("", op.OPSET), helper.make_opsetid(op.OP_DOMAIN, op.OP_VERSION)]
    return op.attach_function(helper.make_model(graph, opset_imports=imports, ir_version=op.IR_VERSION))


@lru_cache(maxsize=8)
def _session(precision: str, attributes: tuple[tuple[str, Any], ...]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    model = _model(precision, **dict(attributes))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _attributes(**changes: Any) -> dict[str, Any]:
    base = {"num_heads": 2, "one_sided_window": 9, "dilation": 1, "num_global_tokens": 1, "causal": 0, "scale": 0.25}
    return {**base, **changes}


def _qkv(batch: int, tokens: int, heads: int, dim: int, seed: int = 0, size: float = 1.5) -> Array:
    generator = np.random.default_rng(seed + 7919 * tokens)
    return (generator.standard_normal((batch, tokens, 3 * heads * dim)) * size).astype(np.float32)


def _run_onnx(qkv: Array, lengths: list[int], attributes: dict[str, Any], precision: str = "fp32") -> Array:
    session = _session(precision, tuple(sorted(attributes.items())))
    (output,) = session.run(None, {"qkv": qkv, "lengths": np.array(lengths, np.int32)})
    return output  # type: ignore[no-any-return]


def _run_torch(qkv: Array, lengths: list[int], attributes: dict[str, Any], dtype: torch.dtype = torch.float32) -> Array:
    own = {**attributes, "causal": bool(attributes["causal"])}
    values = attention.sliding_window_attention(
        torch.from_numpy(qkv).to(dtype), torch.tensor(lengths, dtype=torch.int32), **own
    )
    assert values.dtype == dtype
    return values.double().numpy()


def _expected(qkv: Array, lengths: list[int], attributes: dict[str, Any]) -> Array:
    return oracle.op(qkv, lengths, **{**attributes, "causal": bool(attributes["causal"])})


def _check(qkv: Array, lengths: list[int], attributes: dict[str, Any]) -> None:
    expected = _expected(qkv, lengths, attributes)
    for run in (_run_onnx, _run_torch):
        got = run(qkv, lengths, attributes)
        assert oracle.error(got, expected) <= tolerance("op_fp32"), run.__name__
        for row, length in zip(got, lengths, strict=True):
            assert not row[max(min(length, len(row)), 0) :].any(), "rows beyond the length are zero"


GRID = [
    _attributes(one_sided_window=w, dilation=d, num_global_tokens=n, causal=causal)
    for w, d, n, causal in product((1, 9, 33), (1, 2, 5), (0, 1, 4), (0, 1))
]


@pytest.mark.parametrize("attributes", GRID, ids=lambda a: "w{1}-d{2}-n{3}-causal{4}".format(*a.values()))
def test_grid(attributes: dict[str, Any]) -> None:
    for tokens in (1, 2, 5, 19, 32, 33, 65, 100):
        lengths = [tokens, max(tokens - 3, 0), 0]
        _check(_qkv(3, tokens, 2, 8), lengths, attributes)


@pytest.mark.parametrize("tokens", [251, 1000])
def test_long(tokens: int) -> None:
    attributes = _attributes(scale=0.125)
    _check(_qkv(2, tokens, 2, 64, size=1.0), [tokens, tokens // 2 + 1], attributes)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int], list[int], dict[str, Any]]:
    heads, dim = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 8, 16]))
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 90))
    attributes = {
        "num_heads": heads,
        "one_sided_window": draw(st.integers(1, 50)),
        "dilation": draw(st.integers(1, 40)),
        "num_global_tokens": draw(st.integers(0, 6)),
        "causal": draw(st.integers(0, 1)),
        "scale": draw(st.sampled_from([dim**-0.5, 1.0, 0.0, -0.5])),
    }
    lengths = draw(st.lists(st.integers(-2, tokens + 3), min_size=batch, max_size=batch))
    return (tokens, heads, dim), lengths, attributes


@settings(max_examples=80)
@given(cases())
@example(((3, 1, 8), [3, 2], _attributes(num_heads=1, num_global_tokens=6)))  # more globals than tokens
@example(((5, 2, 8), [5], _attributes(dilation=30)))  # a gap wider than the sequence
@example(((40, 2, 8), [40, 7], _attributes(one_sided_window=1000, causal=1)))
def test_any_attributes(case: tuple[tuple[int, int, int], list[int], dict[str, Any]]) -> None:
    (tokens, heads, dim), lengths, attributes = case
    _check(_qkv(len(lengths), tokens, heads, dim), lengths, attributes)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("tokens", [1, 19, 33, 251])
def test_typed(precision: str, tokens: int) -> None:
    """Scores, softmax and sums in float32 whatever the type: one rounding at the end."""
    attributes = _attributes(scale=0.125, num_global_tokens=2)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    qkv = torch.from_numpy(_qkv(2, tokens, 2, 64, size=1.0)).to(dtype).float().numpy()
    lengths = [tokens, (tokens + 1) // 2]
    expected = _expected(qkv, lengths, attributes)
    assert oracle.error(_run_torch(qkv, lengths, attributes, dtype), expected) <= tolerance(f"op_{precision}")
    assert oracle.error(_run_onnx(qkv, lengths, attributes, precision), expected) <= tolerance(f"op_{precision}")


def test_fp16_scores_beyond_its_range() -> None:
    """q·k up to 4e6 in an fp16 graph: infinite if scores were fp16, a plain arg max in float32."""
    qkv = _qkv(1, 40, 2, 64, size=250.0).astype(np.float16).astype(np.float32)
    attributes = _attributes(scale=1.0)
    expected = _expected(qkv, [40], attributes)
    for got in (_run_onnx(qkv, [40], attributes, "fp16"), _run_torch(qkv, [40], attributes, torch.float16)):
        assert oracle.error(got, expected) <= tolerance("op_fp16")


def test_length_zero_gives_zeros_not_nan() -> None:
    for run in (_run_onnx, _run_torch):
        assert not run(_qkv(2, 37, 2, 8, size=1e4), [0, -1], _attributes()).any()


def test_function_is_standard_ops_only_and_reads_every_attribute() -> None:
    body = op.function_proto()
    assert {node.domain for node in body.node} == {""}
    assert list(body.input) == ["qkv", "lengths"] and list(body.output) == ["output"]
    used = {a.ref_attr_name for node in body.node for a in node.attribute if a.ref_attr_name}
    declared = {"num_heads", "one_sided_window", "dilation", "num_global_tokens", "causal", "scale"}
    assert set(body.attribute) == used == declared
    onnx.checker.check_model(_model("fp32", **_attributes()), full_check=True)


def test_two_sides_agree_on_names() -> None:
    assert (op.OP_DOMAIN, op.OP_TYPE) == (attention.OP_DOMAIN, attention.OP_TYPE)


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not any(r.alias_info for r in func._schema.returns):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize("dilation", [1, 4])
def test_torch_memory_is_linear(dilation: int) -> None:
    sizes = []
    for tokens in (1024, 2048, 4096):
        with _Largest() as seen:
            _run_torch(_qkv(1, tokens, 2, 16), [tokens], _attributes(dilation=dilation))
        sizes.append(seen.largest)
        assert seen.largest < tokens * tokens / 2
    assert sizes[1] == 2 * sizes[0] and sizes[2] == 2 * sizes[1]


@pytest.mark.parametrize("dilation", [1, 4])
def test_onnx_memory_is_linear(dilation: int) -> None:
    """Live tensors as ONNX Runtime's own profile counts them."""
    attributes = _attributes(dilation=dilation)
    spec = GraphSpec(
        (TensorSpec("qkv", "float32", ("batch", "tokens", 96)), TensorSpec("lengths", "int32", ("batch",))),
        (TensorSpec("output", "float32", ("batch", "tokens", 32)),),
    )
    model = _model("fp32", **attributes).SerializeToString()
    runs = [{"qkv": _qkv(1, n, 2, 16), "lengths": np.array([n], np.int32)} for n in (1024, 2048, 4096)]
    live = activation_bytes(model, spec, *runs)
    assert live[2] < 4096 * 4096 * 4
    for small, large in pairwise(live):
        assert large == pytest.approx(2 * small, rel=0.01)
