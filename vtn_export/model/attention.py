"""Sliding-window attention in PyTorch: the plain form, and the op that the exported graphs call.

Longformer (arXiv 2004.05150), section 3.1. The op's contract is docs/op.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from vtn_export.spec import OP_DOMAIN, OP_TYPE

MIN_BLOCK = 32  # queries a block; the same constant as in the ONNX function body

_exporting: ContextVar[bool] = ContextVar("exporting", default=False)
# set by vtn_export.model.rounding: sees the op as one node, as the exported graph has it
op_observer: ContextVar[Callable[[Callable[[], Tensor]], Tensor] | None] = ContextVar("op_observer", default=None)


@contextmanager
def exporting() -> Iterator[None]:
    """While active, `sliding_window_attention` leaves one `vtn::SlidingWindowAttention` node in the graph."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def softmax_dtype(x: Tensor) -> torch.dtype:
    """Scores and softmax are computed in float32 at least (float64 stays float64)."""
    return torch.promote_types(x.dtype, torch.float32)


def plain_sliding_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    *,
    one_sided_window: int,
    dilation: Sequence[int],
    num_global_tokens: int,
    causal: bool,
) -> Tensor:
    """The local rows as published, key by key: nothing blocked, nothing fused.

    q, k, v: `[B, S, H, D]`; lengths: `[B]` valid tokens; dilation: one gap a head.
    Returns `[B, S, H, D]`; rows at or beyond the length are zero. One step a key offset, so time and
    memory are linear in S.
    """
    batch, tokens, _, dim = q.shape
    dtype = softmax_dtype(q)
    n = min(num_global_tokens, tokens)
    rows = torch.arange(tokens, device=q.device)
    gaps = torch.tensor(list(dilation), device=q.device)
    offsets = range(-one_sided_window, 1 if causal else one_sided_window + 1)
    scaled = q / math.sqrt(dim)
    limit = lengths.view(batch, 1, 1)

    def columns(offset: int) -> tuple[Tensor, Tensor]:
        """Index of the key that each row and head sees at this offset, and whether it counts: `[S, H]`, `[B, S, H]`."""
        index = rows[:, None] + offset * gaps
        valid = (index >= num_global_tokens) & (index < limit)
        return index.clamp(0, tokens - 1), valid

    def pick(x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index[None, :, :, None].expand(batch, -1, -1, dim))

    minus_inf = torch.tensor(-torch.inf, dtype=dtype, device=q.device)
    global_scores = torch.einsum("bshd,bnhd->bshn", scaled, k[:, :n]).to(dtype)
    global_valid = rows[:n] < lengths.view(batch, 1)
    scores = [torch.where(global_valid[:, None, None, :], global_scores, minus_inf)]
    for offset in offsets:
        index, valid = columns(offset)
        score = (scaled * pick(k, index)).sum(-1).to(dtype)
        scores.append(torch.where(valid, score, minus_inf)[..., None])
    all_scores = torch.cat(scores, dim=-1)
    row_valid = (rows < lengths.view(batch, 1))[:, :, None, None]
    probabilities = torch.where(row_valid, all_scores, torch.zeros_like(all_scores)).softmax(-1).to(q.dtype)

    output = torch.einsum("bshn,bnhd->bshd", probabilities[..., :n], v[:, :n])
    for step, offset in enumerate(offsets):
        index, _ = columns(offset)
        output = output + probabilities[..., n + step, None] * pick(v, index)
    return torch.where(row_valid, output, torch.zeros_like(output))


