"""`validate` through the command line: pairs, sources, tolerances, what is not finite, bad input."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.clihelp import SMALL, Cli
from tests.evaluate.bundles import changed, scale_weight
from vtn_export import errors
from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.evaluate.finite import first_in_torch
from vtn_export.evaluate.forms import FORMS, Form
from vtn_export.evaluate.rule import Rule
from vtn_export.evaluate.validate import Validator, seeded_sample
from vtn_export.spec import FRAME_INDEX
from vtn_export.video import shipped_clip

CLIP = shipped_clip()
HERE = [form for form in FORMS if form != "trt" and (form != "openvino" or is_installed("openvino"))]


def by_part(document: Any, source: str = "golden") -> dict[str, Any]:
    return {check["part"]: check for check in document["checks"] if check["source"] == source}


@pytest.mark.parametrize("form", HERE)
def test_every_form_against_the_golden_outputs(cli: Cli, small_bundle: Path, form: str) -> None:
    result = cli("validate", small_bundle, "--backend", form, "--json")
    assert result.code == 0, result.err
    document = result.json
    assert document["schema"] == "vtn-export/validate" and document["schema_version"] == 1
    assert document["emulated"] == (form in ("fp16", "bf16"))
    checks = by_part(document)
    assert set(checks) == {"full", "backbone", "temporal"}
    for check in checks.values():
        assert check["passed"] and 0 < check["measured"] <= check["tolerance"]
        histogram, count = check["errors"]["histogram"], check["errors"]["count"]
        assert sum(histogram) + check["errors"]["exact"] == count
        assert len(histogram) == len(document["histogram_log10_edges"]) - 1
        assert max(sample["measured"] for sample in check["samples"]) == check["measured"]
        assert check["worst_sample"] in {sample["sample"] for sample in check["samples"]}
    assert checks["backbone"]["top1"] is None and checks["temporal"]["kl"] >= 0
    assert checks["temporal"]["top1"] == 1.0


@pytest.mark.parametrize(
    ("form", "against"),
    [("ort", "rewrite"), ("rewrite", "torch"), ("fp16", "bf16"), ("torch", "fp16")],
)
def test_pairs_over_golden_inputs_and_other_lengths(cli: Cli, small_bundle: Path, form: str, against: str) -> None:
    """One frame, an odd number, and hundreds with jumping indices."""
    pair = ("--backend", form, "--against", against)
    result = cli("validate", small_bundle, *pair, "--frames", "1,37,300", "--json")
    assert result.code == 0, result.err
    seeded = by_part(result.json, "frames")
    assert set(seeded) == {"full", "backbone", "temporal"}
    assert [sample["frames"] for sample in seeded["temporal"]["samples"]] == [1, 37, 300]
    assert result.json["against"] == against
    # a pair's bound knows both sides: two 16-bit forms may differ by more than float32 ones
    wide = "bf16" in pair or "fp16" in pair
    assert (seeded["temporal"]["tolerance"] > 1e-4) == wide


def test_seeded_indices_jump_and_are_the_same_again(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    sample = seeded_sample(bundle, "temporal", 300)
    index = sample.inputs[FRAME_INDEX][0]
    assert len(set(np.diff(index).tolist())) > 3 and index[0] == 0 and index[-1] > 600
    again = seeded_sample(bundle, "temporal", 300)
    assert all(np.array_equal(value, again.inputs[name]) for name, value in sample.inputs.items())


def test_a_folder_of_videos(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.MP4"):
        shutil.copy(CLIP, folder / name)
    (folder / "notes.txt").write_text("not a video")
    arguments = ("validate", small_bundle, "--videos", folder, "--frames", "1,9", "--json")
    result = cli(*arguments)
    assert result.code == 0, result.err
    videos = {(check["part"], check["output"]): check for check in result.json["checks"] if check["source"] == "video"}
    assert set(videos) == {
        ("mode features", "logits"), ("mode full", "logits"), ("video", "features"), ("video", "logits")
    }  # fmt: skip
    assert len(videos["video", "logits"]["samples"]) == 4
    (folder / "c.mp4").write_bytes(b"nothing")
    broken = cli(*arguments)
    assert broken.code == errors.VideoError.exit_code and "c.mp4" in broken.err
    assert broken.json["passed"] and [entry["what"] for entry in broken.json["unreadable"]] == ["c.mp4"]


def test_tolerances_override_the_bounds(cli: Cli, small_bundle: Path) -> None:
    # a form that is cheap to open: what the tolerances do does not depend on it
    def run(*more: object) -> Any:
        return cli("validate", small_bundle, "--backend", "rewrite", *more, "--json")

    loose = run("--atol", "1").json
    found = by_part(loose)["temporal"]
    assert found["measured"] == found["errors"]["max_abs"] > 0 and found["tolerance"] == 1
    least = found["smallest"]["atol"]
    assert run("--atol", "0").code == 1
    most = max(check["smallest"]["atol"] for check in loose["checks"])
    assert run("--atol", most).code == 0
    failed = run("--atol", most * 0.999)
    assert failed.code == 1 and "the smallest that passes is" in failed.err
    both = by_part(run("--atol", "1", "--rtol", "1e-8").json)["temporal"]["smallest"]["atol"]
    assert both < least
    rtol = max(check["smallest"]["rtol"] for check in run("--rtol", "1").json["checks"])
    assert run("--rtol", rtol * 1.001).code == 0 and run("--rtol", rtol * 0.999).code == 1


def test_top1_is_held_to_its_share(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    """Logits turned round: every likeliest class is another, and no tolerance that is met excuses it."""
    turned = changed(small_bundle, tmp_path / "turned", "temporal", scale_weight("mlp_head.4/Gemm", -1))
    wide = cli("validate", turned, "--atol", "100", "--json")
    assert wide.code == 0 and by_part(wide.json)["temporal"]["top1"] < 0.5
    held = cli("validate", turned, "--atol", "100", "--top1", "0.9", "--json")
    assert held.code == 1 and "top-1 agreement" in held.err and "temporal" in held.err


@pytest.mark.parametrize(
    ("part", "node"), [("backbone", "backbone.project/Conv"), ("temporal", "temporal_encoder.layer.0.output/MatMul")]
)
def test_nan_names_its_layer(cli: Cli, small_bundle: Path, tmp_path: Path, part: Any, node: str) -> None:
    bad = changed(small_bundle, tmp_path / "bad", part, scale_weight(node, math.nan))
    result = cli("validate", bad, "--atol", "1e9", "--json")
    layer = node.partition("/")[0]
    assert result.code == 1 and f"NaN first at layer {layer} (node {node})" in result.err
    assert result.json["not_finite"][0] == {**result.json["not_finite"][0], "layer": layer, "node": node, "part": part}


def test_an_infinity_that_does_not_reach_the_output_fails_too(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    """Gelu's input overflows to minus infinity; what leaves is finite again or not: the layer is named either way."""
    bad = changed(small_bundle, tmp_path / "bad", "temporal", scale_weight("mlp_head.1/Gemm", 3e38))
    result = cli("validate", bad, "--json")
    assert result.code == 1 and "Inf first at layer mlp_head.1" in result.err


