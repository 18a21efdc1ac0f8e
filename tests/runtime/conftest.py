"""The small bundle, made once for all of these tests."""

from tests.clihelp import cli, small_bundle, small_config

__all__ = ["cli", "small_bundle", "small_config"]