def sliding_window_attention(
    qkv: Tensor,
    lengths: Tensor,
    *,
    num_heads: int,
    one_sided_window: int,
    dilation: int = 1,
    num_global_tokens: int = 1,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The op `vtn::SlidingWindowAttention`, version 1 (docs/op.md).

    qkv: `[B, S, 3·H·D]`; lengths: `[B]` int32 valid tokens. Returns `[B, S, H·D]` in qkv's dtype.
    Computed in blocks of queries against the keys they can see, in float32 at least.
    """
    width = qkv.shape[-1] // 3
    head_dim = width // num_heads
    scale = head_dim**-0.5 if scale is None else scale
    if _exporting.get():
        return torch.onnx.ops.symbolic(
            f"{OP_DOMAIN}::{OP_TYPE}",
            (qkv, lengths),
            attrs={
                "num_heads": num_heads,
                "one_sided_window": one_sided_window,
                "dilation": dilation,
                "num_global_tokens": num_global_tokens,
                "causal": int(causal),
                "scale": float(scale),
            },
            dtype=qkv.dtype,
            shape=(*qkv.shape[:-1], width),
            version=1,
        )
    arguments = (num_heads, one_sided_window, dilation, num_global_tokens, causal, scale)
    observer = op_observer.get()
    if observer is not None:
        return observer(lambda: _blocked(qkv, lengths, *arguments))
    return _blocked(qkv, lengths, *arguments)


def _blocked(
    qkv: Tensor,
    lengths: Tensor,
    num_heads: int,
    one_sided_window: int,
    dilation: int,
    num_global_tokens: int,
    causal: bool,
    scale: float,
) -> Tensor:
    batch, tokens = qkv.shape[:2]
    width = qkv.shape[-1] // 3
    head_dim = width // num_heads
    dtype, device = softmax_dtype(qkv), qkv.device
    w, d, n = one_sided_window, dilation, num_global_tokens
    block = max(MIN_BLOCK, w)
    # Tokens of one residue modulo d form a sequence of their own in which the band has no gaps.
    longest = (tokens + d - 1) // d
    blocks = (longest + block - 1) // block
    start = torch.arange(d * blocks, device=device)
    residue, first = start // blocks, (start % blocks) * block
    query_at = first[:, None] + torch.arange(block, device=device)
    key_at = first[:, None] + torch.arange(block + 2 * w, device=device) - w
    query_token = residue[:, None] + d * query_at  # [blocks, block]
    key_token = residue[:, None] + d * key_at  # [blocks, block + 2w]
    gap = key_at[:, None, :] - query_at[:, :, None]
    in_band = (gap.abs() <= w) & ((gap <= 0) if causal else True) & (key_token >= n)[:, None, :]
    column = torch.cat([torch.arange(n, device=device).expand(d * blocks, n), key_token], dim=1)
    seen = torch.cat([torch.ones(d * blocks, block, n, dtype=torch.bool, device=device), in_band], dim=2)
    in_length = column < lengths.clamp(max=tokens).view(batch, 1, 1)  # [B, blocks, columns]
    bias = torch.where(seen & in_length[:, :, None, :], 0.0, -1e30).to(dtype)[:, None]

    q, k, v = qkv.view(batch, tokens, 3, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    q = q[:, :, query_token.clamp(max=tokens - 1)].to(dtype) * scale
    column = column.clamp(0, tokens - 1)
    scores = q @ k[:, :, column].to(dtype).transpose(-1, -2) + bias
    context = scores.softmax(-1) @ v[:, :, column].to(dtype)  # [B, H, blocks, block, D]
    rows = torch.arange(tokens, device=device)
    place = (rows % d) * (blocks * block) + rows // d
    output = context.flatten(2, 3)[:, :, place].transpose(1, 2).reshape(batch, tokens, width)
    valid = (rows < lengths.view(batch, 1))[..., None]
    return torch.where(valid, output, torch.zeros_like(output)).to(qkv.dtype)


def row_attention(
    rows: Tensor,
    x: Tensor,
    q_weight: Tensor,
    q_bias: Tensor | None,
    k_heads: Tensor,
    v_heads: Tensor,
    v_bias: Tensor | None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Full attention of a few rows over all tokens, without projecting the tokens (exact algebra).

    `q·(W_k x + b) = (W_kᵀ q)·x + q·b`, where q·b is the same for every key and falls out of the
    softmax; `Σ p (W_v x + b) = W_v (Σ p x) + b`. Two S×E×E products become two S×E×(heads·rows) ones.

    rows: `[B, R, E]`; x: `[B, S, E]`; q_weight: `[E, E]`; k_heads, v_heads: `[H, D, E]` (the rows of
    the projections, cut by head); lengths: `[B]` valid tokens. Returns `[B, R, E]`.
    """
    heads, dim, width = k_heads.shape
    batch, count = rows.shape[0], rows.shape[1]
    q = torch.nn.functional.linear(rows, q_weight, q_bias) * dim**-0.5
    q = q.view(batch, count, heads, dim).transpose(1, 2)  # [B, H, R, D]
    folded = (q @ k_heads).reshape(batch, heads * count, width)
    # x on the left: the long axis is the rows of the GEMM and x is read as it lies in memory
    scores = (x @ folded.transpose(1, 2)).transpose(1, 2).to(softmax_dtype(x))  # [B, H·R, S]
    if lengths is not None:
        token = torch.arange(x.shape[1], device=x.device)
        valid = token < lengths.view(batch, 1, 1)
        scores = torch.where(valid, scores, torch.full_like(scores[:1, :1, :1], -1e30))
    mixed = scores.softmax(-1).to(x.dtype) @ x  # [B, H·R, E]
    output = mixed.view(batch, heads, count, width) @ v_heads.transpose(1, 2)
    output = output.transpose(1, 2).reshape(batch, count, heads * dim)
    return output if v_bias is None else output + v_bias
