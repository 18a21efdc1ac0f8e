"""The temporal encoder as exact algebra for inference: the same numbers with about 0.57 of the work.

- q, k, v come from one projection and the band from one op in blocks (`sliding_window_attention`);
- the global rows' key and value projections are folded onto the few rows (`row_attention`);
- only token 0 leaves the encoder for the head, so the last layer computes that row alone.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vtn_export.model.attention import row_attention, sliding_window_attention
from vtn_export.model.temporal import Layer, SelfAttention, TemporalEncoder

Module = TypeVar("Module", bound=nn.Module)


def twin(module: Module, made: dict[nn.Module, nn.Module] | None = None) -> Module:
    """The same modules anew around the same parameters, so that modes and types can be set apart."""
    made = {} if made is None else made
    if module not in made:
        copied = made[module] = copy.copy(module)
        copied._parameters, copied._buffers = dict(module._parameters), dict(module._buffers)
        copied._modules = {
            name: None if child is None else twin(child, made) for name, child in module._modules.items()
        }
    return made[module]  # type: ignore[return-value]


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


class RewrittenAttention(nn.Module):
    """Local rows by the op, one node for each dilation; global rows by `row_attention`.

    The output's heads are sorted by dilation; `head_order` says which head stands where, and the
    dense layer behind takes its columns in that order.
    """

    def __init__(self, plain: SelfAttention) -> None:
        super().__init__()
        self.one_sided_window = plain.one_sided_window
        self.num_global_tokens = plain.num_global_tokens
        self.causal = plain.causal
        width = plain.get_submodule("query").get_parameter("weight").shape[1]
        dim = width // plain.num_heads
        self.groups: list[tuple[int, int]] = []  # (dilation, heads)
        self.head_order: list[int] = []
        projections = []
        for gap in sorted(set(plain.dilation)):
            heads = [head for head, own in enumerate(plain.dilation) if own == gap]
            rows = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in heads])
            parts = [plain.get_submodule(name) for name in ("query", "key", "value")]
            weight = torch.cat([part.get_parameter("weight")[rows] for part in parts])
            bias = torch.cat([part.get_parameter("bias")[rows] for part in parts])
            projections.append(_linear(weight, bias))
            self.groups.append((gap, len(heads)))
            self.head_order += heads
        self.qkv = nn.ModuleList(projections)
        self.columns = torch.cat([torch.arange(head * dim, (head + 1) * dim) for head in self.head_order])
        if self.num_global_tokens:
            query, key, value = (plain.get_submodule(f"{name}_global") for name in ("query", "key", "value"))
            order = self.columns

            def frozen(tensor: Tensor) -> nn.Parameter:
                return nn.Parameter(tensor.detach().clone(), requires_grad=False)

            self.query_global = _linear(query.get_parameter("weight")[order], query.get_parameter("bias")[order])
            shape = (plain.num_heads, dim, width)
            self.key_heads = frozen(key.get_parameter("weight")[order].view(shape))
            self.value_heads = frozen(value.get_parameter("weight")[order].view(shape))
            self.value_bias = frozen(value.get_parameter("bias")[order])

    def local(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: `[B, S, E]`. Returns `[B, S, E]`, heads in `head_order`."""
        outputs = [
            sliding_window_attention(
                projection(x),
                lengths,
                num_heads=heads,
                one_sided_window=self.one_sided_window,
                dilation=gap,
                num_global_tokens=self.num_global_tokens,
                causal=self.causal,
            )
            for projection, (gap, heads) in zip(self.qkv, self.groups, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)

    def rows(self, rows: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """Global attention of `rows` `[B, R, E]` over x `[B, S, E]`. Returns `[B, R, E]`."""
        return row_attention(
            rows,
            x,
            self.query_global.weight,
            self.query_global.bias,
            self.key_heads,
            self.value_heads,
            self.value_bias,
            lengths,
        )

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        local = self.local(x, lengths)
        n = self.num_global_tokens
        return torch.cat([self.rows(x[:, :n], x, lengths), local[:, n:]], dim=1) if n else local


class RewrittenLayer(nn.Module):
    """One layer; `first` computes token 0 alone."""

    def __init__(self, plain: Layer) -> None:
        super().__init__()
        attention, output = plain.attention["self"], plain.attention["output"]
        assert isinstance(attention, SelfAttention)
        self.attention = RewrittenAttention(attention)
        dense = output.get_submodule("dense")
        columns = self.attention.columns
        self.attention_output = _linear(dense.get_parameter("weight")[:, columns], dense.get_parameter("bias"))
        self.attention_norm = output.get_submodule("LayerNorm")
        self.intermediate = plain.intermediate["dense"]
        self.output = plain.output.get_submodule("dense")
        self.output_norm = plain.output.get_submodule("LayerNorm")

    def _after_attention(self, attended: Tensor, residual: Tensor) -> Tensor:
        x = self.attention_norm(self.attention_output(attended) + residual)
        output: Tensor = self.output_norm(self.output(F.gelu(self.intermediate(x))) + x)
        return output

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self._after_attention(self.attention(x, lengths), x)

    def first(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x: `[B, S, E]`. Returns token 0, `[B, E]`."""
        if not self.attention.num_global_tokens:
            return self(x, lengths)[:, 0]
        row = x[:, :1]
        return self._after_attention(self.attention.rows(row, x, lengths), row)[:, 0]


class RewrittenEncoder(nn.Module):
    """`forward` gives every token as the plain encoder does, `first` token 0 alone."""

    def __init__(self, plain: TemporalEncoder) -> None:
        super().__init__()
        self.embeddings = plain.embeddings
        layers = plain.encoder["layer"]
        assert isinstance(layers, nn.ModuleList)
        self.layer = nn.ModuleList([RewrittenLayer(layer) for layer in layers])  # type: ignore[arg-type]

    def forward(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        x = self.embeddings(tokens, frame_index)
        for layer in self.layer:
            x = layer(x, lengths)
        return x

    def first(self, tokens: Tensor, frame_index: Tensor, lengths: Tensor) -> Tensor:
        x = self.embeddings(tokens, frame_index)
        for layer in self.layer[:-1]:
            x = layer(x, lengths)
        last = self.layer[-1]
        assert isinstance(last, RewrittenLayer)
        return last.first(x, lengths)
