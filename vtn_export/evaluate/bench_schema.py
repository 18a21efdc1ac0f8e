"""The result of `vtn-export bench`: its schema, and the fields that readers rely on. Described in docs/bench.md."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtn_export.evaluate.documents import NUMBER, POSITIVE, read_document

SCHEMA = "vtn-export/bench"
SCHEMA_VERSION = 1

_TIMES = {f"{name}_seconds": POSITIVE for name in ("first", "mean", "min", "max", "p50", "p90", "p95", "p99")}
_WORK = {
    "flops": int,
    "compulsory_bytes": int,
    "flops_per_second": NUMBER,
    "flops_per_byte": NUMBER,
    "bound": str,
    "roofline_share": NUMBER,
}
# a case that was timed run by run
_TIMED = {
    "case": {"*": (int, str)},
    "runs": int,
    "seconds": [POSITIVE],
    **_TIMES,
    "mean_ci95_seconds": [NUMBER],
    "coefficient_of_variation": NUMBER,
    "noisy": bool,
    "frames_per_second": POSITIVE,
    "videos_per_second?": POSITIVE,
    "peak_host_bytes?": (int, None),
    "added_host_bytes?": (int, None),
    "transfer_seconds?": (NUMBER, None),
    "work?": _WORK,
    "split_seconds?": {"*": NUMBER},
    "stage_seconds?": {"*": (NUMBER, None)},
}
# several streams: one number
_THROUGHPUT = {"case": {"*": (int, str)}, "runs": int, "seconds": POSITIVE, "frames_per_second": NUMBER}
_SHAPE = {
    "bundle": {"path": str, "name": str, "precision": str, "files": {"*": str}},
    "backend": str,
    "protocol": {"min_runs": int, "duration_seconds": NUMBER, "streams": int},
    "context": {"cpu": str, "threads": int, "packages": {"*": str}},
    "ceilings": {"flops_per_second": POSITIVE, "bytes_per_second": POSITIVE, "threads": int},
    "load_seconds": {"*": NUMBER},
    "peak_host_bytes": (int, None),
    "peak_device_bytes?": (int, None),
    "results": [(_TIMED, _THROUGHPUT)],
}


def read_bench(path: Path) -> dict[str, Any]:
    """A result of `bench --json FILE`. Raises ShapeError for anything else."""
    return read_document(path, SCHEMA, SCHEMA_VERSION, _SHAPE, made_by="vtn-export bench --json FILE")


def timed(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The results that have every run's time."""
    return [entry for entry in document["results"] if "p50_seconds" in entry]


def case_name(result: Mapping[str, Any]) -> str:
    """`temporal, batch 1, frames 16`."""
    words = (str(v) if k in ("part", "mode") else f"{k} {v}" for k, v in result["case"].items())
    mode = "mode " if "mode" in result["case"] else ""
    return mode + ", ".join(words)
