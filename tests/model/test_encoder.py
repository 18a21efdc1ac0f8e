"""The plain encoder, its exact rewrite, Hugging Face's Longformer and a dense float64 mask: four ways, one answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests import oracle
from tests.model import small
from tests.tolerances import tolerance
from vtn_export.model.vtn import VTN

# around the window (9), its double (18), the block (32), the upstream chunk (36), and long
LENGTHS = (1, 2, 8, 9, 10, 17, 18, 19, 35, 36, 37, 250, 251, 1000)

VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "one_layer": {"layers": 1},
    "narrow": {"window": 1},
    "own_width_per_layer": {"window": [2, 40, 9]},
    "wider_than_block": {"window": 45, "layers": 2},
    "dilated": {"dilation": 3},
    "dilated_per_layer": {"dilation": [1, 2, 5]},
    "dilated_per_head": {"dilation": [[1, 1], [1, 2], [3, 2]]},
    "four_heads_mixed": {"heads": 4, "dilation": [[2, 1, 2, 1], [1, 1, 4, 4], [7, 1, 2, 3]], "window": 4},
    "globals_3": {"globals_": 3},
    "globals_beyond_window": {"globals_": 12, "window": 2},
    "globals_40": {"globals_": 40, "window": 5, "layers": 2},
    "no_globals": {"globals_": 0},
    "causal": {"causal": True},
    "causal_no_globals": {"causal": True, "globals_": 0},
    "all_at_once": {"causal": True, "globals_": 2, "dilation": [[1, 3], [2, 2], [1, 4]], "window": [3, 5, 2]},
    "few_positions": {"positions": 20},
}


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return oracle.error(a.double().numpy(), b.double().numpy())


def _masked(encoded: torch.Tensor, lengths: torch.Tensor, n: int) -> torch.Tensor:
    """Rows that count: padding rows hold whatever the layers make of zeros."""
    rows = torch.arange(encoded.shape[1])
    return torch.where((rows < lengths.view(-1, 1) + n)[..., None], encoded, 0.0)


@pytest.fixture(scope="module")
def published() -> VTN:
    """The published temporal encoder at full width."""
    return small.model(width=768, classes=400)


@pytest.fixture(scope="module")
def hugging_face(published: VTN) -> torch.nn.Module:
    return _hugging_face(published)


def _hugging_face(model: VTN) -> torch.nn.Module:
    """LongformerModel with the same weights; its window is two-sided."""
    from transformers import LongformerConfig, LongformerModel

    t = model.config.temporal
    peer = LongformerModel(
        LongformerConfig(
            vocab_size=4,
            pad_token_id=1,
            hidden_size=model.config.hidden_dim,
            num_hidden_layers=t.num_layers,
            num_attention_heads=t.num_heads,
            intermediate_size=t.intermediate_size,
            attention_window=[2 * w for w in t.one_sided_window],
            max_position_embeddings=t.max_position_embeddings,
            type_vocab_size=2,
            layer_norm_eps=t.layer_norm_eps,
            hidden_act="gelu",
        ),
        add_pooling_layer=False,
    ).eval()
    own = {
        key.removeprefix("temporal_encoder."): value
        for key, value in model.state_dict().items()
        if key.startswith("temporal_encoder.")
    }
    missing, unexpected = peer.load_state_dict(own, strict=False)
    assert not unexpected and set(missing) <= {"embeddings.word_embeddings.weight", "embeddings.position_ids"}
    return peer


def _run_hugging_face(peer: torch.nn.Module, model: VTN, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Masks, positions and token types as the published code sets them."""
    features, frame_index, lengths = inputs
    t = model.config.temporal
    n, rows = t.num_global_tokens, t.max_position_embeddings
    batch, frames, _ = features.shape
    positions = torch.cat([(rows - 2 - torch.arange(n)).expand(batch, n), frame_index % (rows - 2)], dim=1)
    token = torch.arange(n + frames)
    is_global = (token < n).long().expand(batch, -1)
    valid = (token < lengths.view(-1, 1) + n).long()
    tokens = torch.cat([model.cls_token.expand(batch, -1, -1), features], dim=1)
    output = peer(
        inputs_embeds=tokens,
        attention_mask=valid,
        global_attention_mask=is_global,
        position_ids=positions,
        token_type_ids=is_global.clone(),
    )
    return output.last_hidden_state[:, : n + frames]


