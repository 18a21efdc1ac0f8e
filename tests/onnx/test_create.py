"""`create_bundle`: a bundle that was checked, or nothing; on disk what the manifest says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests import oracle
from tests.bundlehelp import snapshot
from tests.model import small
from tests.onnx import graphs
from tests.tolerances import tolerance
from vtn_export.bundle import Bundle
from vtn_export.errors import AccuracyError, BundleError, CheckpointError, ConfigError, OutputError, UsageError
from vtn_export.model.checkpoint import fingerprint, load, random_model
from vtn_export.model.config import ModelConfig
from vtn_export.onnx import create
from vtn_export.onnx import part as part_module
from vtn_export.onnx.create import Exported, create_bundle
from vtn_export.onnx.memory import activation_bytes
from vtn_export.onnx.op import OP_TYPE
from vtn_export.runtime import golden
from vtn_export.spec import FRAMES, PARTS
from vtn_export.untrusted import sha256

CONFIG = small.config(layers=2)
LOUD = small.config(layers=2, backbone="tests.nets:loud", options={"factor": 1e6})


@pytest.fixture(scope="module", autouse=True)
def _once() -> Iterator[None]:
    """Tracing and the float64 pass take seconds and are the same for the same weights: done once each."""
    done: dict[tuple[str, ...], Any] = {}

    def traced(name: str, real: Callable[..., onnx.ModelProto]) -> Callable[..., onnx.ModelProto]:
        def export(model: Any, *arguments: str) -> onnx.ModelProto:
            key = (name, fingerprint(model, backbone_only=False), *arguments)
            if key not in done:
                done[key] = real(model, *arguments).SerializeToString()
            return onnx.ModelProto.FromString(done[key])  # whoever writes a graph takes it apart

        return export

    real_reference = create._reference

    def reference(model: Any, frames: Any, frame_index: Any, precision: Any) -> Any:
        key = ("reference", fingerprint(model, backbone_only=False), precision)
        if key not in done:
            done[key] = real_reference(model, frames, frame_index, precision)
        return done[key]

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for name in ("export_backbone", "export_temporal"):
            patch.setattr(create, name, traced(name, getattr(create, name)))
        patch.setattr(create, "_reference", reference)
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "trained.pyth"
    torch.save({"model_state": small.sharp(random_model(CONFIG), 3).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Exported:
    """A float32 bundle of a trained-looking checkpoint, all parts."""
    return create_bundle(tmp_path_factory.mktemp("bundle") / "out", checkpoint=checkpoint, config=CONFIG)


def test_fp32_bundle(exported: Exported, checkpoint: Path) -> None:
    bundle = Bundle.open(exported.bundle.path)
    bundle.verify()
    m = bundle.manifest
    files = {"full.onnx", "backbone.onnx", "temporal.onnx", "labels.txt", "golden.npz"}
    assert set(m.files) == files and {p.name for p in bundle.path.iterdir()} == files | {"manifest.json"}
    assert (m.precision, m.input_type, m.op_version, m.random_weights) == ("fp32", "uint8", 1, False)
    assert m.weights["checkpoint"] == "trained.pyth" and m.weights["checkpoint_sha256"] == sha256(checkpoint)
    assert ModelConfig.from_dict(m.config).resolve(64) == load(checkpoint, CONFIG).config
    assert {"vtn-export", "torch", "onnx", "onnxruntime"} <= set(m.tools)
    assert bundle.labels() == [f"class_{i}" for i in range(10)]
    assert {check.part for check in exported.checks} == set(PARTS) and not exported.kept_fp32
    for part in PARTS:
        entry = m.graphs[part]
        assert 0 <= entry.measured <= entry.tolerance == 1e-5
        path = bundle.graph_path(part)
        onnx.checker.check_model(str(path), full_check=True)
        opened = graphs.session(path)
        for sample in golden.bundle_samples(bundle, part):
            (name,) = sample.expected
            got = graphs.run(opened, **sample.inputs)
            assert oracle.error(got, sample.expected[name]) <= tolerance("graph_fp32"), sample.name
    for name in ("manifest.json", "full.onnx", "golden.npz"):
        assert str(bundle.path.parent).encode() not in (bundle.path / name).read_bytes()
        assert str(checkpoint.parent).encode() not in (bundle.path / name).read_bytes()
    json.loads((bundle.path / "manifest.json").read_text(), parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_golden_file_is_what_the_model_gives(exported: Exported, checkpoint: Path) -> None:
    """At least 8 real uint8 frames, other lengths for the temporal part, and PyTorch's own numbers."""
    bundle = exported.bundle
    model = load(checkpoint, CONFIG).double()
    with np.load(bundle.path / "golden.npz") as stored:
        frames = stored["frames"]
        assert frames.dtype == np.uint8 and frames.shape == (8, 32, 32, 3)
        assert frames.std() > 20 and not np.array_equal(frames[0], frames[7])  # a picture that moves
        assert (np.diff(stored["frame_index"]) > 0).all()
        assert oracle.error(stored["features"], model.frame_features(torch.from_numpy(frames))) < 1e-6
    samples = golden.bundle_samples(bundle, "temporal")
    shapes = [sample.inputs["features"].shape[:2] for sample in samples]
    assert max(batch for batch, _ in shapes) > 1 and {t for _, t in shapes} >= {1, 19, 251} and (2, 41) not in shapes
    assert any((sample.inputs["lengths"] < shape[1]).any() for sample, shape in zip(samples, shapes, strict=True))
    for sample in samples:
        inputs = {name: torch.from_numpy(value) for name, value in sample.inputs.items()}
        expected = model.classify(inputs["features"].double(), inputs["frame_index"], inputs["lengths"])
        assert oracle.error(sample.expected["logits"], expected) < 1e-6
    for sample in golden.bundle_samples(bundle, "full"):
        frames, index, lengths = (torch.from_numpy(sample.inputs[n]) for n in ("frames", "frame_index", "lengths"))
        assert oracle.error(sample.expected["logits"], model(frames, index, lengths)) < 1e-6


