"""Real engines by TensorRT-RTX on the CPU: what is written, what is reused, what is refused, what a kill leaves."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.trt.conftest import Cli
from vtn_export.bundle import MANIFEST, Bundle
from vtn_export.errors import EngineError
from vtn_export.trt import sidecar
from vtn_export.trt.process import run_worker
from vtn_export.untrusted import sha256

pytestmark = pytest.mark.usefixtures("rtx")


def engines(bundle: Path) -> list[Path]:
    return sorted((bundle / "engines").glob("*.engine"))


def leftovers(bundle: Path) -> list[Path]:
    return sorted(path for path in (bundle / "engines").glob(".*") if path.name != ".lock")


def workers(parent: int) -> list[int]:
    """Build workers that are children of this process."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            status = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if b"vtn_export.trt.worker" in command and int(status[1]) == parent:
            found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def built(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> tuple[Path, Any]:
    """The temporal part in fp16 for two GPUs and two profiles, and what the command said."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    bundle = Path(shutil.copytree(small_bundle, tmp_path_factory.mktemp("built") / "bundle"))
    arguments = ["--part", "temporal", "--fp16", "--compute-capability", "8.6,12.0", "--batch", "1", "--json"]
    ranges = ["--frames", "1:8:16", "--frames", "17:64:300"]
    result = cli("trt", bundle, *arguments, *ranges)
    assert result.code == 0, result.err
    assert engines(bundle) == [bundle / result.json["parts"][0]["engine"]]  # that one and no other
    return bundle, result.json


def test_engine_and_record(built: tuple[Path, Any]) -> None:
    bundle, told = built
    engine = bundle / told["parts"][0]["engine"]
    record = json.loads(engine.with_suffix(".json").read_text())
    manifest = json.loads((bundle / MANIFEST).read_text())
    assert record["engine_sha256"] == sha256(engine)
    assert record["source_sha256"] == manifest["files"]["temporal.onnx"]
    assert record["compute_capabilities"] == ["8.6", "12.0"]
    assert record["profiles"] == [
        {"batch": [1, 1, 1], "frames": [1, 8, 16]},
        {"batch": [1, 1, 1], "frames": [17, 64, 300]},
    ]
    assert record["flavor"] == "rtx" and record["version"] and record["precision"] == "fp16"
    assert record["accuracy"]["measured"] <= record["accuracy"]["tolerance"]
    assert record["gpu"] is None and record["plugin"] is None
    assert {t["name"] for t in record["io"]["inputs"]} == {"features", "frame_index", "lengths"}
    assert record["build"]["build_seconds"] > 0 and record["build"]["layers"] > 100
    assert record["command"].startswith("vtn-export trt ") and "--fp16" in record["command"]
    assert leftovers(bundle) == []
    assert Bundle.open(bundle).verify() is None  # the manifest knows nothing of engines


def test_same_request_is_there_already(built: tuple[Path, Any], cli: Cli) -> None:
    bundle, told = built
    engine, there = bundle / told["parts"][0]["engine"], engines(bundle)
    before = engine.stat().st_mtime_ns
    words = told["parts"][0]["record"]["command"].split()[1:]
    again = cli(*[word for word in words if word != "--force"], "--json")
    assert again.code == 0 and again.json["parts"][0]["cached"]
    assert engine.stat().st_mtime_ns == before
    forced = cli(*words, "--json")
    assert forced.code == 0 and not forced.json["parts"][0]["cached"]
    assert engines(bundle) == there and engine.stat().st_mtime_ns > before


def test_another_option_is_another_engine(built: tuple[Path, Any], cli: Cli) -> None:
    bundle, _ = built
    before = set(engines(bundle))
    result = cli("trt", bundle, "--part", "temporal", "--fp16", "--opt-level", 1, "--workspace", "256MiB", "--json")
    assert result.code == 0 and not result.json["parts"][0]["cached"], result.err
    assert before < set(engines(bundle))


def test_inspect_lists_engines(built: tuple[Path, Any], cli: Cli) -> None:
    bundle, _ = built
    listed = cli("inspect", bundle, "--json").json["engines"]
    assert {entry["part"] for entry in listed} == {"temporal"}
    assert all(entry["problems"] == [] and entry["layers"] is None for entry in listed)
    assert "SM 8.6, 12.0" in {entry["runs_on"].removeprefix("GPUs of ") for entry in listed}


def test_fp32_is_fp32_unless_tf32(bundle: Path, cli: Cli) -> None:
    plain = cli("trt", bundle, "--part", "backbone", "--fp32", "--json").json["parts"][0]["record"]
    loose = cli("trt", bundle, "--part", "backbone", "--fp32", "--tf32", "--json").json["parts"][0]["record"]
    assert not plain["tf32"] and loose["tf32"] and plain["key"] != loose["key"]
    assert plain["engine_sha256"] != loose["engine_sha256"]  # the flag does change what is built


def test_dry_run_builds_nothing(bundle: Path, cli: Cli) -> None:
    result = cli("trt", bundle, "--fp16", "--dry-run", "--json")
    assert result.code == 0
    assert not (bundle / "engines").exists()
    for part in result.json["parts"]:
        assert part["engine"] is None and part["forecast"]["total"] > 0
        heavy = ("MATRIX_MULTIPLY", "CONVOLUTION")
        assert "HALF" in {layer["dtype"] for layer in part["result"]["layer_list"] if layer["type"] in heavy}


def test_dry_run_for_a_board_that_is_not_here(bundle: Path, cli: Cli) -> None:
    result = cli("trt", bundle, "--fp16", "--target", "jetson-orin-nano-8gb", "--dry-run", "--json")
    assert result.code == 0
    assert "10.3" in result.err and "FP16" in result.err  # its floor's known defect
    assert "4,608 MiB" in result.err  # the budget
    built = cli("trt", bundle, "--fp16", "--target", "jetson-orin-nano-8gb")
    assert built.code == 15 and "on the device itself" in built.err


def test_over_the_budget(bundle: Path, cli: Cli) -> None:
    result = cli("trt", bundle, "--part", "full", "--target", "rtx", "--frames", "1:1:9000000", "--json")
    assert result.code == 11
    assert "forecast" in result.err and "at most" in result.err
    assert not engines(bundle)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--attention", "plugin"), 14, "RTX takes no plugins"),
        (("--compute-capability", "8.7"), 2, "7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
        (("--compute-capability", "eight"), 2, "expected such as 8.9"),
        (("--target", "jetson-agx-orn"), 2, "did you mean jetson-agx-orin"),
        (("--target", "rtx", "--compute-capability", "7.5"), 2, "8.6, 8.9, 12.0"),
        (("--target", "rtx", "--flavor", "tensorrt"), 2, "--flavor rtx"),
        (("--flavor", "trtx"), 2, "auto, tensorrt, rtx"),
        (("--part", "temporal", "--chunk", "4"), 2, "no such axis"),
        (("--frames", "8:4:2"), 2, "MIN ≤ OPT ≤ MAX"),
        (("--frames", "8-16"), 2, "MIN:OPT:MAX"),
        (("--frames", "1:2:3", "--frames", "4", "--batch", "1", "--batch", "2", "--batch", "3"), 2, "once a profile"),
        (("--fp16", "--bf16"), 2, "one precision"),
        (("--fp16", "--tf32"), 2, "TF32"),
        (("--timing-cache", "cache"), 2, "tensorrt"),
        (("--workspace", "much"), 2, "2GiB"),
        (("--opt-level", "6"), 2, "0..5"),
        (("--calibrate", "nowhere.mp4"), 2, "no such file"),
        (("--keep-fp32", "nowhere.txt"), 2, "cannot be read"),
        (("--part", "head"), 2, "full, backbone, temporal"),
        (("--attention", "flash"), 2, "auto, plugin, portable"),
    ],
)
def test_refused(bundle: Path, cli: Cli, arguments: tuple[str, ...], code: int, words: str) -> None:
    result = cli("trt", bundle, *arguments)
    assert result.code == code, result.err
    assert words in result.err and result.err.count("error:") == 1
    assert not engines(bundle)


def test_sm75_has_no_fp32_products(bundle: Path, cli: Cli) -> None:
    """The builder's own reason reaches the user in one line."""
    result = cli("trt", bundle, "--part", "backbone", "--compute-capability", "7.5")
    assert result.code == 13 and "built no engine" in result.err and "FP32 GEMM" in result.err
    assert leftovers(bundle) == [] and engines(bundle) == []


def _rehash(bundle: Path, name: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = sha256(bundle / name)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_damaged_graph(bundle: Path, cli: Cli) -> None:
    path = bundle / "temporal.onnx"
    path.write_bytes(path.read_bytes()[:-1000])
    result = cli("trt", bundle, "--part", "temporal")
    assert result.code == 8 and "changed or damaged" in result.err
    _rehash(bundle, "temporal.onnx")
    result = cli("trt", bundle, "--part", "temporal")
    assert result.code == 8 and "cannot be read as ONNX" in result.err
    assert engines(bundle) == []


def test_op_that_tensorrt_does_not_know(bundle: Path, cli: Cli) -> None:
    model = onnx.load(bundle / "backbone.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Gelu")
    node.op_type, node.domain = "Mystery", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(model, bundle / "backbone.onnx")
    _rehash(bundle, "backbone.onnx")
    result = cli("trt", bundle, "--part", "backbone")
    assert result.code == 13, result.err
    assert "Mystery" in result.err and "backbone.onnx" in result.err
    assert leftovers(bundle) == [] and engines(bundle) == []


def _request(bundle: Path, **changes: Any) -> dict[str, Any]:
    opened = Bundle.open(bundle)
    spec = opened.graph("temporal").spec
    shapes = {"features": (1, 8, 64), "frame_index": (1, 8), "lengths": (1,)}
    request: dict[str, Any] = {
        "flavor": "rtx",
        "onnx": str(bundle / "temporal.onnx"),
        "source": "temporal.onnx",
        "precision": "fp32",
        "io": {t.name: t.dtype for t in (*spec.inputs, *spec.outputs)},
        "profiles": [{name: [shape] * 3 for name, shape in shapes.items()}],
        "compute_capabilities": [],
        "workspace": None,
        "opt_level": None,
        "tf32": False,
        "timing_cache": None,
        "plugin": None,
        "plugin_instances": [],
        "engine": None,
    }
    return {**request, **changes}


def test_an_abort_in_the_library_is_an_error(small_bundle: Path, tmp_path: Path) -> None:
    """RTX's parser aborts its process on a node that maps to a plugin; ours goes on."""
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 4, 8, 8])
    rois = onnx.helper.make_tensor_value_info("rois", onnx.TensorProto.FLOAT, [2, 4])
    at = onnx.helper.make_tensor_value_info("at", onnx.TensorProto.INT32, [2])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 4, 1, 1])
    node = onnx.helper.make_node("ROIAlign_TRT", ["x", "rois", "at"], ["y"], name="roi", domain="trt.plugins")
    for name, value in (("plugin_version", "2"), ("plugin_namespace", "")):
        node.attribute.append(onnx.helper.make_attribute(name, value))
    graph = onnx.helper.make_graph([node], "g", [x, rois, at], [y])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("trt.plugins", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "plugin.onnx")
    with pytest.raises(EngineError, match=r"ended by SIG|cannot parse"):
        run_worker(_request(small_bundle, onnx=str(tmp_path / "plugin.onnx")))


