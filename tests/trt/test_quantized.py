"""INT8 and FP8 bundles as TensorRT-RTX engines: what is parsed, what is refused before a build. ViT-B is slow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trt.conftest import Cli, make
from vtn_export.errors import UsageError
from vtn_export.spec import QUANTIZED_PRECISIONS

pytestmark = pytest.mark.usefixtures("rtx")

NOISE = ("--random-noise", "--clip-frames", 1, "--max-drop", 100)  # what is built does not depend on the ranges


@pytest.fixture(scope="module")
def quantized(small_bundle: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    for precision in QUANTIZED_PRECISIONS:
        done = cli("quantize", small_bundle, f"--{precision}", *NOISE, "--out", folder / precision)
        assert done.code == 0, done.err
    return {precision: folder / precision for precision in QUANTIZED_PRECISIONS}


@pytest.mark.parametrize(("precision", "capability"), [("int8", "8.6"), ("fp8", "8.9")])
def test_small_engines(quantized: dict[str, Path], cli: Cli, precision: str, capability: str) -> None:
    bundle = quantized[precision]
    layers = cli("inspect", bundle, "--json").json["quantization"]["layers"]
    for part, scope in (("backbone", "backbone."), ("temporal", "temporal_encoder.")):
        done = cli("trt", bundle, "--part", part, "--compute-capability", capability, "--json")
        assert done.code == 0, done.err
        (built,) = done.json["parts"]
        assert built["record"]["precision"] == precision
        # every layer that was quantized is a product between two dequantized 8-bit tensors once parsed
        assert built["result"]["quantized_products"] == sum(name.startswith(scope) for name in layers) > 0
        assert built["record"]["build"]["quantized_products"] > 0


def test_fp8_builds_for_gpus_that_have_it(quantized: dict[str, Path], cli: Cli) -> None:
    done = cli("trt", quantized["fp8"], "--part", "backbone", "--json")
    assert done.json["parts"][0]["record"]["compute_capabilities"] == ["8.9", "12.0", "12.1"]


@pytest.mark.parametrize(
    ("precision", "options", "text"),
    [
        ("fp8", ("--target", "jetson-agx-orin"), "Jetson AGX Orin has no fp8; it has fp32, fp16, bf16, int8"),
        ("fp8", ("--target", "rtx"), "has no fp8"),
        ("fp8", ("--compute-capability", "8.6,8.9"), "SM 8.6 has no fp8, expected SM 8.9 or newer"),
        ("int8", ("--fp8",), "got a bundle of int8, expected one of fp8"),
        ("int8", ("--fp16",), "rounded already"),
        ("int8", ("--int8", "--fp8"), "one precision"),
    ],
)
def test_refused_before_the_build(
    quantized: dict[str, Path], cli: Cli, precision: str, options: tuple[str, ...], text: str
) -> None:
    before = sorted(quantized[precision].rglob("*"))
    done = cli("trt", quantized[precision], *options)
    assert done.code == UsageError.exit_code and len(done.err.splitlines()) == 1 and text in done.err
    assert sorted(quantized[precision].rglob("*")) == before


def test_an_fp32_bundle_is_sent_to_quantize(small_bundle: Path, cli: Cli) -> None:
    done = cli("trt", small_bundle, "--int8")
    assert done.code == UsageError.exit_code and "vtn-export quantize" in done.err


def test_a_library_without_the_type(monkeypatch: pytest.MonkeyPatch, quantized: dict[str, Path], cli: Cli) -> None:
    from vtn_export.trt.api import Api

    monkeypatch.setattr(Api, "has_type", lambda self, precision: precision != "fp8")
    done = cli("trt", quantized["fp8"])
    assert done.code == UsageError.exit_code and "has no fp8" in done.err


@pytest.mark.slow
def test_vit_b(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> None:
    """VTN_VIT_B names an fp32 bundle of vit_b_vtn that is there already; without it one is exported (minutes)."""
    given = os.environ.get("VTN_VIT_B")
    folder = tmp_path_factory.mktemp("vit")
    bundle = Path(given) if given else make(folder / "fp32", "vit_b_vtn", parts=("backbone", "temporal"))
    for precision, attention in (("int8", 0), ("fp8", 22)):  # two products in each of eleven whole blocks
        out = folder / precision
        done = cli("quantize", bundle, f"--{precision}", *NOISE, "--clips", 8, "--out", out, "--json")
        assert done.code == 0, done.err
        layers = done.json["quantization"]["layers"]
        result = cli("trt", out, "--compute-capability", "8.9", "--json")
        assert result.code == 0, result.err
        parts: dict[str, Any] = {part["part"]: part for part in result.json["parts"]}
        for part, scope in (("backbone", "backbone."), ("temporal", "temporal_encoder.")):
            built = parts[part]["result"]
            own = [name for name in layers if name.startswith(scope)]
            products = len(own) + (attention // 2 if part == "backbone" else 0)  # a layer of attention is two
            assert built["quantized_products"] == products
            size = sum((out / name).stat().st_size for name in [f"{part}.onnx"])
            print(f"{precision} {part}: {products} products, graph {size / 1e6:.1f} MB, engine "
                  f"{parts[part]['record']['engine_bytes'] / 1e6:.1f} MB, {built['build_seconds']:.1f} s")  # fmt: skip
        shutil.rmtree(out)