def test_random_weights_are_in_the_manifest_and_repeat(tmp_path: Path) -> None:
    made = [create_bundle(tmp_path / name, config=CONFIG, parts=["temporal"]).bundle for name in ("a", "b")]
    assert made[0].manifest.random_weights and made[0].manifest.weights["seed"] == 0
    assert made[0].manifest.weights == made[1].manifest.weights
    for name in ("temporal.onnx", "labels.txt"):
        assert made[0].manifest.files[name] == made[1].manifest.files[name]


@pytest.mark.parametrize("parts", [("temporal",), ("full",)])
def test_single_parts(parts: tuple[Any, ...], tmp_path: Path, checkpoint: Path) -> None:
    bundle = create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG, parts=parts).bundle
    assert tuple(bundle.manifest.graphs) == parts
    assert {p.name for p in bundle.path.glob("*.onnx")} == {f"{part}.onnx" for part in parts}
    with pytest.raises(BundleError, match="--part all"):
        bundle.graph(next(part for part in PARTS if part not in parts))


def test_external_data_over_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Exported, checkpoint: Path
) -> None:
    limit = 400_000
    monkeypatch.setattr(part_module, "EXTERNAL_DATA_BYTES", limit)
    bundle = create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG).bundle
    outside = {part for part in PARTS if f"{part}.onnx.data" in bundle.manifest.files}
    assert outside == {"full", "temporal"}
    for part in PARTS:
        path = bundle.graph_path(part)
        assert path.stat().st_size < limit
        assert graphs.session(path) is not None
        for sample in golden.bundle_samples(bundle, part)[:1]:
            (name,) = sample.expected
            got = graphs.run(graphs.session(path), **sample.inputs)
            assert oracle.error(got, sample.expected[name]) <= tolerance("graph_fp32")
    assert not [name for name in exported.bundle.manifest.files if name.endswith(".data")]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_typed_bundles_pass_their_check(precision: Any, tmp_path: Path, checkpoint: Path) -> None:
    made = create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG, precision=precision)
    for part, entry in made.bundle.manifest.graphs.items():
        assert 0 < entry.measured <= entry.tolerance < 0.5, part
        typed = onnx.load(made.bundle.graph_path(part))
        onnx.checker.check_model(typed, full_check=True)
        whole = sum(len(t.raw_data) for t in typed.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
        half = sum(len(t.raw_data) for t in typed.graph.initializer if t.data_type != onnx.TensorProto.FLOAT)
        # LayerNorms, the last layer, and what makes a graph's output stay float32
        assert half > (0.9 if part == "backbone" else 5) * whole, part
    assert any("LayerNormalization" in kept.reason for kept in made.kept_fp32)


def test_overflowing_graph_is_refused(tmp_path: Path) -> None:
    """Activations of about 1e6 pass in float32 and bf16; in fp16 they are infinite, and so is the claim."""
    with pytest.raises(AccuracyError) as caught:
        create_bundle(tmp_path / "out", config=LOUD, parts=["backbone"], precision="fp16")
    message = str(caught.value)
    assert "backbone: features: absolute error" in message and "beyond tolerance 0.0" in message
    assert "\n" not in message and caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []
    passed = create_bundle(tmp_path / "out", config=LOUD, parts=["backbone"], precision="bf16")
    assert all(check.passed for check in passed.checks)


def test_infinite_features_are_refused(tmp_path: Path) -> None:
    """Also where PyTorch, rounded to the type, would be infinite in the very output that is judged."""
    rising = small.config(layers=2, backbone="tests.nets:rising", options={"factor": 1e3})
    with pytest.raises(AccuracyError, match="features"):
        create_bundle(tmp_path / "out", config=rising, parts=["backbone"], precision="fp16")
    assert list(tmp_path.iterdir()) == []


def test_nodes_kept_in_float32_save_the_graph(tmp_path: Path) -> None:
    names = [
        node.name for node in _backbone_nodes(tmp_path) if node.name.startswith(("backbone.up/", "backbone.down/"))
    ]
    assert names
    exported = create_bundle(tmp_path / "fp16", config=LOUD, parts=["backbone"], precision="fp16", keep_fp32=names)
    assert {kept.node for kept in exported.kept_fp32 if kept.reason == "asked for"} == set(names)
    with pytest.raises(UsageError, match=r"no node 'backbone\.up/NoSuch'"):
        create_bundle(
            tmp_path / "no", config=LOUD, parts=["backbone"], precision="fp16", keep_fp32=["backbone.up/NoSuch"]
        )
    assert not (tmp_path / "no").exists()


def _backbone_nodes(tmp_path: Path) -> list[onnx.NodeProto]:
    path = create_bundle(tmp_path / "fp32", config=LOUD, parts=["backbone"]).bundle.graph_path("backbone")
    return [node for node in onnx.load(path).graph.node if any(node.output)]


def test_wrong_graph_is_refused_and_the_old_bundle_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG, parts=["temporal"])
    before = snapshot(tmp_path)
    real = create.export_temporal

    def off_by_one(model: Any) -> onnx.ModelProto:
        graph = real(model)
        for node in graph.graph.node:
            for attribute in node.attribute:
                if node.op_type == OP_TYPE and attribute.name == "one_sided_window":
                    attribute.i = 10
        return graph

    monkeypatch.setattr(create, "export_temporal", off_by_one)
    with pytest.raises(AccuracyError) as caught:
        create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG)
    message = str(caught.value)
    assert "temporal: logits: relative error" in message and "beyond tolerance 1e-05" in message
    assert "the smallest that passes is" in message and "backbone" not in message
    assert snapshot(tmp_path) == before


