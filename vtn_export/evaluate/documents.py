"""JSON results as files: read with care, their shape checked before anything is made of them.

A file is untrusted: its size, nesting and numbers are bounded, and every field that a reader uses is there and of
its type. A shape is written as data: a type or a tuple of types, `[shape]` for a list, `{name: shape}` for an object
(a name that ends in `?` may be missing), `{"*": shape}` for one with any names, `None` among alternatives for null.
Fields that a shape does not name are let through: a later version of this program may have added them.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from vtn_export.errors import ShapeError
from vtn_export.untrusted import read_json

MAX_BYTES = 256 << 20
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Number:
    """A finite number; with `positive`, above 0. The strings nan, inf, -inf where `loose` (JSON lacks them)."""

    def __init__(self, *, positive: bool = False, loose: bool = False) -> None:
        self.positive, self.loose = positive, loose

    def wrong(self, value: Any) -> str | None:
        if self.loose and value in ("nan", "inf", "-inf"):
            return None
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and _finite(value)
        if good and not (self.positive and value <= 0):
            return None
        return "a number above 0" if self.positive else "a number"


NUMBER, POSITIVE, LOOSE = _Number(), _Number(positive=True), _Number(loose=True)


def read_document(path: Path, schema: str, version: int, shape: Any, *, made_by: str) -> dict[str, Any]:
    """A result document of this schema and version. made_by: the command that writes one, for the message.

    Raises ShapeError for anything else: not there, not JSON, another schema or version, a field missing or of
    another type.
    """
    try:
        data = read_json(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ShapeError(f"{path}: cannot be read ({said[:200]}); expected a result of `{made_by}`") from None
    if not isinstance(data, dict) or data.get("schema") != schema:
        other = f" but {_shown(data['schema'])}" if isinstance(data, dict) and "schema" in data else ""
        raise ShapeError(f"{path}: not a result of `{made_by}`{other}")
    if data.get("schema_version") != version or isinstance(data["schema_version"], bool):
        got = data.get("schema_version")
        newer = isinstance(got, int) and not isinstance(got, bool) and got > version
        remedy = "update vtn-export" if newer else "make it again"
        raise ShapeError(f"{path}: got schema version {_shown(got)}, expected {version}; {remedy}")
    found = mismatch(data, shape, "")
    if found is not None:
        raise ShapeError(f"{path}: malformed: {found}")
    return data


def mismatch(value: Any, shape: Any, where: str) -> str | None:
    """What is wrong with a value, in words; None if nothing is."""
    if isinstance(shape, _Number):
        expected = shape.wrong(value)
        return None if expected is None else f"{where or 'document'}: got {_shown(value)}, expected {expected}"
    if isinstance(shape, tuple):
        found = [mismatch(value, one, where) for one in shape]
        return None if None in found else found[0]
    if shape is None or isinstance(shape, type):
        good = value is None if shape is None else type(value) is shape
        expected = "null" if shape is None else _NAMES[shape]
        return None if good else f"{where or 'document'}: got {_shown(value)}, expected {expected}"
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{where or 'document'}: got {_shown(value)}, expected a list"
        found = [mismatch(item, shape[0], f"{where}[{index}]") for index, item in enumerate(value)]
        return next((one for one in found if one is not None), None)
    return _object(value, shape, where)


def printable(text: Any) -> str:
    """A file's word for a terminal: no control characters, which could move the cursor or hide what follows."""
    return _UNPRINTABLE.sub("�", str(text))


def _object(value: Any, shape: dict[str, Any], where: str) -> str | None:
    if not isinstance(value, dict):
        return f"{where or 'document'}: got {_shown(value)}, expected an object"
    prefix = f"{where}." if where else ""
    if "*" in shape:
        named = [(name, shape["*"]) for name in value]
    else:
        named = []
        for key, inner in shape.items():
            name = key.removesuffix("?")
            if name in value:
                named.append((name, inner))
            elif not key.endswith("?"):
                return f"{prefix}{name} is missing"
    found = (mismatch(value[name], inner, printable(f"{prefix}{name}")[:120]) for name, inner in named)
    return next((one for one in found if one is not None), None)


_NAMES = {str: "text", int: "a whole number", bool: "true or false", float: "a number", dict: "an object"}


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond float64
        return False


def _shown(value: Any) -> str:
    text = printable(value if isinstance(value, str) else json.dumps(value, default=str))
    return text if len(text) <= 60 else f"{text[:57]}…"
