"""Hand-made backbones, as a user would write them: `tests.nets:patches` and others."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Patches(nn.Module):
    """Patches projected, squashed, averaged: the smallest thing that gives one vector a frame."""

    def __init__(self, width: int = 64, patch: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, patch, patch)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.project(x)).flatten(2).transpose(1, 2)
        return self.out(self.norm(x).mean(1))


def patches(width: int = 64, patch: int = 8) -> nn.Module:
    return Patches(width, patch)


class _Branching(nn.Module):
    """Another path for dark frames: data decides the control flow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 64), nn.Linear(3, 64)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3))
        return self.a(mean) if bool(mean.sum() > 0) else self.b(mean)


def branching() -> nn.Module:
    return _Branching()


class _Loud(nn.Module):
    """Scales what passes by a huge factor and back: fine in float32 and bf16, infinite in fp16."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 64, 8, 8)
        self.up, self.down = nn.Linear(64, 64), nn.Linear(64, 64)
        with torch.no_grad():
            self.up.weight.mul_(factor)
            self.down.weight.div_(factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(F.gelu(self.project(x)).mean((2, 3))))


def loud(factor: float = 1e6) -> nn.Module:
    return _Loud(factor)


class _Spiky(nn.Module):
    """One input of the last product is huge and means nothing: fine in 16 bits, ruin for 8 bits with one scale."""

    def __init__(self, spike: float) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 48, 8, 8)
        self.out = nn.Linear(49, 64)
        self.spike = spike
        with torch.no_grad():
            self.out.weight.mul_(10)
            self.out.weight[:, -1] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.project(x)).mean((2, 3))
        spikes = torch.full_like(x[:, :1], self.spike)
        return self.out(torch.cat([x, spikes], 1))


def spiky(spike: float = 1e4) -> nn.Module:
    return _Spiky(spike)


class _Rising(nn.Module):
    """Features that leave fp16's range themselves: the last thing the backbone does makes infinities."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.inner = Patches()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.factor * self.factor


def rising(factor: float = 1e3) -> nn.Module:
    return _Rising(factor)


def not_a_module() -> str:
    return "patches"


def fails() -> nn.Module:
    raise RuntimeError("the weights\nare on another disk")


class _Map(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def feature_map() -> nn.Module:
    """Gives a map, not a vector."""
    return _Map()
