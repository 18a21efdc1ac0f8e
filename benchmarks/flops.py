"""How much a network multiplies: what papers call GFLOPs are multiply-adds in billions, and so are these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def multiply_adds(run: Callable[[], Any]) -> float:
    """Multiply-adds of the matrix products, convolutions and attentions that `run` does, in billions.

    Counted by PyTorch while it runs; fused attention is taken apart first, which its counter does not know on CPUs.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9
