"""Small videos, an archive of them, and results read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.video.make import FRAGILE, corrupt, cut, textured_frames, write
from vtn_export.batch.results import PARTS
from vtn_export.bundle import MANIFEST, Bundle

Rows = dict[str, dict[str, Any]]


def other_bundle(bundle: Bundle, folder: Path) -> Bundle:
    """The same graphs under other fingerprints: a bundle of another training run, without exporting one."""
    shutil.copytree(bundle.path, folder / "other")
    path = folder / "other" / MANIFEST
    data = json.loads(path.read_text())
    data["weights"] |= {"fingerprint": "f" * 64, "backbone_fingerprint": "b" * 64}
    path.write_text(json.dumps(data))
    return Bundle.open(folder / "other")


def make_archive(folder: Path, count: int) -> Path:
    """`count` clips of odd lengths in two folders, every tenth damaged in one of three ways."""
    frames = textured_frames(40, 48, 64)
    for number in range(count):
        path = folder / f"{number % 2}" / f"clip {number:04}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = number % 13
        write(path, frames[start : start + 1 + number % 27], codec_options=FRAGILE)
        if number % 30 == 4:
            path.write_bytes(b"not a video" * 50)
        elif number % 30 == 14:
            cut(path, 0.6)
        elif number % 30 == 24:
            corrupt(path, 0)
    (folder / "notes.md").write_text("not listed")
    return folder


def read(results: Path) -> Rows:
    """Rows by input. Fails where an input has two."""
    rows = [row for path in sorted(results.glob(PARTS)) for row in pq.ParquetFile(path).read().to_pylist()]
    found = {row["input"]: row for row in rows}
    assert len(found) == len(rows), "an input has two rows"
    return found


def same(got: Rows, expected: Rows, tolerance: float = 1e-5) -> None:
    """Row by row: the same inputs, the same numbers, errors where there were errors."""
    assert got.keys() == expected.keys()
    for name, row in expected.items():
        for column in ("content_sha256", "model_fingerprint", "bundle_sha256", "frames", "last_frame_index", "error"):
            assert got[name][column] == row[column], (name, column)
        assert (row["logits"] is None) == (row["error"] is not None), name
        if row["logits"] is not None:
            a, b = np.array(got[name]["logits"]), np.array(row["logits"])
            assert np.abs(a - b).max() <= tolerance * max(1, np.abs(b).max()), name
            assert got[name]["top_class"][0] == int(b.argmax())