def test_nan_on_a_video_names_the_layer(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    bad = changed(small_bundle, tmp_path / "bad", "backbone", scale_weight("backbone.out/Gemm", math.nan))
    result = cli("validate", bad, "--video", CLIP, "--frames", "3", "--json")
    assert result.code == 1
    samples = {entry["layer"] for entry in result.json["not_finite"]}
    assert "backbone.out" in samples


def test_first_in_torch_names_the_module() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    with torch.no_grad():
        model[2].weight.fill_(math.inf)
    found = first_in_torch(model, lambda: model(torch.ones(1, 3)), "temporal", "a sample")
    assert found is not None and found.layer == "2"
    assert first_in_torch(model[:2], lambda: model[:2](torch.ones(1, 3)), "temporal", "a sample") is None


def test_full_beyond_memory_is_skipped_and_said(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtn_export.runtime.inference.available_memory", lambda: 10_000_000)
    bundle = Bundle.open(small_bundle)
    with Form(bundle, "ort") as form, Form(bundle, "rewrite") as reference:
        validator = Validator(form, reference, Rule())
        (check,) = validator.frames("full", [1, 5000])
    assert [sample.frames for sample in check.samples] == [1]
    assert "5000 frames" in validator.skipped[0]["what"] and "GB" in validator.skipped[0]["why"]


# the small images keep the exports to seconds; weights are seeded. The first is timm's smallest ResNet.
BACKBONES = [
    "test_resnet.r160_in1k",
    "resnet10t.c3_in1k",
    "mobilenetv4_conv_small_050.e3000_r224_in1k",
    "convnext_atto.d2_in1k",
]
ONE_LAYER = SMALL.replace("num_layers = 2", "num_layers = 1")


@pytest.mark.parametrize(
    "name", [BACKBONES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in BACKBONES[1:])]
)
def test_other_backbones(cli: Cli, tmp_path: Path, name: str) -> None:
    """One frame, and hundreds with jumping indices; 16 bits; and every layer beside PyTorch's."""
    config, out = tmp_path / "config.toml", tmp_path / "bundle"
    config.write_text(
        ONE_LAYER.replace("tests.nets:patches", name).replace("num_classes", "hidden_dim = 64\nnum_classes")
    )
    made = cli("onnx", "--config", config, "--out", out)
    assert made.code == 0, made.err
    result = cli("validate", out, "--frames", "1,300", "--layers", "--video", CLIP, "--json")
    assert result.code == 0, result.err
    assert {sample["frames"] for sample in by_part(result.json, "video")["video"]["samples"]} == {1, 300}
    seeded = cli("validate", out, "--frames", "1,300", "--backend", "fp16", "--against", "rewrite", "--json")
    assert seeded.code == 0, seeded.err
    backbone = result.json["layers"][0]
    assert backbone["part"] == "backbone" and len(backbone["layers"]) > 10
    assert backbone["first_beyond"] is None, backbone["ranked"]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--backend", "abacus"), errors.UsageError, "expected one of ort"),
        (("--against", "abacus"), errors.UsageError, "golden"),
        (("--atol", "-1"), errors.UsageError, "--atol"),
        (("--rtol", "nan"), errors.UsageError, "--rtol"),
        (("--top1", "1.5"), errors.UsageError, "from 0 to 1"),
        (("--frames", "0"), errors.UsageError, "numbers from 1 to"),
        (("--frames", "3,all"), errors.UsageError, "3,all"),
        (("--frames", "3", "--against", "golden"), errors.UsageError, "--against FORM"),
        (("--videos", "no-such-folder"), errors.VideoError, "not a folder"),
        (("--backend", "trt"), errors.GpuError, "GPU"),
        (("--backend", "rewrite", "--bisect"), errors.UsageError, "expected fp16 or bf16"),
        (("--bisect", "--layers"), errors.UsageError, "leave the other options out"),
        (("--backend", "torch", "--layers"), errors.BackendError, "shows no tensors"),
    ],
)
def test_bad_input_is_one_line(
    cli: Cli, small_bundle: Path, arguments: tuple[str, ...], kind: type[errors.VtnError], words: str
) -> None:
    result = cli("validate", small_bundle, *arguments)
    assert result.code == kind.exit_code, result.err
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert "Traceback" not in result.err


