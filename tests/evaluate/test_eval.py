"""`vtn-export eval`: its numbers against hand-counted ones, and the command over real videos."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.clihelp import Cli
from tests.video.make import cut, textured_frames, write
from vtn_export.errors import DatasetError, ShapeError, VideoError
from vtn_export.evaluate.eval import Evaluation, Prediction, wilson
from vtn_export.evaluate.labelled import read_labelled
from vtn_export.evaluate.metrics import rank_of

LABELS = ["a", "b", "c"]


@given(arrays(np.float32, (4, 5), elements=st.sampled_from([0.0, 1.0, 2.0, math.nan, math.inf])))
def test_ranks_are_places_in_a_stable_order(logits: np.ndarray) -> None:
    labels = np.array([0, 4, 2, 1])
    for row, label, rank in zip(logits, labels, rank_of(logits, labels), strict=True):
        if np.isfinite(row).all():
            order = sorted(range(5), key=lambda index: (-float(row[index]), index))
            assert rank == order.index(label)
        else:
            assert rank == 5
    with pytest.raises(ShapeError):
        rank_of(logits, labels[:2])


def _evaluation(pairs: list[tuple[int, list[float]]]) -> Evaluation:
    found = []
    for label, row in pairs:
        logits = np.array(row, np.float32)
        found.append(Prediction(Path("v.mp4"), label, 3, logits, int(rank_of(logits[None], np.array([label]))[0])))
    return Evaluation(LABELS, ["c"], found)


def test_counted_by_hand() -> None:
    found = _evaluation([(0, [3, 2, 1]), (0, [1, 3, 2]), (1, [1, 3, 2]), (1, [math.nan, 1, 0])])
    assert found.top(1) == 0.5 and found.top(2) == 0.5 and found.top(3) == 0.75
    assert found.confusion().tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    a, b, c = found.classes()
    assert a == {"label": "a", "support": 2, "predicted": 1, "recall": 0.5, "precision": 1.0, "f1": 2 / 3}
    assert b == {"label": "b", "support": 2, "predicted": 2, "recall": 0.5, "precision": 0.5, "f1": 0.5}
    assert c["support"] == 0 and c["recall"] is None and c["precision"] is None and c["f1"] is None
    document = found.to_json()
    assert document["not_finite"] == ["v.mp4"] and document["predictions"][3]["predicted"] is None
    assert document["classes_missing"] == ["c"]
    assert math.isnan(Evaluation(LABELS, LABELS, []).top(1))
    assert Evaluation(LABELS, LABELS, []).to_json()["top1"] is None


def test_interval_is_wilsons() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263, method 3
    low, high = wilson(81 / 263, 263, 1.959964)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0.0, 20)[0] == 0.0 and wilson(1.0, 20)[1] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of three of the five classes, a folder a class; a file and a hidden folder that do not count."""
    folder = tmp_path_factory.mktemp("set")
    for number in range(6):
        home = folder / f"class_{number % 3}"
        home.mkdir(exist_ok=True)
        write(home / f"{number}.mp4", textured_frames(5 + number, 48, 64)[number % 2 :])
    (folder / "class_0" / "notes.txt").write_text("not a video")
    (folder / ".hidden").mkdir()
    write(folder / ".hidden" / "9.mp4", textured_frames(3, 48, 64))
    return folder


def test_a_folder_and_its_csv_agree(cli: Cli, small_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    done = cli("eval", small_bundle, dataset, "--json")
    assert done.code == 0, done.err
    document = done.json
    assert (document["schema"], document["schema_version"]) == ("vtn-export/eval", 1)
    assert document["videos"] == 6 and np.sum(document["confusion"]) == 6
    assert document["classes_missing"] == ["class_3", "class_4"]
    assert "no video of 2 classes: class_3, class_4" in done.err
    for one in document["predictions"]:
        ran = cli("run", small_bundle, one["video"], "--json").json
        assert np.argmax(ran["logits"]) == one["predicted"] and ran["frames"] == one["frames"]
        assert ran["top"][0]["probability"] == pytest.approx(one["probability"])
    right = [one["predicted"] == one["label"] for one in document["predictions"]]
    assert document["top1"] == pytest.approx(np.mean(right)) and document["top5"] == 1.0
    listing = tmp_path / "list.csv"
    with listing.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["label", "video"])
        rows.writerows((path.parent.name, path) for path in sorted(dataset.glob("class_*/*.mp4")))
    again = cli("eval", small_bundle, listing, "--json", "--backend", "openvino").json
    assert again["backend"] == "openvino" and again["confusion"] == document["confusion"]
    table = cli("eval", small_bundle, dataset).out
    assert "top-1" in table and "class_2" in table and "class_4" not in table


def test_a_corrupt_video_is_listed(cli: Cli, small_bundle: Path, dataset: Path, tmp_path: Path) -> None:
    bad, good = tmp_path / "class_1" / "bad.mp4", tmp_path / "class_2" / "good.mp4"
    for path in (bad, good):
        path.parent.mkdir()
        write(path, textured_frames(9, 48, 64))
    cut(bad, 0.5)
    done = cli("eval", small_bundle, tmp_path, "--json", "--frames", 3)
    assert done.code == VideoError.exit_code and done.err.splitlines()[-1].endswith("cannot be read: bad.mp4")
    document = done.json
    assert document["videos"] == 1 and [Path(one["video"]).name for one in document["unreadable"]] == ["bad.mp4"]
    good.unlink()
    nothing = cli("eval", small_bundle, tmp_path, "--json")
    assert nothing.code == VideoError.exit_code and nothing.json["top1"] is None


def test_sets_that_are_none(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "nobody knows"
    other.mkdir(parents=True)
    write(other / "1.mp4", textured_frames(2, 48, 64))
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = {
        "cells.csv": "video,label\nx.mp4\n",
        "columns.csv": "file,class\n,\n",
        "names.csv": "name,label\nx,class_1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00bad")
    listed = tmp_path / "listed"
    listed.mkdir()
    (listed / "labels.csv").write_text(texts["cells.csv"])
    cases = {
        listed: f"did you mean {listed / 'labels.csv'}?",
        other.parent: "1 labels are not the bundle's: got 'nobody knows'",
        empty: "no videos in it",
        tmp_path / "absent": "no such folder or file",
        other / "1.mp4": "got a file",
        tmp_path / "cells.csv": "row 2: got 1 cells",
        tmp_path / "columns.csv": "no videos in it",
        tmp_path / "names.csv": "got columns name, label",
        tmp_path / "binary.csv": "not a CSV file in UTF-8",
    }
    for path, text in cases.items():
        done = cli("eval", small_bundle, path)
        assert done.code == DatasetError.exit_code and len(done.err.splitlines()) == 1 and text in done.err
    with pytest.raises(DatasetError, match="two classes named 'a'"):
        read_labelled(other.parent, ["a", "a"])
