"""How much memory an engine will take, before it is built: weights and activations at a profile's maximum.

Activations come from the manifest's memory model (a real run's tensor lifetimes in float32, linear
in frames): an upper bound for 16-bit engines, whose typed tensors take half. What a library adds
(its kernels, its context; some hundred MiB on a GPU) is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vtn_export.bundle import GraphEntry
from vtn_export.trt.profile import Profile, max_frames


@dataclass(frozen=True)
class Forecast:
    """Bytes."""

    part: str
    weights: int
    activations: int
    frames: int  # of the largest call

    @property
    def total(self) -> int:
        return self.weights + self.activations

    def describe(self) -> str:
        return (
            f"{self.part}: forecast {_mib(self.total)}: weights {_mib(self.weights)}, "
            f"activations at most {_mib(self.activations)} at {self.frames} frames a call"
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total}


def forecast(part: str, graph: GraphEntry, weight_bytes: int, profiles: Sequence[Profile]) -> Forecast:
    """The profile that needs most decides: one context runs at a time."""
    frames = max(max_frames(profile) for profile in profiles)
    return Forecast(part, weight_bytes, graph.fixed_bytes + graph.bytes_per_frame * frames, frames)


def remedy(graph: GraphEntry, weight_bytes: int, budget: int, profiles: Sequence[Profile]) -> str:
    """What to ask for instead, in frames that fit."""
    room = budget - weight_bytes - graph.fixed_bytes
    fitting = room // graph.bytes_per_frame if graph.bytes_per_frame else 0
    if fitting < 1:
        return "not even one frame fits"
    if "chunk" in profiles[0]:
        return f"--chunk of at most {fitting} fits"
    return f"--batch times --frames of at most {fitting} fits, or build backbone and temporal apart"


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"
