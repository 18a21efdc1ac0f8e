"""Fixtures of all these tests."""

from tests.runtime.libvtn.fixtures import clip, cpu_bundle, library

__all__ = ["clip", "cpu_bundle", "library"]
