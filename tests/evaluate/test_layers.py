"""`validate --layers`: the layer that is planted wrong is the first one named; ranges; TensorRT's part."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.clihelp import Cli
from tests.evaluate.bundles import changed, scale_weight, set_attribute
from vtn_export.bundle import Bundle
from vtn_export.evaluate.forms import Form
from vtn_export.evaluate.layer_match import Outputs, match
from vtn_export.evaluate.layers import compare_layers
from vtn_export.onnx.check import FP32_TOLERANCE
from vtn_export.onnx.precision import max_of
from vtn_export.runtime.golden import bundle_samples
from vtn_export.spec import FRAMES, Part
from vtn_export.video import shipped_clip

OP = "temporal_encoder.layer.0.attention/SlidingWindowAttention"


@pytest.mark.parametrize("form", ["ort", "fp16", "bf16"])
def test_a_right_graph_has_no_layer_beyond_its_bound(cli: Cli, small_bundle: Path, form: str) -> None:
    result = cli("validate", small_bundle, "--backend", form, "--layers", "--video", shipped_clip(), "--json")
    assert result.code == 0, result.err
    reports = {report["part"]: report for report in result.json["layers"]}
    assert set(reports) == {"backbone", "temporal"}  # `full` has their nodes
    for report in reports.values():
        assert report["first_beyond"] is None, report["ranked"]
        for layer in report["layers"]:
            assert 0 <= layer["error"] <= layer["bound"] and 0 <= layer["below_fp16"] <= 1
            assert layer["fp16_share"] == pytest.approx(layer["largest"] / max_of("fp16"))
    names = [layer["layer"] for layer in reports["temporal"]["layers"]]
    assert OP in names and "mlp_head.4" in names and len(names) > 15
    assert {"preprocess", "backbone.project", "backbone.norm", "backbone.out"} <= {
        layer["layer"] for layer in reports["backbone"]["layers"]
    }
    if form == "ort":
        assert all(layer["bound"] == FP32_TOLERANCE for layer in reports["temporal"]["layers"])


@pytest.mark.parametrize(
    ("part", "change", "first"),
    [
        ("temporal", scale_weight("temporal_encoder.layer.0.output/MatMul", 1.01), "temporal_encoder.layer.0.output"),
        ("temporal", set_attribute(OP, "scale", 0.13), OP),
        ("temporal", scale_weight("mlp_head.1/Gemm", 1.01), "mlp_head.1"),
        ("backbone", scale_weight("backbone.project/Conv", 1.01), "backbone.project"),
    ],
)
def test_the_planted_error_is_the_first(
    cli: Cli, small_bundle: Path, tmp_path: Path, part: Part, change: Any, first: str
) -> None:
    wrong = changed(small_bundle, tmp_path / "wrong", part, change)
    result = cli("validate", wrong, "--layers", "--json")
    assert result.code == 1
    report = next(report for report in result.json["layers"] if report["part"] == part)
    assert report["first_beyond"] == first
    assert all(not layer["beyond"] for layer in report["layers"][: _place(report, first)])
    ratios = [next(x["ratio"] for x in report["layers"] if x["layer"] == name) for name in report["ranked"]]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] > 1
    shown = cli("validate", wrong, "--layers")
    assert f"first beyond its bound is {first}" in shown.out


def _place(report: Any, layer: str) -> int:
    return [entry["layer"] for entry in report["layers"]].index(layer)


def test_a_nan_inside_is_named(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    wrong = changed(small_bundle, tmp_path / "wrong", "temporal", scale_weight("mlp_head.1/Gemm", math.nan))
    result = cli("validate", wrong, "--layers", "--json")
    assert result.code == 1
    report = next(report for report in result.json["layers"] if report["part"] == "temporal")
    assert report["first_beyond"] == "mlp_head.1"
    assert next(layer["layer"] for layer in report["layers"] if not layer["finite"]) == "mlp_head.1"


def test_matched_tensors_hold_the_modules_outputs(small_bundle: Path) -> None:
    """By another way than the report's: ONNX Runtime on the graph with those outputs, PyTorch by its own forward."""
    import onnxruntime as ort
    import torch

    with Form(Bundle.open(small_bundle), "rewrite") as form:
        model = form.model()
        graph = onnx.load(form.bundle.graph_path("backbone"))
        frames = bundle_samples(form.bundle, "backbone")[1].inputs[FRAMES]
        side = Outputs(model)
        matches, unmatched = match(graph, side.of({FRAMES: frames}, "backbone"), side)
    tensor = {one.layer: one.tensor for one in matches}
    assert not unmatched
    with torch.no_grad():
        pixels = model.preprocess(torch.from_numpy(frames))
        projected = model.backbone.project(pixels)
    wanted = {"preprocess": pixels.numpy(), "backbone.project": projected.numpy()}
    for layer in wanted:
        graph.graph.output.append(onnx.helper.make_tensor_value_info(tensor[layer], onnx.TensorProto.FLOAT, None))
    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for layer, want in wanted.items():
        (got,) = session.run([tensor[layer]], {FRAMES: frames})
        assert np.abs(got - want).max() < 1e-5, layer


