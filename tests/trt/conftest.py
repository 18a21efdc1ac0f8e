"""Bundles to build from, made once, and the command line. Tests that write work on copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clihelp import Cli, cli, once

__all__ = ["Cli", "cli"]

SMALL: dict[str, Any] = {
    "num_classes": 5,
    "mlp_dim": 32,
    "backbone": {"name": "tests.nets:patches"},
    "temporal": {"num_layers": 2, "intermediate_size": 64, "one_sided_window": 4},
    "preprocessing": {"short_side": 40, "crop_size": 32, "num_frames": 24},
}


def make(folder: Path, config: Any, **options: Any) -> Path:
    """Export a bundle of seeded random weights."""
    pytest.importorskip("torch", reason="torch makes the bundles that engines are built from")
    from vtn_export.onnx.create import create_bundle

    create_bundle(folder, config=config, **options)
    return folder


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, all parts, a quarter of a megabyte: an engine of it builds in a second. Do not write here."""
    return once(tmp_path_factory, "bundle", lambda path: make(path, SMALL))


@pytest.fixture
def bundle(small_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the small bundle to write engines into."""
    return Path(shutil.copytree(small_bundle, tmp_path / "bundle"))


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vtn-export[rtx]'")
