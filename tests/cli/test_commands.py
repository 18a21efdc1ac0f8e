"""Every command on a small bundle and a real clip, and the one line that bad input gets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.bundle import Bundle
from vtn_export.cli import main
from vtn_export.cli.main import VERBS, verb
from vtn_export.model.checkpoint import random_model
from vtn_export.video import shipped_clip

CLIP = shipped_clip()


def expect_error(result: object, kind: type[errors.VtnError], *parts: str) -> None:
    """One line on stderr with everything it must name, and the error's own exit code."""
    err = result.err  # type: ignore[attr-defined]
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert result.code == kind.exit_code, err  # type: ignore[attr-defined]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[0], lines[0]


def test_export_says_that_weights_are_random(cli: Cli, small_bundle: Path) -> None:
    shown = cli("inspect", small_bundle)
    assert "RANDOM, seed 3" in shown.out
    assert "[batch, frames]" in shown.out
    assert Bundle.open(small_bundle).manifest.random_weights


def test_three_modes_agree_and_json_has_the_logits(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    stored = tmp_path / "clip.npz"
    made = cli("features", small_bundle, CLIP, "--out", stored, "--json")
    assert made.code == 0 and made.json["frames"] == 24
    runs = {
        "full": cli("run", small_bundle, CLIP, "--mode", "full", "--json"),
        "chunked": cli("run", small_bundle, CLIP, "--mode", "chunked", "--chunk", 7, "--json"),
        "features": cli("run", small_bundle, stored, "--json"),
        "torch": cli("run", small_bundle, CLIP, "--backend", "torch", "--json"),
    }
    logits = {name: np.array(run.json["logits"]) for name, run in runs.items()}
    for name, values in logits.items():
        assert np.abs(values - logits["full"]).max() <= 1e-4, name
    top = runs["features"].json["top"]
    assert len(top) == 5 and top[0]["probability"] >= top[1]["probability"]
    assert sum(entry["probability"] for entry in top) == pytest.approx(1)
    assert runs["features"].json["mode"] == "features"


@pytest.mark.parametrize("frames", ["1", "3", "250", "all"])
def test_any_number_of_frames(cli: Cli, small_bundle: Path, frames: str) -> None:
    chunked = cli("run", small_bundle, CLIP, "--frames", frames, "--json")
    full = cli("run", small_bundle, CLIP, "--frames", frames, "--mode", "full", "--json")
    assert chunked.json["frames"] == (int(frames) if frames.isdigit() else full.json["frames"])
    assert np.allclose(chunked.json["logits"], full.json["logits"], atol=1e-4)


def test_validate_passes_without_and_with_a_video(cli: Cli, small_bundle: Path) -> None:
    for extra in ([], ["--backend", "torch"], ["--video", CLIP]):
        result = cli("validate", small_bundle, *extra, "--json")
        assert result.code == 0 and result.json["passed"], result.out
        parts = {check["part"] for check in result.json["checks"]}
        assert {"full", "backbone", "temporal"} <= parts
    assert {"mode full", "mode features", "video"} <= parts


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_16_bit_bundles_run_and_validate(cli: Cli, small_config: Path, tmp_path: Path, precision: str) -> None:
    out = tmp_path / precision
    made = cli("onnx", "--config", small_config, "--out", out, "--precision", precision, "--json")
    assert made.code == 0, made.err
    assert any("LayerNormalization" in kept["reason"] for kept in made.json["kept_fp32"])
    checked = cli("validate", out, "--video", CLIP, "--json")
    assert checked.json["passed"] and checked.json["emulated"], checked.out
    assert cli("run", out, CLIP, "--json").json["emulated"] == (precision == "bf16")


def test_float_input_bundle_gives_the_same(cli: Cli, small_bundle: Path, small_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "float"
    made = cli("onnx", "--config", small_config, "--out", out, "--input", "float32", "--seed", 3)
    assert made.code == 0, made.err
    want = cli("run", small_bundle, CLIP, "--json").json["logits"]
    for mode in ("full", "chunked"):
        assert np.allclose(cli("run", out, CLIP, "--mode", mode, "--json").json["logits"], want, atol=1e-4)


def test_single_parts(cli: Cli, small_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "temporal"
    assert cli("onnx", "--config", small_config, "--out", out, "--part", "temporal").code == 0
    assert cli("validate", out).code == 0
    expect_error(cli("run", out, CLIP), errors.BundleError, "no backbone graph", "--part all")
    expect_error(cli("validate", out, "--video", CLIP), errors.BundleError, "no backbone graph")


def test_checkpoint_round_trip(cli: Cli, small_config: Path, tmp_path: Path) -> None:
    model = random_model(small_config, seed=9)
    path = tmp_path / "trained.pyth"
    torch.save({"model_state": {f"module.{k}": v for k, v in model.state_dict().items()}, "epoch": 3}, path)
    labels = tmp_path / "labels.txt"
    labels.write_text("walk\nrun\njump\nsit\nstand\n")
    out = tmp_path / "bundle"
    made = cli("onnx", path, "--config", small_config, "--out", out, "--labels", labels, "--json")
    assert made.code == 0 and not made.json["random_weights"]
    want = cli("run", out, CLIP, "--json").json
    assert {entry["label"] for entry in want["top"]} == set(labels.read_text().split())
    expect_error(cli("run", out, CLIP, "--backend", "torch"), errors.CheckpointError, "trained.pyth", "--checkpoint")
    got = cli("run", out, CLIP, "--backend", "torch", "--checkpoint", path, "--json").json
    assert np.allclose(got["logits"], want["logits"], atol=1e-4)
    other = tmp_path / "other.pyth"
    torch.save(random_model(small_config, seed=10).state_dict(), other)
    expect_error(
        cli("run", out, CLIP, "--backend", "torch", "--checkpoint", other), errors.CheckpointError, "fingerprint"
    )


def test_features_of_another_backbone_are_refused(
    cli: Cli, small_bundle: Path, small_config: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    assert cli("onnx", "--config", small_config, "--out", other, "--seed", 4).code == 0
    stored = tmp_path / "clip.npz"
    assert cli("features", other, CLIP, "--out", stored).code == 0
    expect_error(cli("run", small_bundle, stored), errors.BundleError, "were made by backbone", "vtn-export features")


def test_doctor_and_version(cli: Cli) -> None:
    report = cli("doctor", "--json").json
    assert report["capabilities"][0]["available"]
    assert cli("doctor").code == 0
    assert cli("--version").out.startswith("vtn-export ")


@pytest.mark.parametrize("command", ["run", "features"])
def test_bad_videos(cli: Cli, small_bundle: Path, tmp_path: Path, command: str) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(CLIP.read_bytes()[: CLIP.stat().st_size // 2])
    for video in (tmp_path / "missing.mp4", empty, cut, tmp_path):
        result = cli(command, small_bundle, video, *(["--out", tmp_path / "f.npz"] if command == "features" else []))
        expect_error(result, errors.VideoError, str(video.name))
    assert not (tmp_path / "f.npz").exists()


def test_bad_bundles(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    expect_error(cli("run", tmp_path / "none", CLIP), errors.BundleError, "no such folder", "vtn-export onnx")
    expect_error(cli("inspect", CLIP), errors.BundleError, "got a file")
    expect_error(cli("validate", tmp_path), errors.BundleError, "manifest.json")
    damaged = tmp_path / "damaged"
    shutil.copytree(small_bundle, damaged)
    with (damaged / "temporal.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\0\0\0")
    for command in (("run", damaged, CLIP), ("validate", damaged), ("inspect", damaged)):
        expect_error(cli(*command), errors.BundleError, "temporal.onnx", "SHA-256")
    newer = tmp_path / "newer"
    shutil.copytree(small_bundle, newer)
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    expect_error(cli("run", newer, CLIP), errors.BundleError, "99", "update vtn-export")


def test_wrong_golden_numbers_fail_with_exit_1(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    from vtn_export.untrusted import sha256

    wrong = tmp_path / "wrong"
    shutil.copytree(small_bundle, wrong)
    with np.load(wrong / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["temporal.2.logits"] = arrays["temporal.2.logits"] + np.float32(3e-5)
    np.savez(wrong / "golden.npz", **arrays)
    manifest = json.loads((wrong / "manifest.json").read_text())
    manifest["files"]["golden.npz"] = sha256(wrong / "golden.npz")
    (wrong / "manifest.json").write_text(json.dumps(manifest))
    expect_error(cli("validate", wrong), errors.AccuracyError, "temporal", "logits", "beyond tolerance 1e-05")
    assert cli("validate", wrong, "--json").code == 1


def test_bad_options(cli: Cli, small_bundle: Path, small_config: Path, tmp_path: Path) -> None:
    out = tmp_path / "never"
    cases: list[tuple[type[errors.VtnError], tuple[object, ...], str]] = [
        (errors.UsageError, ("onnx", "--part", "head"), "--part"),
        (errors.UsageError, ("onnx", "--precision", "int4"), "--precision"),
        (errors.UsageError, ("onnx", "--input", "yuv"), "--input"),
        (errors.ConfigError, ("onnx", "--config", "vit_b_vtm"), "vit_b_vtn"),
        (errors.ConfigError, ("onnx", "--config", tmp_path / "no.toml"), "no.toml"),
        (errors.ConfigError, ("onnx", "--config", small_config, "--labels", tmp_path / "no.txt"), "no.txt"),
        (errors.CheckpointError, ("onnx", tmp_path / "no.pyth"), "no.pyth"),
        (errors.VideoError, ("onnx", "--config", small_config, "--clip", tmp_path / "no.mp4"), "no.mp4"),
        (errors.UsageError, ("run", small_bundle, CLIP, "--mode", "sideways"), "--mode"),
        (errors.UsageError, ("run", small_bundle, CLIP, "--mode", "features"), "vtn-export features"),
        (errors.UsageError, ("run", small_bundle, CLIP, "--backend", "abacus"), "--backend"),
        (errors.UsageError, ("run", small_bundle, CLIP, "--frames", "0"), "--frames"),
        (errors.UsageError, ("run", small_bundle, CLIP, "--frames", "some"), "--frames"),
        (errors.ShapeError, ("run", small_bundle, tmp_path / "no.npz"), "no.npz"),
    ]
    for kind, arguments, part in cases:
        extra = ("--out", out) if arguments[0] == "onnx" else ()
        expect_error(cli(*arguments, *extra), kind, part)
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_files_that_are_no_features(cli: Cli, small_bundle: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    expect_error(cli("run", small_bundle, path), errors.ShapeError, "x.npz")


def test_outputs_in_the_way(cli: Cli, small_bundle: Path, small_config: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    expect_error(cli("onnx", "--config", small_config, "--out", file), errors.OutputError, "a file is in the way")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    expect_error(cli("onnx", "--config", small_config, "--out", folder), errors.OutputError, "not empty")
    expect_error(cli("features", small_bundle, CLIP, "--out", tmp_path / "f.bin"), errors.OutputError, ".npz")
    assert file.read_text() == "mine" and [p.name for p in folder.iterdir()] == ["thesis.tex"]


def test_full_mode_beyond_memory_is_refused_with_the_forecast(
    cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtn_export.runtime import inference

    monkeypatch.setattr(inference, "available_memory", lambda: 1_000_000)
    result = cli("run", small_bundle, CLIP, "--mode", "full")
    expect_error(result, errors.MemoryForecastError, "24 frames", "GB", "--mode chunked")
    assert cli("run", small_bundle, CLIP, "--mode", "chunked").code == 0


def test_errors_are_json_too(cli: Cli, tmp_path: Path) -> None:
    result = cli("inspect", tmp_path / "none", "--json")
    assert result.json["exit_code"] == errors.BundleError.exit_code
    assert "no such folder" in result.json["error"]


LONG = "n" * 300  # stat() itself fails, as in a folder that one may not enter


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("inspect", LONG), errors.BundleError),
        (("run", LONG, CLIP), errors.BundleError),
        (("run", "BUNDLE", LONG), errors.VideoError),
        (("run", "BUNDLE", f"{LONG}.npz"), errors.ShapeError),
        (("onnx", LONG, "--config", "moving_shapes"), errors.CheckpointError),
        (("onnx", "--config", "moving_shapes", "--out", LONG), errors.OutputError),
        (("report", "BUNDLE", "--out", LONG), errors.OutputError),
        (("bench", "BUNDLE", "--json", LONG), errors.OutputError),
        (("plugins", "build", "--out", LONG), errors.OutputError),
        (("compare", LONG, LONG), errors.ShapeError),
    ],
)
def test_a_path_that_cannot_be_reached(
    cli: Cli, small_bundle: Path, words: tuple[Any, ...], error: type[errors.VtnError]
) -> None:
    result = cli(*[small_bundle if word == "BUNDLE" else word for word in words])
    expect_error(result, error, "File name too long")


def test_features_are_no_pipe(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.npz")  # it would be waited for
    expect_error(cli("run", small_bundle, tmp_path / "f.npz"), errors.ShapeError, "Not a regular file")


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_says_in_the_list_what_its_help_says(name: str) -> None:
    assert " ".join((verb(name).help or "").split("\n\n")[0].split()) == VERBS[name]


def test_every_file_of_a_verb_is_listed(cli: Cli) -> None:
    folder = Path(main.__file__).parent
    verbs = {path.stem for path in folder.glob("*.py") if "@reported" in path.read_text()}
    assert verbs == set(VERBS)
    assert cli("nosuch").code == 2 and cli("--help").code == 0
