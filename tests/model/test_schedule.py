"""Longformer's staged schedule."""

from __future__ import annotations

import pytest
import torch

from tests.model.small import inputs, model
from vtn_export.errors import ConfigError
from vtn_export.model.schedule import staged_schedule, with_window


def test_each_stage_doubles_and_halves() -> None:
    stages = staged_schedule(frames=8, window=4, learning_rate=1e-3, steps=[100, 50, 25])
    assert [(s.number, s.frames, s.window, s.learning_rate, s.steps) for s in stages] == [
        (0, 8, 4, 1e-3, 100),
        (1, 16, 8, 5e-4, 50),
        (2, 32, 16, 2.5e-4, 25),
    ]


@pytest.mark.parametrize("bad", [{"frames": 0}, {"window": 0}, {"learning_rate": 0.0}, {"steps": []}, {"steps": [0]}])
def test_bad_schedules_are_one_line(bad: dict[str, object]) -> None:
    good: dict[str, object] = {"frames": 8, "window": 4, "learning_rate": 1e-3, "steps": [1]}
    with pytest.raises(ConfigError, match="expected positive numbers"):
        staged_schedule(**{**good, **bad})  # type: ignore[arg-type]


def test_a_wider_window_keeps_the_weights() -> None:
    narrow = model(window=[4, 8, 16]).train()
    wide = with_window(narrow, 32)
    assert wide.config.temporal.one_sided_window == (8, 16, 32) and wide.training
    for (name, one), (_, other) in zip(narrow.state_dict().items(), wide.state_dict().items(), strict=True):
        assert torch.equal(one, other), name
    features, index, _ = inputs(128, 1, 8)
    with torch.no_grad():  # eight frames: every window sees them all from 8 on
        a, b = (with_window(narrow, w).eval().classify(features, index) for w in (40, 80))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
