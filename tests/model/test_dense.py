"""Attention for training gives the published form's numbers and gradients."""

from __future__ import annotations

import pytest
import torch

from vtn_export.model.attention import plain_sliding_window_attention
from vtn_export.model.checkpoint import random_model
from vtn_export.model.dense import dense_sliding_window_attention, use_dense_attention
from vtn_export.model.schedule import with_window


@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
@pytest.mark.parametrize(
    ("window", "dilation", "num_global_tokens", "causal"),
    [(1, (1, 1), 1, False), (4, (1, 3), 2, True), (9, (2, 1), 0, False), (64, (1, 1), 1, False)],
)
def test_dense_is_plain(
    tokens: int, window: int, dilation: tuple[int, ...], num_global_tokens: int, causal: bool
) -> None:
    torch.manual_seed(tokens)
    lengths = torch.tensor([tokens, max(1, num_global_tokens, tokens // 2)]).clamp(max=tokens)
    options = {
        "one_sided_window": window, "dilation": dilation, "num_global_tokens": num_global_tokens, "causal": causal,
    }  # fmt: skip
    found = []
    for attention in (plain_sliding_window_attention, dense_sliding_window_attention):
        torch.manual_seed(0)
        qkv = [torch.randn(2, tokens, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
        with torch.enable_grad():
            output = attention(*qkv, lengths, **options)
            (output * torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
        found.append([output.detach(), *(x.grad for x in qkv)])
    for plain, dense in zip(*found, strict=True):
        torch.testing.assert_close(dense, plain, rtol=1e-9, atol=1e-9)


def test_a_model_that_trains_densely_computes_the_same() -> None:
    plain = random_model("moving_shapes").double()
    dense = use_dense_attention(with_window(plain, 32)).double()
    features = torch.randn(2, 41, 128, dtype=torch.float64)
    lengths = torch.tensor([41, 17])
    with torch.no_grad():
        expected, got = (model.classify(features, lengths=lengths) for model in (plain, dense))
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
