"""Results of a batch run: a folder of Parquet partitions, each written in one step.

RESULTS/batch.json                what the run was: bundle, model, mode, frames (the same for every partition)
RESULTS/part-*.parquet            one row a video; a row that is here is finished
RESULTS/features/part-*.parquet   with --features: one row a video, its features
A features file counts only where a row names it: what a killed run left behind is swept by the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtn_export.batch.features import FOLDER as FEATURES_FOLDER
from vtn_export.batch.features import write_features
from vtn_export.batch.stage import Outcome
from vtn_export.bundle import MANIFEST, Bundle, writing_file
from vtn_export.deps import require
from vtn_export.errors import BundleError, OutputError
from vtn_export.untrusted import read_json, reason_of, sha256

SCHEMA, SCHEMA_VERSION = "vtn-export/batch", 1
RECORD, PARTS = "batch.json", "part-*.parquet"


@dataclass(frozen=True)
class Record:
    """What all rows of a folder have in common. `frames`: asked for, None for all of a video."""

    bundle_sha256: str  # of its manifest, which lists every file's
    model_fingerprint: str
    backbone_fingerprint: str
    name: str
    precision: str
    classes: int
    mode: str
    frames: int | None
    features: bool

    @classmethod
    def of(cls, bundle: Bundle, mode: str, frames: int | None, features: bool) -> Record:
        manifest = bundle.manifest
        return cls(
            bundle_sha256=sha256(bundle.path / MANIFEST),
            model_fingerprint=str(manifest.weights.get("fingerprint", "")),
            backbone_fingerprint=manifest.backbone_fingerprint,
            name=manifest.name,
            precision=manifest.precision,
            classes=len(bundle.labels()),
            mode=mode,
            frames=frames,
            features=features,
        )

    def save(self, folder: Path) -> None:
        with writing_file(folder / RECORD) as temporary:
            data = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, **asdict(self)}
            temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def load_record(folder: Path) -> Record:
    """Raises OutputError where the folder holds no results of a batch run, or newer ones."""
    try:
        data = read_json(folder / RECORD)
        if data.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        version = data.pop("schema_version")
        if version != SCHEMA_VERSION:
            raise OutputError(f"results {folder}: got schema version {version}, expected {SCHEMA_VERSION}")
        return Record(**data)
    except FileNotFoundError:
        raise OutputError(f"results {folder}: no {RECORD} in it, expected a folder of `vtn-export batch`") from None
    except (OSError, ValueError) as error:
        raise OutputError(f"results {folder / RECORD}: cannot be read ({reason_of(error)})") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"results {folder / RECORD}: cannot be read ({error!r})") from None


@contextmanager
def open_results(folder: Path, record: Record, resume: bool) -> Iterator[None]:
    """The folder for this run alone: made, or, to resume, proven of the same run. Raises OutputError, BundleError."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {folder}: a file is in the way, expected a folder")
    descriptor = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(folder, descriptor)
            _prepare(folder, record, resume)
        except OSError as error:
            raise OutputError(f"--out {folder}: {error.strerror or error}") from None
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)  # the lock ends with it, and with the process, however that ends