@pytest.mark.parametrize("frames", LENGTHS)
def test_published_width(frames: int, published: VTN, hugging_face: torch.nn.Module) -> None:
    inputs = small.inputs(768, 1, frames)
    plain = published.encode(*inputs)
    rewritten = published.rewrite()
    assert _error(rewritten.encode(*inputs), plain) <= tolerance("plain_vs_rewrite")
    assert _error(rewritten.classify(*inputs), published.classify(*inputs)) <= tolerance("plain_vs_rewrite")
    assert _error(plain, _run_hugging_face(hugging_face, published, inputs)) <= tolerance("hugging_face")


@pytest.mark.parametrize("globals_", [1, 3])
def test_hugging_face_ragged_batch(globals_: int) -> None:
    model = small.model(globals_=globals_)
    inputs = small.inputs(128, 4, 61, ragged=True)
    got = _masked(model.encode(*inputs), inputs[2], globals_)
    expected = _masked(_run_hugging_face(_hugging_face(model), model, inputs), inputs[2], globals_)
    assert _error(got, expected) <= tolerance("hugging_face")


def test_attention_is_not_flat(published: VTN) -> None:
    """The weights of these tests make peaks: with flat attention a wrong mask could pass for rounding."""
    x = torch.nn.functional.layer_norm(small.inputs(768, 1, 200)[0], (768,))
    own = published.temporal_encoder.encoder["layer"][0].attention["self"]
    q, k = (own.get_submodule(name)(x).view(200, 12, 64) for name in ("query", "key"))
    scores = torch.einsum("ihd,jhd->hij", q, k) / 8
    assert scores.std() > 1


@pytest.mark.parametrize("frames", [1, 7, 90])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_against_dense_mask(variant: str, frames: int) -> None:
    model = small.model(**VARIANTS[variant])
    t = model.config.temporal
    features, index, lengths = small.inputs(128, 2 if frames == 90 else 3, frames, ragged=True)
    state = small.state(model)
    expected = oracle.encode(state, model.config, features.double().numpy(), index.numpy(), lengths.tolist())
    n = t.num_global_tokens
    rows = torch.arange(n + frames)
    valid = (rows < lengths.view(-1, 1) + n)[..., None]
    model = model.double()
    for form in (model, model.rewrite()):
        got = form.encode(features.double(), index, lengths)
        assert torch.isfinite(got).all()
        assert oracle.error(torch.where(valid, got, 0.0), np.where(valid, expected, 0.0)) <= tolerance("float64")
        logits = form.classify(features.double(), index, lengths)
        assert oracle.error(logits, oracle.head(state, expected[:, 0])) <= tolerance("float64")


@pytest.mark.parametrize("variant", VARIANTS)
def test_rewrite_in_float32(variant: str) -> None:
    model = small.model(**VARIANTS[variant])
    rewritten = model.rewrite()
    n = model.config.temporal.num_global_tokens
    for frames in (1, 3, 40, 130):
        inputs = small.inputs(128, 3, frames, ragged=True)
        got, expected = (_masked(form.encode(*inputs), inputs[2], n) for form in (rewritten, model))
        assert _error(got, expected) <= tolerance("plain_vs_rewrite")
        assert _error(rewritten.classify(*inputs), model.classify(*inputs)) <= tolerance("plain_vs_rewrite")


@pytest.mark.parametrize("form", ["plain", "rewrite"])
def test_autoregressive_without_globals(form: str) -> None:
    """Causal and n = 0: a later frame cannot change an earlier row, in any layer."""
    model = small.model(causal=True, globals_=0, dilation=[[1, 2], [3, 1], [1, 1]], window=[4, 9, 2])
    encode = model.encode if form == "plain" else model.rewrite().encode
    features, index, _ = small.inputs(128, 1, 60)
    before = encode(features, index)
    for changed in (1, 17, 59):
        other = features.clone()
        other[:, changed:] = torch.randn(1, 60 - changed, 128, generator=torch.Generator().manual_seed(changed))
        after = encode(other, index)
        assert torch.equal(after[:, :changed], before[:, :changed]) or _error(
            after[:, :changed], before[:, :changed]
        ) <= tolerance("plain_vs_rewrite")
        assert (after[:, changed] - before[:, changed]).abs().max() > 0.1


