"""Every benchmark at its smallest size, for real: what it prints is what it would store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import command_line
import numpy as np
import peers
import pytest
import torch
from flops import multiply_adds

from tests.benchmarks.conftest import BENCHMARKS
from tests.clihelp import SMALL
from vtn_export.runtime.session import available_cpus


def _script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *(str(argument) for argument in arguments), "--dry"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


def test_multiply_adds_are_those_of_the_layers() -> None:
    linear = torch.nn.Linear(3, 5)
    assert multiply_adds(lambda: linear(torch.zeros(7, 3))) == pytest.approx(7 * 3 * 5 / 1e9)
    convolution = torch.nn.Conv2d(2, 4, 3, padding=1)
    assert multiply_adds(lambda: convolution(torch.zeros(1, 2, 8, 9))) == pytest.approx(8 * 9 * 2 * 4 * 9 / 1e9)
    q = torch.zeros(1, 2, 6, 4)
    attention = multiply_adds(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert attention == pytest.approx(2 * 2 * 6 * 6 * 4 / 1e9)  # scores and sums, two heads


def test_multiply_adds_of_torchvisions_networks_are_its_own() -> None:
    from torchvision.models import get_model, get_model_weights

    network = get_model("r3d_18", weights=None).eval()
    counted = multiply_adds(lambda: network(torch.zeros(1, 3, 16, 112, 112)))
    assert counted == pytest.approx(get_model_weights("r3d_18").DEFAULT.meta["_ops"], rel=1e-4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> peers.Peers:
    model = peers.temporal_model(small=True)
    model.requires_grad_(False)
    return peers.Peers(model, tmp_path_factory.mktemp("peers"), min(2, available_cpus()))


@pytest.mark.parametrize("frames", [1, 17, 250])
@pytest.mark.parametrize("name", ["ort", "openvino", "hugging_face", "sdpa"])
def test_peers_compute_the_same(made: peers.Peers, name: str, frames: int) -> None:
    expected = peers.reference(made.model, frames)
    assert np.abs(made.run(name, frames)() - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flex", "hugging_face_compiled"])
def test_compiled_peers_compute_the_same(made: peers.Peers, name: str) -> None:
    expected = peers.reference(made.model, 250)
    assert np.abs(made.run(name, 250)() - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))


def test_processes_are_measured_by_themselves() -> None:
    big = "x = bytearray(150 << 20); import time; time.sleep(0.2)"
    seconds, peak = command_line.run((sys.executable, "-c", big))
    assert seconds >= 0.2 and 150 << 20 <= peak <= 190 << 20
    _, small = command_line.run((sys.executable, "-c", "pass"))
    assert small < 30 << 20  # not this process's own peak
    with pytest.raises(SystemExit, match="boo"):
        command_line.run((sys.executable, "-c", "raise SystemExit('boo')"))


@pytest.mark.slow
def test_temporal() -> None:
    out = _script("temporal.py", "--frames", "17")
    assert "17 frames:" in out and "cost of a frame, 16384 over 1024" in out


@pytest.mark.slow
def test_temporal_peers() -> None:
    out = _script("temporal_peers.py", "--small", "--frames", "17", "60", "--peers", "ort", "openvino")
    assert "| ours, OpenVINO |" in out and "60 frames  ort" in out


@pytest.mark.slow
def test_whole_video(config: Path) -> None:
    out = _script("whole_video.py", "--configs", config, "--frames", 3, "--rounds", 1, "--networks", "r3d_18")
    assert "reference, torch.compile" in out and "r3d_18: 5 views, as published" in out


@pytest.mark.slow
def test_engines(config: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra rtx is x86-64 only")
    arguments = ("--configs", config, "--precisions", "fp32", "--parts", "temporal", "--rounds", 1)
    out = _script("engines.py", *arguments)
    assert "| small.toml | temporal | fp32 |" in out or "| temporal | fp32 |" in out


@pytest.mark.slow
def test_streaming(config: Path) -> None:
    out = _script("streaming.py", "--configs", config, "--window", 20, "--rounds", 1)
    assert "| small.toml | OpenVINO |" in out and "a new frame at most 1.15 × its backbone" in out


@pytest.mark.slow
def test_command_line(config: Path) -> None:
    out = _script("command_line.py", "--configs", config, "--starts", 1, "--rounds", 1)
    assert "`vtn-export --help`" in out and "all parts" in out
