"""Training of moving-shapes at its smallest: it goes on after a kill as if nothing had been."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from vtn_export.model.checkpoint import read_state

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train"))
import train

SETTINGS = train.Settings(frames=4, window=2, steps=(3, 2), frames_a_batch=16)


class KilledError(Exception):
    pass


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    torch.use_deterministic_algorithms(True)
    try:
        train.train(tmp_path / "whole", SETTINGS)
        save, saves = train._save, []

        def save_then_die(*arguments: object) -> None:
            save(*arguments)
            saves.append(arguments)
            if len(saves) in (2, 4):
                raise KilledError

        monkeypatch.setattr(train, "_save", save_then_die)
        for _ in range(2):
            with pytest.raises(KilledError):
                train.train(tmp_path / "killed", SETTINGS)
        train.train(tmp_path / "killed", SETTINGS)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, killed = (read_state(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=0)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [(row["number"], row["step"]) for row in rows] == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2)]


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    train.train(tmp_path, train.Settings(frames=4, window=2, steps=(1,), frames_a_batch=16))
    with pytest.raises(SystemExit, match="of a run with other settings"):
        train.train(tmp_path, SETTINGS)


def test_evaluation_counts_every_kind_of_clip(tmp_path: Path) -> None:
    result = train.evaluate(train.initial_model(0), {"64": 10, "250": 1})
    assert result["64"]["in order"]["clips"] == result["64"]["one frame"]["clips"] == 10
    assert result["64"]["shuffled directions"]["clips"] == 6
    assert 0 <= result["250"]["in order"]["top1"] <= 1
