from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.clihelp import cli, small_bundle, small_config
from tests.model import small
from tests.onnx import graphs
from tests.onnx.graphs import Exported

__all__ = ["cli", "small_bundle", "small_config", "tiny"]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def tiny() -> Exported:
    """A hand-made backbone before two temporal layers, exported once: tracing takes seconds."""
    return graphs.export(small.config(layers=2))
