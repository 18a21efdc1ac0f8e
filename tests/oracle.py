"""The encoder written down a second time, with an S×S mask, in float64 numpy: slow, dense, independent.

From docs/op.md and the published model alone; nothing here calls the package.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Array = np.ndarray[Any, np.dtype[Any]]


def error(got: Any, expected: Any) -> float:
    """`max|a - b| / max(1, max|b|)`; NaN if either side has one."""
    a, b = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    assert b.size and np.isfinite(b).all(), "a reference with no number in it proves nothing"
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))))


def columns(i: int, length: int, *, w: int, d: int, n: int, causal: bool) -> set[int]:
    """C(i) of docs/op.md."""
    band = {i + k * d for k in range(-w, (0 if causal else w) + 1)}
    return set(range(min(n, length))) | {j for j in band if n <= j < length}


def op(
    qkv: Array,
    lengths: Sequence[int],
    *,
    num_heads: int,
    one_sided_window: int,
    dilation: int | Sequence[int],
    num_global_tokens: int,
    causal: bool,
    scale: float,
) -> Array:
    """`vtn::SlidingWindowAttention`. qkv `[B, S, 3·H·D]`; dilation may differ by head. Returns float64."""
    batch, tokens, width = qkv.shape
    dim = width // 3 // num_heads
    gaps = [dilation] * num_heads if isinstance(dilation, int) else list(dilation)
    x = qkv.astype(np.float64).reshape(batch, tokens, 3, num_heads, dim)
    out = np.zeros((batch, tokens, num_heads, dim))
    for b in range(batch):
        length = min(max(int(lengths[b]), 0), tokens)
        if not length:
            continue
        for d in set(gaps):
            mask = np.zeros((length, length), dtype=bool)
            for i in range(length):
                allowed = columns(i, length, w=one_sided_window, d=d, n=num_global_tokens, causal=causal)
                mask[i, list(allowed)] = True
            for h in (head for head, gap in enumerate(gaps) if gap == d):
                q, k, v = (x[b, :length, part, h] for part in range(3))
                out[b, :length, h] = _softmax(np.where(mask, scale * q @ k.T, -np.inf)) @ v
    return out.reshape(batch, tokens, num_heads * dim)


def encode(
    state: Mapping[str, Array],
    config: Any,
    features: Array,
    frame_index: Array,
    lengths: Sequence[int],
) -> Array:
    """The whole temporal encoder on float64 weights by checkpoint name. Returns `[B, n + T, E]`."""
    t = config.temporal
    n, rows, heads = t.num_global_tokens, t.max_position_embeddings, t.num_heads
    batch, frames, width = features.shape
    dim = width // heads
    tokens = np.concatenate([np.broadcast_to(state["cls_token"], (batch, n, width)), features], 1)
    root = "temporal_encoder.embeddings."
    positions = np.zeros((batch, n + frames), dtype=np.int64)
    positions[:, :n] = [rows - 2 - g for g in range(n)]
    positions[:, n:] = frame_index % (rows - 2)
    kinds = np.zeros((n + frames), dtype=np.int64)
    kinds[:n] = 1
    x = (
        tokens
        + state[root + "position_embeddings.weight"][positions]
        + state[root + "token_type_embeddings.weight"][kinds]
    )
    x = _norm(x, state, root + "LayerNorm", t.layer_norm_eps)
    valid = [int(length) + n for length in lengths]
    for layer in range(t.num_layers):
        root = f"temporal_encoder.encoder.layer.{layer}."
        own = root + "attention.self."
        qkv = np.concatenate([_linear(x, state, own + name) for name in ("query", "key", "value")], -1)
        attended = op(
            qkv,
            valid,
            num_heads=heads,
            one_sided_window=t.one_sided_window[layer],
            dilation=t.dilation[layer],
            num_global_tokens=n,
            causal=t.causal,
            scale=dim**-0.5,
        )
        q, k, v = (
            _linear(x, state, own + f"{name}_global").reshape(batch, -1, heads, dim)
            for name in ("query", "key", "value")
        )
        for b in range(batch):
            for h in range(heads):
                scores = q[b, :n, h] @ k[b, : valid[b], h].T / np.sqrt(dim)
                attended[b, :n, h * dim : (h + 1) * dim] = _softmax(scores) @ v[b, : valid[b], h] if n else 0
        x = _norm(
            _linear(attended, state, root + "attention.output.dense") + x,
            state,
            root + "attention.output.LayerNorm",
            t.layer_norm_eps,
        )
        inner = _gelu(_linear(x, state, root + "intermediate.dense"))
        x = _norm(_linear(inner, state, root + "output.dense") + x, state, root + "output.LayerNorm", t.layer_norm_eps)
    return x


def head(state: Mapping[str, Array], row: Array) -> Array:
    """The MLP head on `[B, E]` of token 0. Returns `[B, classes]`."""
    x = _norm(row, state, "mlp_head.0", 1e-5)
    return _linear(_gelu(_linear(x, state, "mlp_head.1")), state, "mlp_head.4")


def _softmax(scores: Array) -> Array:
    if not scores.size:
        return scores
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _linear(x: Array, state: Mapping[str, Array], name: str) -> Array:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(x: Array, state: Mapping[str, Array], name: str, eps: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def _gelu(x: Array) -> Array:
    return x * 0.5 * (1 + torch.erf(torch.from_numpy(x / np.sqrt(2))).numpy())  # numpy has no erf
