"""The base install alone: a new environment without torch runs and validates bundles, and starts fast."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.clihelp import cli, small_bundle, small_config
from vtn_export.errors import MissingDependencyError
from vtn_export.video import shipped_clip

__all__ = ["cli", "small_bundle", "small_config"]
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with `pip install .` and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    source = folder / "source"
    shutil.copytree(ROOT / "vtn_export", source / "vtn_export", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    if (ROOT / "engines" / "targets").is_dir():
        shutil.copytree(ROOT / "engines" / "targets", source / "engines" / "targets")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # compiled here: where PYTHONDONTWRITEBYTECODE is set, every start would compile again
    subprocess.run([*pip, "--constraint", ROOT / ".ci/constraints.txt", source], check=True, cwd=folder)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def bundle(small_bundle: Path) -> Path:
    return small_bundle


def run(base: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [base / "vtn-export", *(str(argument) for argument in arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=base)


def test_no_torch_in_it(base: Path) -> None:
    listed = subprocess.run([base / "python", "-m", "pip", "list", "--format=json"], capture_output=True, text=True)
    names = {package["name"].lower() for package in json.loads(listed.stdout)}
    assert not names & {"torch", "timm", "onnxscript", "transformers"}
    assert {"numpy", "onnx", "onnxruntime", "polygraphy", "typer", "rich", "av"} <= names


def test_help_starts_fast(base: Path) -> None:
    """Processor seconds, the least of up to 40: what it costs in a moment when nothing else shares its processor."""
    run(base, "--help")
    seconds: list[float] = []
    while len(seconds) < 40 and not (seconds and min(seconds) < 0.3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run(base, "--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3, seconds


def test_runs_and_validates_a_bundle(base: Path, bundle: Path, tmp_path: Path) -> None:
    clip = shipped_clip()
    validated = run(base, "validate", bundle, "--video", clip, "--json")
    assert validated.returncode == 0, validated.stderr
    parts = {check["part"] for check in json.loads(validated.stdout)["checks"]}
    assert parts == {"full", "backbone", "temporal", "mode full", "mode features"}
    stored = tmp_path / "clip.npz"
    assert run(base, "features", bundle, clip, "--out", stored).returncode == 0
    logits = []
    for arguments in ((clip, "--mode", "full"), (clip, "--mode", "chunked"), (stored,)):
        result = run(base, "run", bundle, *arguments, "--json")
        assert result.returncode == 0, result.stderr
        logits.append(json.loads(result.stdout)["logits"])
    assert np.ptp(np.array(logits), axis=0).max() <= 1e-4
    assert run(base, "inspect", bundle).returncode == 0
    assert run(base, "doctor").returncode == 0


@pytest.mark.parametrize("arguments", [("onnx", "--out", "b"), ("run", "BUNDLE", "CLIP", "--backend", "torch")])
def test_what_needs_torch_names_the_extra(base: Path, bundle: Path, arguments: tuple[str, ...]) -> None:
    names = {"BUNDLE": str(bundle), "CLIP": str(shipped_clip())}
    result = run(base, *(names.get(argument, argument) for argument in arguments))
    assert result.returncode == MissingDependencyError.exit_code
    assert "pip install 'vtn-export[export]'" in result.stderr
    assert "Traceback" not in result.stderr