def test_garbage_for_the_parser(small_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "garbage.onnx").write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(EngineError, match="cannot parse"):
        run_worker(_request(small_bundle, onnx=str(tmp_path / "garbage.onnx")))


def test_fp16_asked_and_fp32_found(small_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"none of its .* is HALF"):
        run_worker(_request(small_bundle, precision="fp16"))


def test_other_interface_than_the_bundles(small_bundle: Path) -> None:
    with pytest.raises(EngineError, match="expected"):
        run_worker(_request(small_bundle, io={"features": "float32"}))


def test_worker_killed(small_bundle: Path) -> None:
    """What the kernel's out-of-memory killer does."""

    def kill(event: Any) -> None:
        if event["event"] == "stage":
            for worker in workers(os.getpid()):
                os.kill(worker, signal.SIGKILL)

    with pytest.raises(EngineError, match="out of memory"):
        run_worker(_request(small_bundle), kill)


def _command(bundle: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vtn_export", "trt", str(bundle), "--part", "temporal", *arguments]


@pytest.mark.parametrize("limit", [0, 4096, 200_000])
def test_full_disk(bundle: Path, limit: int) -> None:
    """A file size limit stands in for a full disk: the same failing write, at the same place, without root."""
    (bundle / "engines").mkdir()

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    result = subprocess.run(_command(bundle), capture_output=True, text=True, preexec_fn=lower, timeout=120)
    assert result.returncode in (10, 13), result.stderr
    assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr, result.stderr
    assert engines(bundle) == [] and leftovers(bundle) == []


def test_unwritable_folder(bundle: Path, cli: Cli) -> None:
    (bundle / "engines").write_text("in the way")
    result = cli("trt", bundle, "--part", "temporal")
    assert result.code == 10 and "nothing was changed" in result.err


def test_killed_at_random_moments(bundle: Path, cli: Cli) -> None:
    """kill -9 of the command, anywhere in a build: what is loadable is whole, and the next build is clean."""
    seed = int(os.environ.get("VTN_SEED", time.time_ns() % 2**32))
    print(f"VTN_SEED={seed}")
    generator = random.Random(seed)
    start = time.monotonic()
    assert subprocess.run(_command(bundle, "--fp16"), capture_output=True, timeout=120).returncode == 0
    whole = time.monotonic() - start
    (first,) = engines(bundle)
    for _ in range(5):
        process = subprocess.Popen(
            _command(bundle, "--fp16", "--force"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(generator.uniform(0.2, 1.1) * whole)
        process.kill()
        process.wait()
        opened = Bundle.open(bundle)
        for path in sidecar.sidecars(opened):
            assert sidecar.problems(sidecar.read(path), opened) == [], f"VTN_SEED={seed}"
    assert _orphans() == [], f"VTN_SEED={seed}"
    again = cli("trt", bundle, "--part", "temporal", "--fp16", "--force", "--json")
    assert again.code == 0 and engines(bundle) == [first], f"VTN_SEED={seed}"
    assert leftovers(bundle) == [], f"VTN_SEED={seed}"


def _orphans() -> list[int]:
    """Workers whose command was killed, given a moment: they die with it."""
    deadline = time.monotonic() + 5
    while (found := workers(1)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def test_interrupted(bundle: Path) -> None:
    process = subprocess.Popen(
        _command(bundle, "--fp16"), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not (bundle / "engines").is_dir() and time.monotonic() < deadline:
        time.sleep(0.02)  # Python is still importing: an interrupt there is Python's own
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode in (130, 0), stderr
    assert b"Traceback" not in stderr, stderr
    assert leftovers(bundle) == []
