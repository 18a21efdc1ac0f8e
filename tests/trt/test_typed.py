"""Typing an fp32 bundle: what stays float32 by its range, the gate, and where its bound comes from."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.trt.conftest import SMALL, Cli, make
from vtn_export.bundle import GOLDEN, MANIFEST, Bundle
from vtn_export.errors import AccuracyError, BundleError, UsageError
from vtn_export.onnx.precision import max_of
from vtn_export.runtime.golden import bundle_samples
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import FEATURES
from vtn_export.trt import ranges
from vtn_export.trt.ranges import HEADROOM
from vtn_export.trt.typed import check_keep_list, load, tolerance, typed_graph
from vtn_export.untrusted import sha256


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose inner values go far past fp16's end."""
    config = {**SMALL, "backbone": {"name": "tests.trt.nets:swelling"}}
    return make(tmp_path_factory.mktemp("loud") / "bundle", config)


def test_ranges_are_what_the_tensors_hold(small_bundle: Path) -> None:
    """The graph's own reductions against the arrays themselves."""
    bundle = Bundle.open(small_bundle)
    spec = bundle.graph("backbone").spec
    samples = bundle_samples(bundle, "backbone")
    model = load(bundle.graph_path("backbone"))
    seen = ranges.observe(model, spec, [sample.inputs for sample in samples])
    with OrtSession(bundle.graph_path("backbone"), spec) as session:
        features = [session.run(sample.inputs)[FEATURES] for sample in samples]
    largest = max(float(np.abs(values).max()) for values in features)
    assert seen[FEATURES] == pytest.approx(largest, rel=1e-6)
    made = {name for node in model.graph.node for name in node.output}
    assert made >= set(seen) and len(seen) > 10


def test_inputs_of_the_graph_have_ranges_too(small_bundle: Path) -> None:
    """Features beyond fp16 come into the temporal part from outside: what reads them stays float32."""
    bundle = Bundle.open(small_bundle)
    model, spec = load(bundle.graph_path("temporal")), bundle.graph("temporal").spec
    sample = dict(bundle_samples(bundle, "temporal")[1].inputs)
    sample[FEATURES] = sample[FEATURES] / np.abs(sample[FEATURES]).max() * np.float32(1e5)
    seen = ranges.observe(model, spec, [sample])
    assert seen[FEATURES] == pytest.approx(1e5)
    readers = {node.name for node in model.graph.node if FEATURES in node.input}
    assert readers & set(ranges.near_limit(model, seen, "fp16"))


def test_a_node_near_the_end_stays_fp32(loud: Path) -> None:
    bundle = Bundle.open(loud)
    graph = typed_graph(bundle, "backbone", "fp16")
    ranged = [kept for kept in graph.kept if kept.reason.startswith("values reach")]
    assert ranged and all("near the end of fp16 (6.55e+04)" in kept.reason for kept in ranged)
    for kept in ranged:
        assert float(kept.reason.split()[2].rstrip(",")) > max_of("fp16") / HEADROOM
    types = {tensor.data_type for tensor in graph.model.graph.initializer}
    assert TensorProto.FLOAT16 in types  # the rest is typed
    assert all(check.passed for check in graph.checks)
    assert {kept.node for kept in ranged} <= {node.name for node in graph.model.graph.node}


