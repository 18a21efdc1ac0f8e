"""Imports every module of instructions, so that the table of operations is full."""

from . import async_copy, atomics, bits, collectives, floats, loads, matrix, moves

__all__ = ["async_copy", "atomics", "bits", "collectives", "floats", "loads", "matrix", "moves"]
