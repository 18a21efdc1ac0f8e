"""Shapes of JSON documents: what is let through, and how what is wrong is said."""

from __future__ import annotations

from typing import Any

import pytest

from vtn_export.evaluate.documents import LOOSE, NUMBER, POSITIVE, mismatch, printable


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (3, int),
        ("a", str),
        (True, bool),
        (None, (int, None)),
        ([1, 2.5], [NUMBER]),
        ({"a": 1, "more": "fields"}, {"a": int}),
        ({}, {"a?": int}),
        ({"x": 1, "y": 2}, {"*": int}),
        ("nan", LOOSE),
        (1e-300, POSITIVE),
        ([], [{"a": int}]),
    ],
)
def test_what_fits(value: Any, shape: Any) -> None:
    assert mismatch(value, shape, "") is None


@pytest.mark.parametrize(
    ("value", "shape", "words"),
    [
        (True, int, "document: got true, expected a whole number"),  # a bool is no number
        (True, NUMBER, "got true, expected a number"),
        (3.0, int, "got 3.0, expected a whole number"),
        ("nan", NUMBER, "got nan, expected a number"),
        (float("nan"), LOOSE, "expected a number"),
        (10**400, NUMBER, "expected a number"),
        (0, POSITIVE, "got 0, expected a number above 0"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": int}]}, "a[0].b: got x, expected a whole number"),
        ({"a": {}}, {"a": {"b": int}}, "a.b is missing"),
        ({"a": 1}, {"a?": str}, "a: got 1, expected text"),
        ([1], {"a": int}, "expected an object"),
        ({"*": 1}, {"*": str}, "*: got 1, expected text"),
        ("x" * 999, int, "x" * 57 + "…"),
        ("\x1b[2J", int, "got �[2J"),
    ],
)
def test_what_does_not(value: Any, shape: Any, words: str) -> None:
    found = mismatch(value, shape, "")
    assert found is not None and words in found


def test_printable_keeps_words() -> None:
    assert printable("é – ✓") == "é – ✓" and printable("a\r\nb\x9b") == "a��b�"