STAGES = ("model", "golden frames", "export graphs", "check full", "check backbone", "check temporal", "write")


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_at_any_stage(stage: str, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("the old one")
    seen = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        seen.append(name)
        yield
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_bundle(tmp_path / "out", checkpoint=checkpoint, config=CONFIG, step=step)
    assert seen[-1] == stage and set(seen) <= {*STAGES, "PyTorch float64 reference"}
    assert snapshot(tmp_path) == {"out/manifest.json": b"the old one"}
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_bad_targets_are_told_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    started: list[str] = []

    @contextmanager
    def step(name: str) -> Iterator[None]:
        started.append(name)
        yield

    with pytest.raises(OutputError, match="a file is in the way"):
        create_bundle(tmp_path / "file", config=CONFIG, step=step)
    with pytest.raises(CheckpointError):
        create_bundle(tmp_path / "out", checkpoint=tmp_path / "none.pyth", config=CONFIG)
    with pytest.raises(ConfigError, match="got 2 names, expected 10"):
        create_bundle(tmp_path / "out", config=CONFIG, labels=["a", "b"])
    assert started == [] and [item.name for item in tmp_path.iterdir()] == ["file"]


def test_float_input_bundle(tmp_path: Path, checkpoint: Path) -> None:
    labels = list("abcdefghij")
    bundle = create_bundle(
        tmp_path / "out", checkpoint=checkpoint, config=CONFIG, input_type="float32", labels=labels
    ).bundle
    assert bundle.manifest.input_type == "float32" and bundle.labels() == list("abcdefghij")
    sample = golden.bundle_samples(bundle, "full")[0]
    assert sample.inputs[FRAMES].dtype == np.float32 and sample.inputs[FRAMES].shape[2:] == (3, 32, 32)


@pytest.mark.parametrize("part", PARTS)
def test_memory_forecast(part: Any, exported: Exported) -> None:
    """fixed + per frame · frames, at lengths ten to a hundred times those measured: never far below, at most double."""
    bundle = exported.bundle
    entry = bundle.graph(part)
    for frames in (64, 600):
        if part == "backbone":
            inputs = {FRAMES: np.zeros((frames, 32, 32, 3), np.uint8)}
        elif part == "temporal":
            inputs = graphs.temporal_inputs(128, 1, frames)
        else:
            index = np.zeros((1, frames), np.int32)
            pixels = np.zeros((1, frames, 32, 32, 3), np.uint8)
            inputs = {FRAMES: pixels, "frame_index": index, "lengths": np.array([frames], np.int32)}
        (real,) = activation_bytes(bundle.graph_path(part), entry.spec, inputs)
        forecast = entry.fixed_bytes + entry.bytes_per_frame * frames
        assert 0.95 * real <= forecast <= 2 * real, (frames, real, forecast)
