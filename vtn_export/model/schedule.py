"""Longformer's staged training: begin short and narrow, then double frames and windows and halve the learning rate.

Beltagy, Peters and Cohan, arXiv 2004.05150, section 4.2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from vtn_export.errors import ConfigError
from vtn_export.model.config import ModelConfig
from vtn_export.model.vtn import VTN


@dataclass(frozen=True)
class Stage:
    """One stage of training. `window`: the largest layer's, one-sided; `steps`: optimizer steps."""

    number: int
    frames: int
    window: int
    learning_rate: float
    steps: int


def staged_schedule(*, frames: int, window: int, learning_rate: float, steps: Sequence[int]) -> tuple[Stage, ...]:
    """A stage for each entry of `steps`, the first with the given frames, window and rate. Raises ConfigError."""
    if not steps or min(frames, window, *steps) < 1 or learning_rate <= 0:
        raise ConfigError(
            f"staged_schedule: got frames {frames}, window {window}, learning_rate {learning_rate}, steps "
            f"{list(steps)}; expected positive numbers and at least one stage"
        )
    return tuple(
        Stage(number, frames << number, window << number, learning_rate / 2**number, count)
        for number, count in enumerate(steps)
    )


def with_window(model: VTN, window: int) -> VTN:
    """The same weights with layer windows of at most `window`, in training mode if `model` is; no weight depends on it.

    Each layer keeps its share of the largest configured window, and at least 1.
    """
    config = model.config
    widest = max(config.temporal.one_sided_window)
    windows = tuple(max(1, own * window // widest) for own in config.temporal.one_sided_window)
    temporal = dataclasses.replace(config.temporal, one_sided_window=windows)
    changed = VTN(ModelConfig.from_any(dataclasses.replace(config, temporal=temporal)))
    changed.load_state_dict(model.state_dict())
    return changed.train(model.training)
