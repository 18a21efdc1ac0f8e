"""The command line in this process, and a small bundle made through it; fixtures for several rooms."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vtn_export.cli.main import app

SMALL = """
num_classes = 5
mlp_dim = 32

[backbone]
name = "tests.nets:patches"

[temporal]
num_layers = 2
intermediate_size = 64
one_sided_window = 4

[preprocessing]
short_side = 40
crop_size = 32
num_frames = 24
"""


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """Run a command line in this process; an exception that is no VtnError fails the test."""
    runner = CliRunner()

    def run(*arguments: object) -> Result:
        result = runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def small_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small.toml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def small_bundle(cli: Cli, small_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported with seed 3, all parts, fp32. Do not write in it."""

    def make(path: Path) -> None:
        result = cli("onnx", "--config", small_config, "--out", path, "--seed", 3)
        assert result.code == 0, result.err

    return once(tmp_path_factory, "small", make)


def once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A path that `make` wrote, once a run: the first of pytest's workers that asks makes it, the others wait.

    An export is seven processor seconds, and a session's fixture is made anew in every worker and every conftest.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "made-once"
    folder.mkdir(exist_ok=True)
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            make(folder / name)
    return folder / name