def test_without_the_ranges_the_gate_refuses_it(loud: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rounding copy overflows as fp16 does."""
    monkeypatch.setattr("vtn_export.trt.typed.near_limit", lambda *_: {})
    with pytest.raises(AccuracyError, match="beyond tolerance"):
        typed_graph(Bundle.open(loud), "backbone", "fp16")


def test_an_overflow_sets_no_bound_of_its_own(loud: Path, small_bundle: Path) -> None:
    """The yardstick rounds to fp16's digits beyond fp16's end: its bound stays that of a quiet model."""
    loud_bound, quiet = (tolerance(Bundle.open(path), "backbone", "fp16") for path in (loud, small_bundle))
    assert loud_bound < 4 * quiet


def test_bf16_needs_no_ranges(loud: Path) -> None:
    graph = typed_graph(Bundle.open(loud), "backbone", "bf16")
    assert not [kept for kept in graph.kept if kept.reason.startswith("values reach")]
    assert all(check.passed for check in graph.checks)


def test_calibration_sees_further_than_golden_frames(bundle: Path, shipped: Path) -> None:
    """A backbone that a golden frame of black keeps quiet: a real video shows its range."""
    golden = dict(np.load(bundle / GOLDEN))
    model = onnx.load(bundle / "backbone.onnx")
    # what the frames are multiplied with first grows until real pixels pass the headroom, black ones do not
    for node in model.graph.node:
        if node.op_type == "Conv":
            weight = next(t for t in model.graph.initializer if t.name == node.input[1])
            values = onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1e5), weight.name))
    onnx.save(model, bundle / "backbone.onnx")
    opened = _rehashed(bundle, "backbone.onnx")
    spec = opened.graph("backbone").spec
    grey = {"frames": np.full_like(golden["frames"][:1], 115)}  # 0.45 of 255: nothing after normalisation
    from vtn_export.trt.typed import calibration_calls

    quiet = ranges.near_limit(model, ranges.observe(model, spec, [grey]), "fp16")
    heard = ranges.near_limit(
        model, ranges.observe(model, spec, [grey, *calibration_calls(opened, "backbone", shipped)]), "fp16"
    )
    assert len(heard) > len(quiet)


@pytest.mark.parametrize("part", ["full", "backbone", "temporal"])
def test_calibration_feeds_every_part(small_bundle: Path, shipped: Path, part: Any) -> None:
    graph = typed_graph(Bundle.open(small_bundle), part, "fp16", calibrate=shipped)
    assert graph.checks and all(check.passed for check in graph.checks)


def test_keep_list(small_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(small_bundle)
    plain = typed_graph(bundle, "temporal", "fp16")
    free = {node.name for node in plain.model.graph.node if node.op_type == "MatMul"} - {k.node for k in plain.kept}
    name = sorted(free)[0]
    listing = tmp_path / "keep.txt"
    listing.write_text(f"# sensitive\n\n{name}\n")
    graph = typed_graph(bundle, "temporal", "fp16", keep_fp32=ranges.read_keep_list(listing))
    assert (name, "asked for") in {(kept.node, kept.reason) for kept in graph.kept}
    assert graph.weight_bytes > plain.weight_bytes
    check_keep_list(bundle, ("backbone", "temporal"), [name])  # of one part, given for both
    with pytest.raises(UsageError, match="no node 'nothing' in backbone, temporal"):
        check_keep_list(bundle, ("backbone", "temporal"), [name, "nothing"])


def test_gate_refuses_before_anything_is_built(bundle: Path, cli: Cli) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["graphs"]["temporal"]["accuracy"]["typed_bounds"] = {"fp16": 1e-9, "bf16": 1e-9}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    result = cli("trt", bundle, "--part", "temporal", "--fp16")
    assert result.code == 1
    assert "beyond tolerance 1e-09" in result.err and "the smallest that passes is" in result.err
    assert not list((bundle / "engines").glob("*.engine"))


def test_a_bundle_without_bounds(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest["graphs"]["temporal"]["accuracy"]["typed_bounds"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no accuracy bound for temporal in fp16; export it again"):
        typed_graph(Bundle.open(bundle), "temporal", "fp16")


def test_bounds_are_of_every_part_and_type(small_bundle: Path) -> None:
    for part, entry in Bundle.open(small_bundle).manifest.graphs.items():
        assert set(entry.typed_bounds) == {"fp16", "bf16"}, part
        fp16, bf16 = entry.typed_bounds["fp16"], entry.typed_bounds["bf16"]
        assert fp16 and bf16 and math.isfinite(bf16)
        assert 2 < bf16 / fp16 < 32  # the types' steps are 8 apart


def test_a_typed_bundle_is_built_as_it_is(small_bundle: Path, tmp_path: Path, cli: Cli) -> None:
    bundle = make(tmp_path / "fp16", SMALL, precision="fp16", parts=("temporal",))
    graph = typed_graph(Bundle.open(bundle), "temporal", "fp16")
    assert graph.path is not None and graph.checks == ()
    for options, words in (
        (("--fp32",), "rounded already"),
        (("--bf16",), "rounded already"),
        (("--fp16", "--calibrate", bundle / GOLDEN), "nothing is typed"),
    ):
        result = cli("trt", bundle, "--part", "temporal", *options)
        assert result.code == 2 and words in result.err
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["precision"] = "bf16"
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="its weights are fp16, the manifest says bf16"):
        typed_graph(Bundle.open(bundle), "temporal", "bf16")
    with pytest.raises(UsageError, match="expected an fp32 bundle"):
        from vtn_export.trt.typed import resolve_precision

        resolve_precision(Bundle.open(bundle), "fp16")


def _rehashed(bundle: Path, name: str) -> Bundle:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = sha256(bundle / name)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return Bundle.open(bundle)


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    from vtn_export.video import shipped_clip

    return Path(shutil.copy(shipped_clip(), tmp_path / "clip.mp4"))
