"""Exports that are cut short leave the old bundle or nothing: Ctrl-C, kill, a full disk."""

from __future__ import annotations

import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vtn_export.bundle import Bundle
from vtn_export.errors import INTERRUPTED_EXIT_CODE, OutputError


def start(config: Path, out: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "vtn_export", "onnx", "--config", str(config), "--out", str(out), "--seed", "8"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("stage", ["import torch", "golden frames", "export graphs"])
def test_ctrl_c(small_config: Path, tmp_path: Path, stage: str) -> None:
    out = tmp_path / "bundle"
    process = start(small_config, out)
    assert process.stderr is not None
    for line in process.stderr:
        if stage in line:  # printed when the stage is over: the next one has begun
            break
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED_EXIT_CODE, err
    assert "Traceback" not in err and "interrupted" in err
    assert not out.exists() and leftovers(tmp_path) == []


def test_kill_leaves_the_old_bundle_and_the_next_export_sweeps(
    small_bundle: Path, small_config: Path, tmp_path: Path
) -> None:
    from vtn_export.onnx.create import create_bundle

    out = Path(shutil.copytree(small_bundle, tmp_path / "bundle"))
    before = (out / "manifest.json").read_bytes()
    seed = random.randrange(1 << 30)
    print("seed", seed)
    generator = random.Random(seed)
    process = start(small_config, out)
    assert process.stderr is not None
    for line in process.stderr:
        if "float64 reference" in line:
            break
    time.sleep(generator.uniform(0, 3))
    process.kill()
    process.communicate()
    opened = Bundle.open(out)
    opened.verify()
    if (out / "manifest.json").read_bytes() == before:
        assert opened.manifest.weights["seed"] == 3
    else:  # the kill came after the exchange
        assert opened.manifest.weights["seed"] == 8
    create_bundle(out, config=small_config, seed=2, parts=("temporal",))
    assert leftovers(tmp_path) == [] and Bundle.open(out).manifest.weights["seed"] == 2


def test_a_disk_that_is_full(small_config: Path, tmp_path: Path) -> None:
    """A file-size limit stands for it: the write fails half-way with the system's own error."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    out = tmp_path / "bundle"
    process = start(small_config, out, preexec_fn=limit)
    _, err = process.communicate(timeout=120)
    assert process.returncode == OutputError.exit_code, err
    assert next(line for line in err.splitlines() if line.startswith("error: ")).endswith("nothing was changed")
    assert "Traceback" not in err
    assert not out.exists() and leftovers(tmp_path) == []
