"""Files from anywhere: JSON that may be huge, nested without end, or no JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16 << 20


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The document in a file of up to `max_bytes`.

    Raises OSError, or ValueError with what is wrong: larger, not UTF-8, not JSON, nested too deep for the parser, a
    number of more digits than Python converts. No more than `max_bytes` + 1 are read.
    """
    with path.open("rb") as stream:
        data = stream.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"larger than {max_bytes >> 20} MiB")
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deep") from None
