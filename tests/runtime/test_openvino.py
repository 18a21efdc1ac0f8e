"""OpenVINO against PyTorch and ONNX Runtime: every length, batch, window kind, both backbones, 16-bit, big weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.clihelp import Cli, cli, small_bundle, small_config  # noqa: F401
from tests.model import small
from tests.onnx.graphs import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, Exported, export, frames_of, temporal_inputs
from tests.oracle import error
from tests.tolerances import tolerance
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import BackendError, BundleError, ShapeError
from vtn_export.onnx.check import check_samples
from vtn_export.onnx.create import create_bundle
from vtn_export.runtime.golden import bundle_samples
from vtn_export.runtime.inlined import inlined
from vtn_export.runtime.openvino import OpenVinoSession
from vtn_export.spec import LOGITS, OP_DOMAIN, Part, Precision
from vtn_export.video import shipped_clip

LENGTHS_TO_TRY = (1, 2, 9, 17, 251, 1000)

# every export takes seconds: what the temporal part can vary in one, the other plain over convolutions
KINDS: dict[str, dict[str, Any]] = {
    "patches": {"window": [4, 9, 18], "dilation": [1, 2, 3], "globals_": 2, "positions": 64},
    "convolutions": {"backbone": "test_resnet", "causal": True, "layers": 2},
}


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest) -> Exported:
    return export(small.config(**KINDS[request.param]))


@pytest.fixture(scope="module")
def sessions(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict[Part, OpenVinoSession]:
    folder = tmp_path_factory.mktemp("openvino")
    opened = {}
    for part, graph in exported.graphs.items():
        onnx.save(graph, folder / f"{part}.onnx")
        opened[part] = OpenVinoSession(folder / f"{part}.onnx", exported.specs[part], threads=1)
    return opened


@pytest.mark.parametrize("frames", LENGTHS_TO_TRY)
@pytest.mark.parametrize("batch", [1, 3])
def test_temporal_graph_at_every_length(
    exported: Exported, sessions: dict[Part, OpenVinoSession], frames: int, batch: int
) -> None:
    inputs = temporal_inputs(exported.model.config.hidden_dim or 0, batch, frames)
    got = sessions["temporal"].run(inputs)[LOGITS]
    expected = exported.expected_logits(inputs[FEATURES], inputs[FRAME_INDEX], inputs[LENGTHS])
    assert got.dtype == np.float32
    assert error(got, expected) <= tolerance("graph_fp32")


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_backbone_in_chunks(exported: Exported, sessions: dict[Part, OpenVinoSession], chunk: int) -> None:
    frames, features = exported.pool
    got = sessions["backbone"].run({FRAMES: frames[:chunk]})["features"]
    assert error(got, features[:chunk]) <= tolerance("graph_fp32")


def test_full_graph_with_a_ragged_batch(exported: Exported, sessions: dict[Part, OpenVinoSession]) -> None:
    frames = frames_of(exported, 2, 7)
    index = np.cumsum(np.full((2, 7), 3), axis=1).astype(np.int32)
    lengths = np.array([7, 2], np.int32)
    got = sessions["full"].run({FRAMES: frames, FRAME_INDEX: index, LENGTHS: lengths})[LOGITS]
    features = np.stack([exported.expected_features(clip) for clip in frames])
    assert error(got, exported.expected_logits(features, index, lengths)) <= tolerance("graph_fp32")


def test_results_stay_when_the_session_runs_again(exported: Exported, sessions: dict[Part, OpenVinoSession]) -> None:
    width = exported.model.config.hidden_dim or 0
    first = sessions["temporal"].run(temporal_inputs(width, 2, 17))[LOGITS]
    kept = first.copy()
    sessions["temporal"].run(temporal_inputs(width, 2, 9))
    assert np.array_equal(first, kept)


def test_inlined_graph_is_standard_onnx_and_the_model_is_left_alone(exported: Exported) -> None:
    model = exported.graphs["temporal"]
    before = model.SerializeToString(deterministic=True)
    flat = inlined(model)
    assert model.SerializeToString(deterministic=True) == before
    assert not flat.functions and {node.domain for node in flat.graph.node} <= {"", "ai.onnx"}
    assert any(node.domain == OP_DOMAIN for node in model.graph.node)
    assert [i.name for i in flat.graph.initializer] == [i.name for i in model.graph.initializer]
    onnx.checker.check_model(flat, full_check=True)


def test_wrong_inputs_are_refused_as_everywhere(exported: Exported, sessions: dict[Part, OpenVinoSession]) -> None:
    inputs = temporal_inputs(exported.model.config.hidden_dim or 0, 1, 5)
    with pytest.raises(ShapeError, match="int64"):
        sessions["temporal"].run({**inputs, FRAME_INDEX: inputs[FRAME_INDEX].astype(np.int64)})


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_golden_samples_of_every_precision(
    small_bundle: Path,  # noqa: F811
    small_config: Path,  # noqa: F811
    tmp_path: Path,
    precision: Precision,
) -> None:
    path = small_bundle
    if precision != "fp32":
        path = tmp_path / "b"
        create_bundle(path, config=small_config, precision=precision)
    bundle = Bundle.open(path)
    with Sessions(bundle, "openvino") as sessions:
        for part, entry in bundle.manifest.graphs.items():
            samples = bundle_samples(bundle, part)
            for check in check_samples(
                sessions[part], samples, part=part, precision=precision, tolerance=entry.tolerance
            ):
                assert check.passed, check.describe()


def test_three_modes_agree_with_onnx_runtime_through_the_command_line(
    cli: Cli,  # noqa: F811
    small_bundle: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    stored = tmp_path / "f.npz"
    assert cli("features", small_bundle, shipped_clip(), "--out", stored, "--backend", "openvino").code == 0
    expected = cli("run", small_bundle, shipped_clip(), "--json").json["logits"]
    for options in ((shipped_clip(), "--mode", "full"), (shipped_clip(), "--chunk", "5"), (stored,)):
        result = cli("run", small_bundle, *options, "--backend", "openvino", "--json")
        assert result.code == 0, result.err
        assert result.json["backend"] == "openvino"
        assert error(np.array(result.json["logits"]), np.array(expected)) <= tolerance("modes")


@pytest.fixture
def external(small_bundle: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A temporal graph whose weights are in a file beside it, as those over 1 GB are."""
    path = tmp_path / "temporal.onnx"
    onnx.save(
        onnx.load(small_bundle / "temporal.onnx"),
        path,
        save_as_external_data=True,
        location="temporal.onnx.data",
        size_threshold=64,
    )
    return path


