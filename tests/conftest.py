"""Settings for all tests. Nothing heavy is imported here: the video tests need no torch."""

from __future__ import annotations

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
