"""The Longformer temporal encoder as published: plain, readable, the reference for everything else.

Longformer (arXiv 2004.05150) as VTN (arXiv 2102.00719) uses it. Module names are those of the
published checkpoint, so its keys load as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtn_export.model.attention import plain_sliding_window_attention, softmax_dtype
from vtn_export.model.config import TemporalConfig


class Embeddings(nn.Module):
    """`LayerNorm(x + position + token type)`; global tokens have type 1, frames type 0."""

    def __init__(self, config: TemporalConfig, width: int) -> None:
        super().__init__()
        self.num_global_tokens = config.num_global_tokens
        rows = config.max_position_embeddings
        self.num_frame_positions = rows - 2
        self.position_embeddings = nn.Embedding(rows, width, padding_idx=rows - 1)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, tokens: Tensor, frame_index: Tensor) -> Tensor:
        """tokens: `[B, n + T, E]`, globals first; frame_index: `[B, T]` integers ≥ 0. Returns `[B, n + T, E]`."""
        n = self.num_global_tokens
        frame_rows = self.position_embeddings(frame_index % self.num_frame_positions)
        # CLS has row rows-2 in the published code; further global tokens count downwards from there
        last = self.num_frame_positions
        global_rows = self.position_embeddings.weight[last + 1 - n : last + 1].flip(0)
        batch = tokens.shape[0]
        positions = torch.cat([global_rows.expand(batch, -1, -1), frame_rows], dim=1)
        types = self.token_type_embeddings.weight
        kinds = torch.cat([types[1].expand(batch, n, -1), types[0].expand(batch, tokens.shape[1] - n, -1)], dim=1)
        return self.LayerNorm(tokens + positions + kinds)


class SelfAttention(nn.Module):
    """Six projections: `query/key/value` for the local rows, `*_global` for the global rows."""

    def __init__(self, config: TemporalConfig, width: int, layer: int) -> None:
        super().__init__()
        assert config.num_heads is not None and isinstance(config.dilation, tuple)
        gaps = config.dilation[layer]
        assert isinstance(gaps, tuple)
        self.num_heads = config.num_heads
        self.one_sided_window = config.one_sided_window[layer]
        self.dilation = gaps
        self.num_global_tokens = config.num_global_tokens
        self.causal = config.causal
        self.attend = plain_sliding_window_attention
        for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
            self.add_module(name, nn.Linear(width, width))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: `[B, S, E]`; lengths: `[B]` valid tokens. Returns `[B, S, E]`."""
        batch, tokens, width = x.shape

        def heads(name: str, rows: Tensor) -> Tensor:
            return self.get_submodule(name)(rows).view(batch, -1, self.num_heads, width // self.num_heads)

        local = self.attend(
            heads("query", x),
            heads("key", x),
            heads("value", x),
            lengths,
            one_sided_window=self.one_sided_window,
            dilation=self.dilation,
            num_global_tokens=self.num_global_tokens,
            causal=self.causal,
        ).reshape(batch, tokens, width)
        n = self.num_global_tokens
        if not n:
            return local
        q = heads("query_global", x[:, :n]) / math.sqrt(width // self.num_heads)
        scores = torch.einsum("bnhd,bshd->bhns", q, heads("key_global", x)).to(softmax_dtype(x))
        valid = torch.arange(tokens, device=x.device) < lengths.view(batch, 1, 1, 1)
        probabilities = scores.masked_fill(~valid, -torch.inf).softmax(-1).to(x.dtype)
        rows = torch.einsum("bhns,bshd->bnhd", probabilities, heads("value_global", x))
        return torch.cat([rows.reshape(batch, n, width), local[:, n:]], dim=1)


class ResidualOutput(nn.Module):
    """Dense layer, dropout, residual, LayerNorm (post-norm)."""

    def __init__(self, inner: int, width: int, eps: float, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        output: Tensor = self.LayerNorm(self.dropout(self.dense(hidden)) + residual)
        return output


class Layer(nn.Module):
    """One Longformer layer; submodule names are the checkpoint's."""

    def __init__(self, config: TemporalConfig, width: int, index: int, dropout: float) -> None:
        super().__init__()
        eps = config.layer_norm_eps
        self.attention = nn.ModuleDict(
            {"self": SelfAttention(config, width, index), "output": ResidualOutput(width, width, eps, dropout)}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.intermediate_size)})
        self.output = ResidualOutput(config.intermediate_size, width, eps, dropout)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, lengths), x)
        output: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return output


class TemporalEncoder(nn.Module):
    """Embeddings and layers over `[B, n + T, E]` tokens."""

    def __init__(self, config: TemporalConfig, width: int, dropout: float) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, width)
        layers = [Layer(config, width, index, dropout) for index in range(config.num_layers)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        """lengths: `[B]` valid tokens, globals included. Returns `[B, n + T, E]`."""
        x = self.dropout(self.embeddings(tokens, frame_index))
        layers = self.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x, lengths)
        return x
