"""Every part of real models in every precision, parsed and built by TensorRT-RTX; ViT-B under its limits."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.trt.conftest import Cli, make
from vtn_export.model.config import ModelConfig
from vtn_export.spec import PARTS, TYPED_PRECISIONS

pytestmark = pytest.mark.usefixtures("rtx")

# A third of a video's default: builds do not depend on the range's length, forecasts do.
FRAMES = "1:32:256"


# blocks repeat each other: three of twelve have every kind of node, and a quarter of the work
MODELS = [
    pytest.param(("deit_tiny_vtn", {"depth": 3}), id="deit_tiny_vtn of 3 blocks"),
    pytest.param(("deit_tiny_vtn", {}), id="deit_tiny_vtn", marks=pytest.mark.slow),
    pytest.param(("resnet50_vtn", {}), id="resnet50_vtn", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    preset, options = request.param
    config = ModelConfig.from_any(preset).to_json()
    config["backbone"]["options"] |= options
    folder = tmp_path_factory.mktemp(preset) / "bundle"
    yield make(folder, config)
    shutil.rmtree(folder)


@pytest.mark.parametrize("precision", TYPED_PRECISIONS)
def test_all_parts(model: Path, cli: Cli, precision: str) -> None:
    result = cli("trt", model, f"--{precision}", "--frames", FRAMES, "--compute-capability", "8.6,12.0", "--json")
    assert result.code == 0, result.err
    assert [part["part"] for part in result.json["parts"]] == list(PARTS)
    for part in result.json["parts"]:
        record = part["record"]
        assert record["precision"] == precision and record["compute_capabilities"] == ["8.6", "12.0"]
        assert (model / part["engine"]).stat().st_size == record["engine_bytes"]
        if precision != "fp32":
            assert record["accuracy"]["measured"] <= record["accuracy"]["tolerance"]


@pytest.mark.slow
def test_vit_b(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> None:
    """VTN_VIT_B names an fp32 bundle of vit_b_vtn that is there already; without it one is exported (minutes)."""
    given = os.environ.get("VTN_VIT_B")
    folder = tmp_path_factory.mktemp("vit") / "bundle"
    bundle = Path(shutil.copytree(given, folder)) if given else make(folder, "vit_b_vtn")
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    result = cli("trt", bundle, "--fp16", "--json")
    assert result.code == 0, result.err
    parts: dict[str, Any] = {part["part"]: part for part in result.json["parts"]}
    halves = [parts["temporal"], parts["backbone"]]
    built = [part["result"] for part in halves]
    assert sum(one["cpu_seconds"] for one in built) <= 15  # not wall time: test machines are shared
    assert max(one["peak_bytes"] for one in built) <= 3 * 2**30
    weights = sum(part["forecast"]["weights"] for part in halves)
    engines = sum(part["record"]["engine_bytes"] for part in halves)
    assert engines <= 1.1 * weights
