"""Sliding-window attention with all the scores and a mask: few kernels, so training on short clips is fast."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vtn_export.model.temporal import SelfAttention
from vtn_export.model.vtn import VTN


def use_dense_attention(model: VTN) -> VTN:
    """The same model computing the same numbers, up to rounding: quadratic in the frames, but a few calls long.

    The plain form gathers keys once an offset: two kernels for each of the window's 2 w + 1, forwards and backwards.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attend = dense_sliding_window_attention
    return model


def dense_sliding_window_attention(
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
    """Arguments and result as of `plain_sliding_window_attention`: `[B, S, H, D]`, rows beyond the length zero."""
    rows = torch.arange(q.shape[1], device=q.device)
    away = rows[None, :] - rows[:, None]
    gaps = torch.tensor(list(dilation), device=q.device).view(-1, 1, 1)
    near = (away % gaps == 0) & (away.abs() <= one_sided_window * gaps)
    if causal:
        near = near & (away <= 0)
    valid = rows < lengths.view(-1, 1)  # [B, S]
    seen = (near | (rows < num_global_tokens)) & valid[:, None, None, :]
    seen = seen | ~valid[:, None, :, None]  # a row without keys would be NaN, and so would its gradient
    by_head = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen)
    output = by_head.transpose(1, 2)
    return torch.where(valid[:, :, None, None], output, torch.zeros_like(output))
