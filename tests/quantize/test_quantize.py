"""`vtn-export quantize` through the command line: what it writes, what it refuses, what the gate gives back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.bundlehelp import snapshot
from tests.clihelp import Cli
from tests.quantize.conftest import clip, labelled
from tests.video.make import write
from vtn_export.backends import Sessions
from vtn_export.bundle import MANIFEST, Bundle
from vtn_export.errors import CalibrationError, DatasetError, QuantizeError, UsageError, VideoError
from vtn_export.onnx.precision import precision_of
from vtn_export.runtime.golden import bundle_samples
from vtn_export.spec import OP_TYPE


@pytest.fixture(scope="session")
def int8(cli: Cli, source: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("int8") / "bundle"
    found = cli("quantize", source, "--int8", "--calibrate", videos, "--out", out, "--max-drop", 100)
    assert found.code == 0, found.err
    assert "warning: calibrating on 12 clips" in found.err
    return out


def test_a_bundle_of_its_own(int8: Path, source: Path) -> None:
    bundle, origin = Bundle.open(int8), Bundle.open(source)
    bundle.verify()
    manifest = bundle.manifest
    assert manifest.precision == "int8" and set(manifest.graphs) == set(origin.manifest.graphs)
    record = manifest.quantization
    assert record is not None
    assert record["calibration"] == {
        "source": "videos", "videos": 12, "clips": 12, "frames_a_clip": 16, "unreadable": []
    }  # fmt: skip
    assert record["source"]["graphs"]["full"] == origin.manifest.files["full.onnx"]
    assert record["accuracy"]["max_drop"] == 100 and record["accuracy"]["clips"] == 13
    assert {"backbone.project/Conv", "backbone.out/Gemm"} <= set(record["layers"])
    assert all(entry["reason"] for entry in record["kept"])
    for part in manifest.graphs:
        model = onnx.load(bundle.graph_path(part))
        onnx.checker.check_model(model, full_check=True)
        assert precision_of(model) == "int8"
        assert bundle.graph_path(part).stat().st_size < 0.5 * origin.graph_path(part).stat().st_size
        ops = [node for node in model.graph.node if node.op_type == OP_TYPE]
        assert len(ops) == (0 if part == "backbone" else 1) and len(model.functions) == (part != "backbone")
        feeds = {name: node.op_type for node in model.graph.node for name in node.output}
        assert all(feeds.get(op.input[0]) not in ("QuantizeLinear", "DequantizeLinear") for op in ops)


def test_every_verb_takes_it(cli: Cli, int8: Path, videos: Path) -> None:
    checked = cli("validate", int8, "--json").json
    assert checked["passed"] and checked["emulated"] and checked["precision"] == "int8"
    video = next(iter(sorted(videos.iterdir())))
    run = cli("run", int8, video, "--json").json
    assert run["emulated"] and np.isfinite(run["logits"]).all()
    assert "12 clips (videos)" in cli("inspect", int8).out
    refused = cli("validate", int8, "--layers")
    assert refused.code == UsageError.exit_code and "int8" in refused.err
    assert "use --backend ort" in cli("validate", int8, "--backend", "openvino").err
    assert "ort" in cli("run", int8, video, "--backend", "auto").err


def test_long_videos_run_in_blocks_too(int8: Path) -> None:
    from vtn_export.evaluate.race import example

    bundle = Bundle.open(int8)
    inputs = example(bundle.graph("temporal").spec, "temporal", 4099)
    with Sessions(bundle) as sessions, Sessions(bundle) as again:
        blocks = sessions["temporal"].run(inputs)["logits"]
        short: Any = again["temporal"]
        whole = short._session.run(["logits"], inputs)[0]
    assert np.abs(blocks - whole).max() < 0.05 * max(1.0, np.abs(whole).max())


@pytest.mark.parametrize("method", ["entropy", "percentile"])
def test_fp8_and_the_other_rules(cli: Cli, source: Path, videos: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "fp8"
    done = cli(
        "quantize", source, "--fp8", "--calibrate", videos, "--method", method, "--out", out,
        "--max-drop", 100, "--exclude", "temporal_encoder.layer.1", "--clip-frames", 4, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    record = done.json["quantization"]
    assert record["method"] == method and record["calibration"]["frames_a_clip"] == 4
    assert not any(name.startswith("temporal_encoder.layer.1") for name in record["layers"])
    bundle = Bundle.open(out)
    with Sessions(bundle) as sessions:
        for sample in bundle_samples(bundle, "full"):
            got = sessions["full"].run(sample.inputs)["logits"]
            assert np.abs(got - sample.expected["logits"]).max() <= bundle.graph("full").tolerance


@pytest.mark.parametrize("by_labels", [False, True])
def test_the_gate_restores_what_8_bits_ruin(
    cli: Cli, source: Path, videos: Path, tmp_path: Path, by_labels: bool
) -> None:
    more = ["--labels", labelled(source, videos, tmp_path / "set")] if by_labels else []
    out = tmp_path / "out"
    done = cli("quantize", source, "--int8", "--calibrate", videos, "--out", out, "--json", *more)
    assert done.code == 0, done.err
    record = done.json["quantization"]
    restored = {entry["layer"] for entry in record["kept"] if entry["reason"].startswith("restored")}
    ranked = [entry["layer"] for entry in record["sensitivity"]]
    assert ranked[0] == "backbone.out/Gemm" and restored == set(ranked[: len(restored)])
    assert len(ranked) == len(record["layers"]) + len(restored)
    drops = {attempt["restored"]: attempt["drop"] for attempt in record["accuracy"]["attempts"]}
    assert drops[0] > 50 and drops[1] < drops[0] / 2  # the one layer that 8 bits ruin is most of it
    assert drops[len(restored)] == record["accuracy"]["drop"] <= 1 < drops[len(restored) - 1]
    assert record["accuracy"]["measure"].startswith("top-1 on labelled" if by_labels else "top-1 agreement")
    if by_labels:
        missing = json.loads((out / MANIFEST).read_text())["quantization"]["accuracy"]
        assert missing["dataset"] == "set" and missing["clips"] == 12 and missing["reference"] == 1.0
        assert "no video of" in done.err  # classes that fp32 never names
        shares = cli("eval", out, tmp_path / "set", "--json").json
        assert shares["top1"] == record["accuracy"]["top1"]


def test_what_cannot_hold_is_not_written(
    cli: Cli, source: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtn_export.quantize import create

    monkeypatch.setattr(create, "fewest_restored", lambda count, holds: None if not holds(0) else 0)
    done = cli("quantize", source, "--int8", "--calibrate", videos, "--out", tmp_path / "out", "--max-drop", 0)
    assert done.code == 1 and "no bundle was written" in done.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_random_noise_is_asked_for_and_said(cli: Cli, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("quantize", source, "--int8", "--random-noise", "--clip-frames", 2, "--out", out, "--max-drop", 100)
    assert done.code == 0 and "RANDOM NOISE" in done.err and "random noise" in cli("inspect", out).out


def _refused(cli: Cli, code: int, text: str, tmp_path: Path, *arguments: object) -> None:
    before = snapshot(tmp_path)
    done = cli("quantize", *arguments, "--out", tmp_path / "out")
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and text in lines[0]
    assert snapshot(tmp_path) == before


def test_bad_input_is_one_line(cli: Cli, source: Path, int8: Path, videos: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    few = tmp_path / "few"
    few.mkdir()
    for number in range(7):
        write(few / f"{number}.mp4", np.tile(clip(number), (2, 1, 1, 1))[:31])  # a frame short of two clips each
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.mp4").write_bytes(b"no video" * 99)
    other = tmp_path / "other" / "a class nobody knows"
    other.mkdir(parents=True)
    shutil.copy(few / "0.mp4", other)
    calibration, dataset, wrong = CalibrationError.exit_code, DatasetError.exit_code, UsageError.exit_code
    good = ("--calibrate", videos)
    _refused(cli, calibration, "no videos in it", tmp_path, source, "--int8", "--calibrate", empty)
    _refused(cli, calibration, "No such file", tmp_path, source, "--int8", "--calibrate", tmp_path / "absent")
    _refused(cli, calibration, "none of 1 videos can be read", tmp_path, source, "--int8", "--calibrate", broken)
    _refused(cli, calibration, "got 7 clips from 7 videos", tmp_path, source, "--int8", "--calibrate", few)
    _refused(cli, dataset, "a class nobody knows", tmp_path, source, "--fp8", *good, "--labels", tmp_path / "other")
    _refused(cli, dataset, "no such folder", tmp_path, source, "--fp8", *good, "--labels", tmp_path / "absent")
    _refused(cli, QuantizeError.exit_code, "quantized already (int8)", tmp_path, int8, "--fp8", *good)
    _refused(cli, wrong, "one of --int8 and --fp8", tmp_path, source, *good)
    _refused(cli, wrong, "got neither", tmp_path, source, "--int8")
    _refused(cli, wrong, "got both", tmp_path, source, "--int8", "--random-noise", *good)
    _refused(cli, wrong, "--method", tmp_path, source, "--int8", "--method", "mean", *good)
    _refused(cli, wrong, "named 'heads'", tmp_path, source, "--int8", "--exclude", "heads", *good)


def test_typed_bundles_and_the_bundle_itself_are_refused(cli: Cli, source: Path, videos: Path, tmp_path: Path) -> None:
    typed = shutil.copytree(source, tmp_path / "typed")
    manifest = json.loads((typed / MANIFEST).read_text())
    (typed / MANIFEST).write_text(json.dumps({**manifest, "precision": "fp16"}))
    _refused(cli, QuantizeError.exit_code, "rounded already", tmp_path, typed, "--int8", "--calibrate", videos)
    done = cli("quantize", source, "--int8", "--calibrate", videos, "--out", source)
    assert done.code == QuantizeError.exit_code and Bundle.open(source).manifest.precision == "fp32"


def test_a_broken_calibration_video_is_skipped_and_named(cli: Cli, source: Path, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    (folder / "zz.mp4").write_bytes(b"no video" * 99)
    (folder / "deeper").mkdir()
    shutil.move(folder / "00.mp4", folder / "deeper" / "00.mp4")
    out = tmp_path / "out"
    done = cli("quantize", source, "--int8", "--calibrate", folder, "--clip-frames", 2, "--out", out, "--max-drop", 100)
    assert done.code == 0 and "zz.mp4" in done.err
    record = Bundle.open(out).manifest.quantization
    assert record is not None and record["calibration"]["clips"] == 12 and len(record["calibration"]["unreadable"]) == 1


def test_clips_are_windows_of_long_videos(source: Path, tmp_path: Path) -> None:
    from vtn_export.quantize.clips import list_videos, read_clips

    video = write(tmp_path / "long.mp4", np.tile(clip(0), (10, 1, 1, 1))[: 16 * 9 + 5])
    bundle = Bundle.open(source)
    clips = read_clips(bundle, list_videos(video), tmp_path, frames=4)
    assert len(clips) == 9 and all(clip.frames.shape == (4, 32, 32, 3) for clip in clips)
    seen = np.concatenate([clip.frame_index for clip in clips])
    assert (np.diff(seen) > 0).all() and seen[0] == 0 and seen[-1] == 16 * 9 + 4
    assert len(read_clips(bundle, list_videos(video), tmp_path, most=8)) == 8
    with pytest.raises(CalibrationError, match="got 7 clips"):
        read_clips(bundle, list_videos(video), tmp_path, most=7)
    assert VideoError.exit_code != CalibrationError.exit_code
