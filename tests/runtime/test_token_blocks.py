"""Long videos in blocks of tokens: the same numbers as the whole graph, at any length and form of the encoder."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.model.small import inputs, model
from vtn_export.onnx.export import export_temporal, spec_of
from vtn_export.runtime import session as sessions
from vtn_export.runtime.session import OrtSession
from vtn_export.runtime.token_blocks import cut_tokens
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS, Array, GraphSpec

FORMS: dict[str, dict[str, Any]] = {
    "published": {},
    "dilated heads": {"heads": 2, "dilation": [[1, 2], 1, [2, 3]]},
    "no globals": {"globals_": 0},
    "three globals": {"globals_": 3},
    "causal": {"causal": True},
    "one layer": {"layers": 1},
}


@cache
def exported(form: str) -> tuple[bytes, GraphSpec]:
    rewritten = model(**FORMS[form]).rewrite()
    return export_temporal(rewritten).SerializeToString(), spec_of(rewritten, "temporal", "uint8")


def graph_of(form: str) -> tuple[onnx.ModelProto, GraphSpec]:
    data, spec = exported(form)
    return onnx.load_from_string(data), spec


def feed(batch: int, frames: int) -> dict[str, Array]:
    features, index, lengths = inputs(128, batch, frames, ragged=True)
    return {
        FEATURES: features.numpy(),
        FRAME_INDEX: index.numpy().astype(np.int32),
        LENGTHS: lengths.numpy().astype(np.int32),
    }


def loops(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if node.op_type == "Loop"]


@pytest.mark.parametrize("form", FORMS)
def test_blocks_give_the_numbers_of_the_whole(form: str) -> None:
    graph, spec = graph_of(form)
    with OrtSession(graph.SerializeToString(), spec) as whole:
        cut_tokens(graph, block=16)
        onnx.checker.check_model(graph)
        with OrtSession(graph.SerializeToString(), spec) as blocks:
            for batch, frames in [(1, 1), (1, 2), (1, 15), (2, 16), (3, 17), (1, 31), (2, 33), (1, 251)]:
                inputs_ = feed(batch, frames)
                expected, got = whole.run(inputs_)[LOGITS], blocks.run(inputs_)[LOGITS]
                np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * max(1, np.abs(expected).max()))


def test_every_large_product_on_all_tokens_is_in_a_block() -> None:
    graph, _ = graph_of("published")
    cut_tokens(graph)
    assert len(loops(graph)) == 3  # to the first attention, from the first to the second, and behind it
    inside = {n.name for loop in loops(graph) for n in loop.attribute[0].g.node if n.op_type == "MatMul"}
    weights = {tensor.name: tensor.dims for tensor in graph.graph.initializer}
    outside = {
        node.name
        for node in graph.graph.node
        if node.op_type == "MatMul" and len(weights.get(node.input[1], [])) == 2 and ".layer.2." not in node.name
    }
    first, second = (
        {f"temporal_encoder.layer.{layer}.{name}/MatMul" for name in ("attention_output", "intermediate", "output")}
        | {f"temporal_encoder.layer.{layer}.attention.qkv.0/MatMul"}
        for layer in (0, 1)
    )
    assert inside == first | second
    assert all(name.endswith(("attention/MatMul", "temporal/MatMul")) for name in outside), outside  # a global's query


def test_what_no_attention_follows_stays() -> None:
    graph, _ = graph_of("one layer")
    cut_tokens(graph)
    assert loops(graph) == []


@pytest.mark.parametrize("as_file", [False, True])
def test_a_session_takes_blocks_for_long_videos_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_file: bool
) -> None:
    monkeypatch.setattr(sessions, "LONG", 40)
    graph, spec = graph_of("published")
    path = tmp_path / "temporal.onnx"
    onnx.save(graph, path)
    with OrtSession(path if as_file else path.read_bytes(), spec) as session:
        short = session.run(feed(1, 39))[LOGITS]
        assert session._blocks is None
        long = session.run(feed(2, 40))[LOGITS]
        assert session._blocks is not None
        np.testing.assert_array_equal(session.run(feed(1, 39))[LOGITS], short)
    monkeypatch.setattr(sessions, "LONG", 1000)
    with OrtSession(path, spec) as session:
        np.testing.assert_allclose(session.run(feed(2, 40))[LOGITS], long, rtol=0, atol=2e-6)
