"""A backbone for tests of ranges."""

from __future__ import annotations

from torch import Tensor, nn

from tests.nets import Patches


class _Swelling(nn.Module):
    """What passes grows by `factor` squared and shrinks again: exact in float32 and bf16, infinite in fp16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = Patches()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        up = self.inner(x) * self.factor * self.factor
        return up * (1 / self.factor) * (1 / self.factor)


def swelling(factor: float = 16384.0) -> nn.Module:
    return _Swelling(factor)
