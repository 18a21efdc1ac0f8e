"""A small bundle, and a real tritonserver for each form of its repository."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clihelp import cli, small_bundle, small_config
from vtn_export.bundle import Bundle
from vtn_export.serve.repository import Form, ServeOptions, write_repository
from vtn_export.serve.server import TritonServer

__all__ = ["cli", "small_bundle", "small_config"]

IDLE_SECONDS = 3.0


@pytest.fixture(scope="session")
def bundle(small_bundle: Path) -> Bundle:
    return Bundle.open(small_bundle)


def started(bundle: Bundle, folder: Path, form: Form) -> TritonServer:
    options = ServeOptions(form=form, max_frames=200)
    if form == "stream":
        options = replace(options, window=10, stride=3, idle_seconds=IDLE_SECONDS)
    write_repository(bundle, folder / form, options)
    return TritonServer(folder / form)


@pytest.fixture(scope="session", params=["full", "ensemble"])
def server(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TritonServer]:
    with started(bundle, tmp_path_factory.mktemp("repository"), request.param) as running:
        yield running


@pytest.fixture(scope="session")
def stream_server(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with started(bundle, tmp_path_factory.mktemp("repository"), "stream") as running:
        yield running