def _lock(folder: Path, descriptor: int) -> None:
    """Two runs in one folder would do the same videos, and sweep what the other is writing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputError(f"--out {folder}: another run is writing there; wait for its end or choose another") from None
    except OSError:
        pass  # a file system without locks: two runs are the user's to avoid


def _prepare(folder: Path, record: Record, resume: bool) -> None:
    leftovers = [*folder.glob(".*.tmp"), *(folder / FEATURES_FOLDER).glob(".*.tmp")]
    if all(path in leftovers for path in folder.iterdir()):  # empty, or a run was killed before it had begun
        record.save(folder)
    elif not resume:
        raise OutputError(f"--out {folder}: the folder is not empty; continue it with --resume or choose another")
    else:
        _require_same(folder, load_record(folder), record)
        named = set(feature_files(folder))
        leftovers += [path for path in (folder / FEATURES_FOLDER).glob(PARTS) if path.name not in named]
    for path in leftovers:
        path.unlink(missing_ok=True)


def _require_same(folder: Path, old: Record, new: Record) -> None:
    if (old.bundle_sha256, old.model_fingerprint) != (new.bundle_sha256, new.model_fingerprint):
        raise BundleError(
            f"--resume {folder}: its results are of bundle {old.name} {old.bundle_sha256[:12]}…, "
            f"got {new.name} {new.bundle_sha256[:12]}…; use that bundle or another --out"
        )
    for name, was in asdict(old).items():
        if (now := asdict(new)[name]) != was:
            raise OutputError(f"--resume {folder}: its results have {name} {was}, got {now}; use that or another --out")


def read_column(folder: Path, column: str) -> Iterator[Any]:
    """One column over all partitions, in bounded memory. Raises OutputError for one that cannot be read."""
    arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
    for path in sorted(folder.glob(PARTS)):
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=10_000, columns=[column]):
                    yield from batch.column(0).to_pylist()
        except (arrow.ArrowException, OSError) as error:
            text = " ".join(str(error).split())[:100]
            raise OutputError(f"results {path}: cannot be read ({text}); delete it and run with --resume") from None


def feature_files(folder: Path) -> list[str]:
    """Names of the features files that rows refer to."""
    return sorted({name for name in read_column(folder, "features_file") if name})


def schema(classes: int, metadata: Mapping[str, str]) -> Any:
    """The Arrow schema of a partition, version 1 (docs/batch.md)."""
    arrow = require("pyarrow")
    return arrow.schema(
        [
            ("input", arrow.string()),
            ("content_sha256", arrow.string()),
            ("model_fingerprint", arrow.string()),
            ("bundle_sha256", arrow.string()),
            ("mode", arrow.string()),
            ("backend", arrow.string()),
            ("frames", arrow.int32()),
            ("first_frame_index", arrow.int32()),
            ("last_frame_index", arrow.int32()),
            ("top_class", arrow.list_(arrow.int32())),
            ("top_label", arrow.list_(arrow.string())),
            ("top_probability", arrow.list_(arrow.float32())),
            ("logits", arrow.list_(arrow.float32(), classes)),
            (
                "seconds",
                arrow.struct([(stage, arrow.float32()) for stage in ("decode", "backbone", "temporal", "full")]),
            ),
            ("features_file", arrow.string()),
            ("error", arrow.string()),
        ],
        metadata=dict(metadata),
    )


class Writer:
    """Collects outcomes and writes a partition when it is full or old. Memory: one partition.

    Features go to their file first, then the rows that name it: a row always finds its features.
    """

    def __init__(
        self,
        folder: Path,
        record: Record,
        labels: Sequence[str],
        backend: str,
        *,
        top: int = 5,
        rows: int = 1000,
        seconds: float = 60.0,
        feature_bytes: int = 64 << 20,
    ) -> None:
        self.folder, self.record, self.labels, self.backend = folder, record, labels, backend
        self.top, self.rows, self.seconds, self.feature_bytes = min(top, len(labels)), rows, seconds, feature_bytes
        metadata = {"schema": SCHEMA, "schema_version": str(SCHEMA_VERSION), "bundle_sha256": record.bundle_sha256}
        self._schema = schema(record.classes, metadata)
        self._rows: list[dict[str, Any]] = []
        self._features: list[Outcome] = []
        self._bytes, self._since = 0, time.monotonic()
        self.written = self.failed = 0

    def add(self, outcome: Outcome) -> None:
        """Raises OutputError."""
        self._rows.append(self.row(outcome))
        self.written += 1
        self.failed += outcome.error is not None
        if self.record.features and outcome.features is not None:
            self._features.append(outcome)
            self._bytes += outcome.features.nbytes
        full = len(self._rows) >= self.rows or self._bytes >= self.feature_bytes
        if full or time.monotonic() - self._since >= self.seconds:
            self.flush()

    def row(self, outcome: Outcome) -> dict[str, Any]:
        """A row as Python values; `features_file` is filled in when the features are written."""
        row: dict[str, Any] = {
            "input": outcome.name,
            "content_sha256": outcome.content_sha256,
            "model_fingerprint": self.record.model_fingerprint,
            "bundle_sha256": self.record.bundle_sha256,
            "mode": self.record.mode,
            "backend": self.backend,
            "seconds": {stage: outcome.seconds.get(stage) for stage in ("decode", "backbone", "temporal", "full")},
            "features_file": outcome.features_file,
            "error": outcome.error,
        }
        if outcome.logits is not None and outcome.frame_index is not None:
            order, probabilities = outcome.ranking(self.top)
            row |= {
                "frames": len(outcome.frame_index),
                "first_frame_index": int(outcome.frame_index[0]),
                "last_frame_index": int(outcome.frame_index[-1]),
                "top_class": order,
                "top_label": [self.labels[index] for index in order],
                "top_probability": probabilities,
                "logits": outcome.logits.tolist(),
            }
        return row

    def flush(self) -> None:
        """Write what was collected as one partition. Raises OutputError."""
        self._since = time.monotonic()
        if not self._rows:
            return
        arrow, parquet = require("pyarrow"), require("pyarrow.parquet")
        if self._features:
            name = write_features(self.folder, self._features, self.record.backbone_fingerprint)
            inside = {outcome.name for outcome in self._features}
            for row in self._rows:
                row["features_file"] = name if row["input"] in inside else row["features_file"]
        table = arrow.Table.from_pylist(self._rows, schema=self._schema)
        with writing_file(self.folder / f"part-{uuid.uuid4().hex}.parquet") as temporary:
            parquet.write_table(table, temporary, compression="zstd")
        self._rows, self._features, self._bytes = [], [], 0

    def close(self) -> None:
        self.flush()
        with suppress(OSError):
            (self.folder / FEATURES_FOLDER).rmdir()  # only if empty