def test_band_looks_ahead_unless_causal() -> None:
    features, index, _ = small.inputs(128, 1, 30)
    other = features.clone()
    other[:, 20] = torch.linspace(-2, 2, 128)
    for causal, moves in ((False, True), (True, False)):
        model = small.model(causal=causal, globals_=0, layers=1, window=3)
        change = (model.encode(other, index) - model.encode(features, index)).abs().amax((0, 2))
        assert bool(change[17] > 1e-3) is moves and change[16] == 0 and change[23] > 1e-3 and change[24] == 0


@pytest.mark.parametrize("form", ["plain", "rewrite"])
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_padding_does_not_matter(form: str, junk: float) -> None:
    model = small.model(globals_=2, dilation=[[1, 2], [1, 1], [2, 1]])
    model = model if form == "plain" else model.rewrite()  # type: ignore[assignment]
    features, index, lengths = small.inputs(128, 3, 50, ragged=True)
    dirty, dirty_index = features.clone(), index.clone()
    for row, length in enumerate(lengths.tolist()):
        dirty[row, length:] = junk
        dirty_index[row, length:] = 123456
    clean, soiled = model.classify(features, index, lengths), model.classify(dirty, dirty_index, lengths)
    assert torch.equal(clean, soiled)
    for row, length in enumerate(lengths.tolist()):
        alone = model.classify(features[row : row + 1, :length], index[row : row + 1, :length])
        assert _error(alone[0], clean[row]) <= tolerance("plain_vs_rewrite")


def test_positions_are_indices_and_wrap() -> None:
    model = small.model(positions=30)
    features, index, _ = small.inputs(128, 1, 100)
    for form in (model, model.rewrite()):
        base = form.classify(features, index)
        assert torch.equal(form.classify(features, index + 28), base)  # 30 rows less CLS's and the padding's
        assert not torch.allclose(form.classify(features, index + 1), base, atol=1e-3)
        assert torch.equal(form.classify(features), form.classify(features, torch.arange(100)[None]))


def test_position_rows() -> None:
    """Frames: index modulo rows - 2; token 0: row rows - 2; further globals downwards; the padding row never."""
    rows = 12
    used: dict[int, set[int]] = {}
    for n in (0, 1, 3):
        model = small.model(globals_=n, positions=rows)
        table = model.temporal_encoder.embeddings.position_embeddings.weight
        base = model.encode(torch.zeros(1, 2, 128), torch.tensor([[0, 13]]))
        used[n] = set()
        for row in range(rows):
            saved = table[row].clone()
            table[row] += torch.randn(128, generator=torch.Generator().manual_seed(row))
            if not torch.equal(model.encode(torch.zeros(1, 2, 128), torch.tensor([[0, 13]])), base):
                used[n].add(row)
            table[row] = saved
    assert used == {0: {0, 3}, 1: {0, 3, 10}, 3: {0, 3, 10, 9, 8}}


def test_each_global_has_its_own_token_and_head_reads_the_first() -> None:
    model = small.model(globals_=3)
    features, index, _ = small.inputs(128, 1, 20)
    assert model.cls_token.shape == (1, 3, 128)
    encoded = model.encode(features, index)
    state = small.state(model)
    expected = oracle.head(state, encoded[:, 0].double().numpy())
    assert oracle.error(model.classify(features, index), expected) <= tolerance("plain_vs_rewrite")
    assert (encoded[:, 0] - encoded[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("frames", [23_040])
def test_long_videos(frames: int) -> None:
    """Longformer's longest: 23,040 frames, positions far beyond the table."""
    model = small.model(width=64, layers=2)
    rewritten = model.rewrite()
    features, index, lengths = small.inputs(64, 1, frames)
    assert int(index.max()) > 288 * 100
    a, b = model.classify(features, index, lengths), rewritten.classify(features, index, lengths)
    assert _error(b, a) <= tolerance("plain_vs_rewrite")