def test_weights_that_are_not_here(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    """A bundle of a checkpoint: golden needs no torch, a live reference needs the file, in one line."""
    from vtn_export.bundle import MANIFEST

    trained = tmp_path / "trained"
    shutil.copytree(small_bundle, trained)
    manifest = json.loads((trained / MANIFEST).read_text())
    manifest["weights"] = {**manifest["weights"], "random": False, "checkpoint": "trained.pyth", "seed": None}
    (trained / MANIFEST).write_text(json.dumps(manifest))
    assert cli("validate", trained).code == 0
    live = cli("validate", trained, "--frames", "3")
    assert live.code == errors.UsageError.exit_code and "--against" in live.err
    layers = cli("validate", trained, "--layers")
    assert layers.code == errors.CheckpointError.exit_code and "--checkpoint" in layers.err


def test_a_16_bit_bundle_is_not_typed_again(cli: Cli, tmp_path: Path) -> None:
    config, out = tmp_path / "config.toml", tmp_path / "fp16"
    config.write_text(ONE_LAYER)
    assert cli("onnx", "--config", config, "--out", out, "--precision", "fp16", "--part", "temporal").code == 0
    refused = cli("validate", out, "--backend", "bf16")
    assert refused.code == errors.UsageError.exit_code and "expected an fp32 bundle" in refused.err
    layers = cli("validate", out, "--layers", "--json")
    assert layers.code == 0 and layers.json["emulated"], layers.err
    (report,) = layers.json["layers"]
    assert report["precision"] == "fp16" and report["first_beyond"] is None, report["ranked"]
