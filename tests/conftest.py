"""Settings for all tests. Nothing heavy is imported here: the video tests need no torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time (a failure on one machine is one on all), and no deadline: the
# machines that run this are slow and shared.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    """PyTorch's thread count is the process's, and sums round by it: a test that leaves another changes later ones."""
    before = _torch_threads()
    yield
    after = _torch_threads()
    assert before is None or after == before, f"torch.get_num_threads(): {after} after this test, {before} before it"


def _torch_threads() -> int | None:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if hasattr(torch, "get_num_threads") else None