def test_weights_beside_the_graph(small_bundle: Path, external: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bundle = Bundle.open(small_bundle)
    assert external.stat().st_size < (small_bundle / "temporal.onnx").stat().st_size
    inputs = temporal_inputs(64, 2, 33)
    monkeypatch.chdir(external.parent)  # a relative path works, too
    with OpenVinoSession(Path(external.name), bundle.graph("temporal").spec) as session:
        got = session.run(inputs)[LOGITS]
    with Sessions(bundle, "openvino") as sessions:
        assert np.array_equal(got, sessions["temporal"].run(inputs)[LOGITS])


def test_weights_elsewhere_are_refused(small_bundle: Path, external: Path) -> None:  # noqa: F811
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../other.data"
    external.write_bytes(model.SerializeToString())
    with pytest.raises(BackendError, match=r"weights in '../other\.data', expected temporal\.onnx\.data"):
        OpenVinoSession(external, Bundle.open(small_bundle).graph("temporal").spec)


def test_short_weights_are_one_line(small_bundle: Path, external: Path) -> None:  # noqa: F811
    data = external.with_name("temporal.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"cannot load temporal\.onnx") as raised:
        OpenVinoSession(external, Bundle.open(small_bundle).graph("temporal").spec)
    assert "\n" not in str(raised.value)


def test_a_changed_graph_is_not_loaded(small_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(small_bundle, tmp_path / "b")
    graph = tmp_path / "b" / "temporal.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="SHA-256"), Sessions(Bundle.open(tmp_path / "b"), "openvino") as sessions:
        _ = sessions["temporal"]


def test_what_is_no_graph_is_one_line(small_bundle: Path, tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "temporal.onnx"
    path.write_bytes(b"nothing like it")
    with pytest.raises(BackendError, match=r"cannot load temporal\.onnx"):
        OpenVinoSession(path, Bundle.open(small_bundle).graph("temporal").spec)


def test_a_closed_session_says_so(small_bundle: Path) -> None:  # noqa: F811
    with Sessions(Bundle.open(small_bundle), "openvino") as sessions:
        session = sessions["temporal"]
    with pytest.raises(BackendError, match="closed"):
        session.run(temporal_inputs(64, 1, 5))


def test_without_the_package_the_extra_is_named(
    cli: Cli,  # noqa: F811
    small_bundle: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    result = cli("run", small_bundle, shipped_clip(), "--backend", "openvino")
    assert result.code == 3
    assert "pip install 'vtn-export[openvino]'" in result.err
