"""Fixtures of the evaluation tests."""

from tests.clihelp import cli, small_bundle, small_config

__all__ = ["cli", "small_bundle", "small_config"]
