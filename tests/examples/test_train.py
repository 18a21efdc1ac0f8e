"""Training of moving-shapes at its smallest: it goes on after a kill as if nothing had been."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vtn_export.model.checkpoint import read_state

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train"))
import encoder
import evaluate
import shapes
import train

SETTINGS = train.Settings(frames=4, window=2, steps=(3, 2), frames_a_batch=16, batches_a_pool=2, clips_a_check=2)


ENCODER = train.EncoderSettings(frames=4, window=2, steps=(2, 1), clips=(3, 2), copies=2, clips_a_batch=2)


class KilledError(Exception):
    pass


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY", 1)
    monkeypatch.setattr(encoder, "SAVE_EVERY", 1)
    torch.use_deterministic_algorithms(True)
    try:
        train.train(tmp_path / "whole", SETTINGS, ENCODER)
        saves = []

        def then_die(save: Callable[..., None]) -> Callable[..., None]:
            def wrapped(*arguments: object) -> None:
                save(*arguments)
                saves.append(arguments)
                if len(saves) in (2, 3, 5, 6, 7):  # amid a pool, between stages, in the encoder's and between them
                    raise KilledError

            return wrapped

        monkeypatch.setattr(train, "_save", then_die(train._save))
        monkeypatch.setattr(encoder, "_save", then_die(encoder._save))
        for _ in range(5):
            with pytest.raises(KilledError):
                train.train(tmp_path / "killed", SETTINGS, ENCODER)
        train.train(tmp_path / "killed", SETTINGS, ENCODER)
    finally:
        torch.use_deterministic_algorithms(False)
    whole, killed = (read_state(tmp_path / run / "model.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=0)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    steps = [(row["part"], row["number"], row["step"]) for row in rows if "step" in row]
    assert steps == [
        ("whole", 0, 1), ("whole", 0, 2), ("whole", 0, 3), ("whole", 1, 1), ("whole", 1, 2),
        ("encoder", 0, 1), ("encoder", 0, 2), ("encoder", 1, 1),
    ]  # fmt: skip
    assert [set(row["heldout"]) for row in rows if "heldout" in row] == [{"4", "64"}, {"8", "64"}] * 2


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    short = dataclasses.replace(SETTINGS, steps=(1,), clips_a_check=1)
    train.train(tmp_path, short, ENCODER)
    for settings in ((SETTINGS, ENCODER), (short, dataclasses.replace(ENCODER, seed=1))):
        with pytest.raises(SystemExit, match="of a run with other settings"):
            train.train(tmp_path, *settings)


def test_the_encoder_s_stages_leave_the_backbone(tmp_path: Path) -> None:
    before = train.initial_model(0)
    trained = train.train_encoder(before, tmp_path, ENCODER, lambda row: None, lambda model, frames: {})
    for name, value in before.state_dict().items():
        if name.startswith(("backbone.", "projection.")):
            torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=0)
    assert not torch.equal(trained.mlp_head[1].weight, before.mlp_head[1].weight)


def test_what_positions_are_read_from_grows_louder_and_reads_the_same() -> None:
    model = train.initial_model(0)
    where = torch.nn.Linear(128, 4)
    frames = torch.randint(0, 256, (1, 3, 48, 48, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected, before = where(model.features(frames)), model.features(frames)
        sharp = train.sharpened(model, where, 0).eval()
        got, after = where(sharp.features(frames)), sharp.features(frames)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (after - before).norm() > before.norm()


def test_evaluation_counts_every_kind_of_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        evaluate.SingleFrames, "trained", classmethod(lambda cls, model: cls(model))
    )  # its own test is that of the shipped weights
    result = evaluate.evaluate(train.initial_model(0), {"16-64": 10, "250": 1})
    assert result["16-64"]["clips"] == 10 and result["250"]["clips"] == 1
    assert set(result["16-64"]["per_class"]) == set(shapes.LABELS)
    mean = sum(result["16-64"]["per_class"].values()) / 10
    assert result["16-64"]["top1"] == pytest.approx(mean)
    assert 0 <= result["16-64"]["shuffled_way_kept"] <= 1
