"""Training of moving-shapes at its smallest: it goes on after a kill as if nothing had been."""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vtn_export.model.checkpoint import read_state

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train"))
import dilation
import encoder
import evaluate
import positions
import shapes
import train
import training_run

SETTINGS = train.Settings(
    position_steps=5, position_clips=4, frames=4, window=2, steps=(2, 1), clips=2, copies=2, clips_a_batch=2,
    clips_a_check=2,
)  # fmt: skip


class KilledError(Exception):
    pass


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "BATCHES_A_POOL", 2)
    monkeypatch.setattr(positions, "FRESH", 2)
    monkeypatch.setattr(positions, "POOLS", 2)
    monkeypatch.setattr(encoder, "LENGTHS", (4, 8))


def test_a_killed_run_ends_like_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_run, "SAVE_EVERY", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # the first part takes one of them for its clips, and has to give it back
    torch.use_deterministic_algorithms(True)
    try:
        train.train(tmp_path / "whole", SETTINGS)
        saves = []
        save = training_run.Run._save

        def then_die(*arguments: Any) -> None:
            save(*arguments)
            saves.append(arguments)
            if len(saves) in (3, 5, 6, 7):  # amid a pool, between parts, in a stage of the encoder's and after it
                raise KilledError

        monkeypatch.setattr(training_run.Run, "_save", then_die)
        for _ in range(4):
            with pytest.raises(KilledError):
                train.train(tmp_path / "killed", SETTINGS)
        train.train(tmp_path / "killed", SETTINGS)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    whole, killed = (read_state(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(killed[name], value, rtol=0, atol=0)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    steps = [(row["part"], row["number"], row["step"]) for row in rows if "step" in row]
    assert steps == [
        *(("positions", 0, step) for step in range(1, 6)), ("motions", 0, 1), ("motions", 0, 2), ("motions", 1, 1),
    ]  # fmt: skip
    assert [set(row["heldout"]) for row in rows if "heldout" in row] == [{"distance", "off"}, {"4", "64"}, {"8", "64"}]


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    short = dataclasses.replace(SETTINGS, position_steps=1, steps=(1,), clips_a_check=1)
    train.train(tmp_path, short)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="of a run with other settings"):
        train.train(tmp_path, dataclasses.replace(short, seed=1))
    train.train(tmp_path, short)  # nothing is left to do
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_each_part_learns_its_own_and_leaves_the_rest(tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, position_steps=2, steps=(1,), clips_a_check=1)
    start = train.initial_model(0).state_dict()
    model = train.initial_model(0)
    width = model.projection.out_features
    modules = {"model": model, "where": torch.nn.Linear(width, 4), "every": torch.nn.Linear(width, 10)}
    train.learn_positions(training_run.Run(tmp_path, settings), modules, settings)
    moved = train.train(tmp_path, settings).state_dict()  # goes on with the second part
    positioned = model.state_dict()
    for name in start:
        of_backbone = name.startswith(("backbone.", "projection."))
        before, after = (positioned, moved) if of_backbone else (start, positioned)
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0)
    assert not torch.equal(start["projection.weight"], positioned["projection.weight"])
    assert not torch.equal(positioned["mlp_head.1.weight"], moved["mlp_head.1.weight"])


def test_batches_are_the_same_from_any_step() -> None:
    whole = list(positions.batches(3, 5, 4))
    assert len(whole) == 5
    for start in (1, 4):
        rest = list(positions.batches(3, 5, 4, start))
        assert len(rest) == 5 - start
        for got, expected in zip(rest, whole[start:], strict=True):
            assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))


def test_what_positions_are_read_from_grows_louder_and_reads_the_same() -> None:
    model = train.initial_model(0).eval()
    where = torch.nn.Linear(128, 4)
    frames = torch.randint(0, 256, (1, 3, 48, 48, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected, before = where(model.features(frames)), model.features(frames)
        positions.sharpen(model, where, 0)
        got, after = where(model.features(frames)), model.features(frames)
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


@torch.no_grad()
def test_the_dilations_compared_are_different_models() -> None:
    """A window of the last layer is read by nobody: two layers would compare a model with itself."""
    backbone = train.initial_model(0)
    features = torch.randn(1, 80, backbone.config.hidden_dim)
    logits = [dilation.dilated(backbone, own, 0).eval().classify(features) for own in dilation.DILATIONS.values()]
    for first, second in itertools.combinations(logits, 2):
        assert (first - second).abs().max() > 1e-4
