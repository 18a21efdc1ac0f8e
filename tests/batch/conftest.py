"""A small bundle and a small archive, classified once without interruption."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.batch.clips import Rows, make_archive, read
from tests.clihelp import cli, small_bundle, small_config
from vtn_export.batch.run import BatchOptions, run_batch
from vtn_export.bundle import Bundle

__all__ = ["cli", "small_bundle", "small_config"]


@pytest.fixture(scope="session")
def batch_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("batch")


@pytest.fixture(scope="session")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


@pytest.fixture(scope="session")
def archive(batch_folder: Path) -> Path:
    return make_archive(batch_folder / "videos", 31)


@pytest.fixture(scope="session")
def uninterrupted(bundle: Bundle, archive: Path, batch_folder: Path) -> Rows:
    out = batch_folder / "uninterrupted"
    run_batch(bundle, str(archive), out, BatchOptions(frames=24, workers=1, features=True))
    return read(out)
