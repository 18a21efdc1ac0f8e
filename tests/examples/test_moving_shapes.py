"""The shipped weights, through the exported bundle in ONNX Runtime: right on held-out clips, for the right reason."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.cli.main import app
from vtn_export.errors import CheckpointError
from vtn_export.model import shipped as shipped_module
from vtn_export.model.checkpoint import load
from vtn_export.model.shipped import DATA, shipped, shipped_with_hash
from vtn_export.model.torch_session import model_of
from vtn_export.runtime.inference import classify_chunked, classify_full
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS
from vtn_export.video import ClipReader

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "train"))
import evaluate
import shapes
import videos

CLIPS = 120


@dataclass
class Seen:
    """Features [T, E] of every clip, from the bundle's backbone, and its label."""

    features: list[Any]
    labels: Any
    sessions: Sessions

    def logits(self, features: Any) -> Any:
        inputs = {
            FEATURES: features[None],
            FRAME_INDEX: np.arange(len(features), dtype=np.int32)[None],
            LENGTHS: np.array([len(features)], np.int32),
        }
        return self.sessions["temporal"].run(inputs)[LOGITS][0]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("shapes") / "bundle"
    done = CliRunner().invoke(app, ["onnx", "--config", "moving_shapes", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "the trained weights that come with moving_shapes" in done.output
    return Bundle.open(out)


@pytest.fixture(scope="module")
def seen(bundle: Bundle) -> Iterator[Seen]:
    with Sessions(bundle, threads=1) as sessions:
        features, labels = [], []
        for clip in evaluate.heldout_clips(CLIPS, evaluate.SHORT):
            features.append(sessions["backbone"].run({FRAMES: clip.frames})[FEATURES])
            labels.append(clip.label)
        yield Seen(features, np.array(labels), sessions)


def test_the_bundle_names_its_weights_and_labels(bundle: Bundle) -> None:
    trained = shipped("moving_shapes")
    assert trained is not None and trained.labels == shapes.LABELS
    assert not bundle.manifest.random_weights and tuple(bundle.labels()) == shapes.LABELS
    assert bundle.manifest.weights["checkpoint_sha256"] == trained.sha256
    assert trained.weights.stat().st_size <= 3e6
    model_of(bundle.manifest)  # found again by its hash; raises where it does not compute the same


def test_held_out_clips_are_named_as_the_evaluation_says(seen: Seen) -> None:
    """A model that is right on 95 % is right on 107 of 120 at least (99.9 %); and the shipped evaluation's share holds.

    Within 3.3 standard errors (99.9 %) of what PyTorch named of 1,000 clips.
    """
    right = [
        int(seen.logits(features).argmax()) == label for features, label in zip(seen.features, seen.labels, strict=True)
    ]
    share = json.loads((DATA / "moving_shapes.json").read_text())["evaluation"]["16-64"]["top1"]
    assert sum(right) >= 107
    assert abs(np.mean(right) - share) <= 3.3 * np.sqrt(share * (1 - share) / CLIPS)


def test_shuffled_frames_leave_no_direction(seen: Seen) -> None:
    """Of 72 clips a coin keeps the way of 23 to 49 (99.9 %); in order, the way is known."""
    rng = np.random.default_rng(0)
    kept, ordered = [], []
    for features, label in zip(seen.features, seen.labels, strict=True):
        if label in shapes.DIRECTIONS:
            for found, rows in ((ordered, features), (kept, rng.permutation(features))):
                logits = seen.logits(rows)
                found.append(bool(logits[label] > logits[shapes.REVERSED[label]]))
    assert len(kept) == 72 and 23 <= sum(kept) <= 49 and sum(ordered) >= 66


def test_one_frame_does_not_tell(seen: Seen) -> None:
    """A classifier of single frames that is right on 30 % is right on at most 51 of 120 (99.9 %)."""
    trained = shipped("moving_shapes")
    assert trained is not None
    import torch

    torch.manual_seed(0)
    baseline = evaluate.SingleFrames.trained(load(trained.weights, "moving_shapes"), clips=300, steps=250)
    rng = np.random.default_rng(1)
    frames = [features[rng.integers(len(features))] for features in seen.features]
    guesses = [baseline.guess(torch.from_numpy(frame)[None, None]) for frame in frames]
    assert sum(np.array(guesses) == seen.labels) <= 51


def test_the_evaluation_that_ships_meets_what_is_promised() -> None:
    record = json.loads((DATA / "moving_shapes.json").read_text())
    found = record["evaluation"]
    assert [found[name]["clips"] for name in evaluate.COUNTS] == list(evaluate.COUNTS.values())
    assert found["16-64"]["top1"] >= 0.95
    assert found["16-64"]["one_frame_top1"] <= 0.30
    assert abs(found["16-64"]["shuffled_way_kept"] - 0.5) <= 3.3 * np.sqrt(0.25 / 600)


def test_videos_are_named_in_two_modes(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composed over real footage, compressed to H.264: what the demo shows."""
    arguments = ["videos.py", "--out", str(tmp_path), "--clips", "6", "--film", str(DATA / "clip.mp4")]
    monkeypatch.setattr(sys, "argv", arguments)
    videos.main()
    rows = [line.split(",") for line in (tmp_path / "labels.csv").read_text().splitlines()[1:]]
    assert len({label for _, label in rows}) == len(rows) == 6
    preprocessing = bundle.manifest.preprocessing
    right = []
    with Sessions(bundle, threads=1) as sessions:
        for name, label in rows:
            found = []
            for classify in (
                lambda reader: classify_full(sessions["full"], reader),
                lambda reader: classify_chunked(sessions["backbone"], sessions["temporal"], reader),
            ):
                with ClipReader(tmp_path / name, preprocessing, 64, chunk=16) as reader:
                    found.append(classify(reader).top(1, bundle.labels())[0][0])
            assert found[0] == found[1]
            right.append(found[0] == label)
    assert sum(right) >= 5


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(DATA / f"moving_shapes{suffix}", tmp_path)
    weights = tmp_path / "moving_shapes.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    own = shipped("moving_shapes")
    monkeypatch.setattr(shipped_module, "DATA", tmp_path)
    with pytest.raises(CheckpointError, match=r"got [0-9a-f]{12}, expected SHA-256 [0-9a-f]{12}; reinstall"):
        shipped("moving_shapes")
    assert own is not None
    with pytest.raises(CheckpointError, match="reinstall"):
        shipped_with_hash(own.sha256)
    weights.unlink()
    with pytest.raises(CheckpointError, match="got no file"):
        shipped("moving_shapes")
    assert shipped("deit_tiny_vtn") is None and shipped("nothing") is None and shipped_with_hash(None) is None
