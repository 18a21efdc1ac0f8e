"""Features of many videos as Parquet: the archive on which the temporal graph runs again without decoding."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vtn_export.batch.stage import Outcome
from vtn_export.bundle import writing_file
from vtn_export.deps import require
from vtn_export.errors import ShapeError
from vtn_export.runtime.features import Features

FOLDER = "features"
SCHEMA, SCHEMA_VERSION = "vtn-export/features", 1
_GROUP_BYTES = 16 << 20  # of a row group: what a reader holds at once


def write_features(results: Path, outcomes: Sequence[Outcome], backbone_fingerprint: str) -> str:
    """Write one file under RESULTS/features and return its name.

    One row a video: `input`, `content_sha256`, `frame_index` list of int32 `[T]`, `features` list of
    fixed-size lists of float32 `[T, E]`. Raises OutputError.
    """
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    kept = [outcome for outcome in outcomes if outcome.features is not None and outcome.frame_index is not None]
    matrices = [outcome.features for outcome in kept if outcome.features is not None]
    indices = [outcome.frame_index for outcome in kept if outcome.frame_index is not None]
    width = matrices[0].shape[1]
    # 64-bit offsets: T·E·videos may pass 2^31
    offsets = np.concatenate([[0], np.cumsum([len(matrix) for matrix in matrices])])
    flat = arrow.array(np.concatenate(matrices).reshape(-1))
    rows = arrow.FixedSizeListArray.from_arrays(flat, width)
    table = arrow.table(
        {
            "input": arrow.array([outcome.name for outcome in kept]),
            "content_sha256": arrow.array([outcome.content_sha256 for outcome in kept], arrow.string()),
            "frame_index": arrow.LargeListArray.from_arrays(offsets, arrow.array(np.concatenate(indices))),
            "features": arrow.LargeListArray.from_arrays(offsets, rows),
        }
    ).replace_schema_metadata(
        {"schema": SCHEMA, "schema_version": str(SCHEMA_VERSION), "backbone_fingerprint": backbone_fingerprint}
    )
    name = f"part-{uuid.uuid4().hex}.parquet"
    group = max(1, _GROUP_BYTES // max(matrix.nbytes for matrix in matrices))
    with writing_file(results / FOLDER / name) as temporary:
        parquet.write_table(table, temporary, row_group_size=group, compression="zstd")
    return name


def read_features(path: Path) -> Iterator[tuple[Features, str | None]]:
    """(features, content SHA-256) of every video in a file, a row group at a time. Raises ShapeError."""
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"schema") != SCHEMA.encode():
                raise ShapeError(f"features {path}: not a features file of `vtn-export batch`")
            if metadata[b"schema_version"] != str(SCHEMA_VERSION).encode():
                raise ShapeError(f"features {path}: of another schema version; update vtn-export")
            fingerprint = metadata[b"backbone_fingerprint"].decode()
            for number in range(file.num_row_groups):
                group = file.read_row_group(number)
                for row in range(group.num_rows):
                    vectors = group["features"][row].values
                    matrix = vectors.flatten().to_numpy().reshape(len(vectors), -1)
                    index = group["frame_index"][row].values.to_numpy()
                    source, digest = group["input"][row].as_py(), group["content_sha256"][row].as_py()
                    yield Features(np.array(matrix), np.array(index), fingerprint, source), digest
    except (arrow.ArrowException, KeyError, OSError, ValueError) as error:
        raise ShapeError(f"features {path}: cannot be read ({' '.join(str(error).split())[:100]})") from None