def test_calls_of_the_op_are_seen_while_rounding(small_bundle: Path) -> None:
    """The yardstick's op output is rounded: every value is one of fp16's."""
    from vtn_export.model.rounding import rounded_copy

    with Form(Bundle.open(small_bundle), "rewrite") as form:
        twin = rounded_copy(form.model(), "fp16")
        sample = bundle_samples(form.bundle, "temporal")[2]
        outputs = Outputs(twin, "fp16").of(sample.inputs, "temporal")
    values = outputs[OP]
    assert values.size and np.array_equal(values, values.astype(np.float16).astype(np.float64))


def test_values_near_the_ends_of_fp16_show(small_bundle: Path, tmp_path: Path) -> None:
    """A layer scaled up by 2^20 is past fp16's end, one scaled down is below its normal numbers."""
    loud = changed(small_bundle, tmp_path / "loud", "backbone", scale_weight("backbone.out/Gemm", 2.0**20))
    with Form(Bundle.open(loud), "ort") as form:
        layers = {layer.layer: layer for layer in compare_layers(form, "backbone").layers}
    assert layers["backbone.out"].fp16_share > 1 > layers["backbone.norm"].fp16_share
    quiet = changed(small_bundle, tmp_path / "quiet", "backbone", scale_weight("backbone.project/Conv", 2.0**-24))

    def lower_bias(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name == "backbone.project.bias":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(64, np.float32), tensor.name))

    silent = changed(quiet, tmp_path / "silent", "backbone", lower_bias)
    with Form(Bundle.open(silent), "ort") as form:
        layers = {layer.layer: layer for layer in compare_layers(form, "backbone").layers}
    assert layers["backbone.project"].below_fp16 > 0.9


_MARKED = """
import json
import sys
from pathlib import Path
from vtn_export.bundle import Bundle
from vtn_export.evaluate import layers_trt
from vtn_export.evaluate.forms import Form

tensors = sys.argv[2:]
form = Form(Bundle.open(Path(sys.argv[1])), "fp16")
graph = layers_trt.engine_graph(form, "temporal")
_, network, *_ = layers_trt.marked_network(graph, tensors)()
outputs = [network.get_output(i).name for i in range(network.num_outputs)]
engine = layers_trt.marked_engine(graph, tensors, layers_trt.golden_shapes(form, "temporal"))()
print(json.dumps({'outputs': outputs, 'bytes': engine.nbytes}))
"""


def test_tensorrt_builds_an_engine_with_marked_outputs(small_bundle: Path) -> None:
    """TensorRT-RTX builds it on the CPU through Polygraphy; running it needs a GPU (never done)."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vtn-export[rtx]'")
    with Form(Bundle.open(small_bundle), "rewrite") as form:
        graph = onnx.load(form.bundle.graph_path("temporal"))
        side = Outputs(form.model())
        found, _ = match(graph, side.of(bundle_samples(form.bundle, "temporal")[0].inputs, "temporal"), side)
    tensors = [one.tensor for one in found]
    # a process of its own: Polygraphy chooses its TensorRT when it is first imported
    done = subprocess.run(
        [sys.executable, "-c", _MARKED, str(small_bundle), *tensors],
        capture_output=True, text=True, check=False, timeout=300, env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])  # Polygraphy's own log comes before
    assert set(told["outputs"]) == set(tensors) and told["bytes"] > 10_000
