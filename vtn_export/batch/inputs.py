"""What a batch run reads: a folder, a glob, or a list, held on disk so that its length costs no memory."""

from __future__ import annotations

import csv
import glob
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from vtn_export.deps import require
from vtn_export.errors import OutputError, UsageError

# what is taken from a folder; globs and lists are taken as they are
VIDEO_SUFFIXES = {
    *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
}
COLUMNS = ("input", "path", "video", "file", "filename")  # of a CSV or Parquet list
_EXPECTED = "expected a folder of videos, a glob, or a .txt, .csv or .parquet list"


class Listing:
    """Names to work on: sorted, each once, on disk (SQLite) with a cache of 2 MB whatever their number.

    A name is what results call the input; bytes that are no UTF-8 are shown escaped, the file is still found.
    Raises OutputError where the folder for temporary files is full.
    """

    def __init__(self) -> None:
        with _writing():
            self._folder = tempfile.TemporaryDirectory(prefix="vtn-export-batch.")
            self._database = sqlite3.connect(Path(self._folder.name) / "inputs.sqlite", isolation_level=None)
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-2000"):
                self._database.execute(f"PRAGMA {pragma}")
            self._database.execute("CREATE TABLE inputs (name TEXT PRIMARY KEY, path BLOB, done INTEGER) WITHOUT ROWID")

    def add(self, paths: Iterable[str]) -> None:
        """Take names; one that is there already is not taken twice."""
        rows = ((shown(path), os.fsencode(path)) for path in paths)
        with _writing():
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR IGNORE INTO inputs VALUES (?, ?, 0)", rows)
            self._database.execute("COMMIT")

    def mark_done(self, names: Iterable[str]) -> None:
        """Leave these out of `todo`; unknown names are ignored."""
        with _writing():
            self._database.execute("BEGIN")
            self._database.executemany("UPDATE inputs SET done = 1 WHERE name = ?", ((name,) for name in names))
            self._database.execute("COMMIT")

    def is_todo(self, name: str) -> bool:
        row: tuple[int] | None = self._database.execute("SELECT done FROM inputs WHERE name = ?", (name,)).fetchone()
        return row == (0,)

    def todo(self) -> Iterator[tuple[str, str]]:
        """(name, path) of what is not done, sorted by name. May be read while names are marked done."""
        last = ""
        query = "SELECT name, path FROM inputs WHERE name > ? AND done = 0 ORDER BY name LIMIT 1000"
        while rows := self._database.execute(query, (last,)).fetchall():
            for name, path in rows:
                yield name, os.fsdecode(path)
            last = rows[-1][0]

    def count(self) -> tuple[int, int]:
        """(all, done)."""
        total, done = self._database.execute("SELECT count(*), coalesce(sum(done), 0) FROM inputs").fetchone()
        return int(total), int(done)

    def close(self) -> None:
        self._database.close()
        self._folder.cleanup()

    def __enter__(self) -> Listing:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise OutputError(
            f"the list of inputs in {tempfile.gettempdir()}: {error}; make room there, or set TMPDIR to another folder"
        ) from None


def shown(path: str) -> str:
    """The path as text that any file can hold."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def list_inputs(inputs: str) -> Iterator[str]:
    """Paths of INPUTS, read as they come. Raises UsageError where there are none or they cannot be read."""
    found = False
    try:
        for path in _read(inputs):
            found = True
            yield path
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else inputs
        raise UsageError(f"inputs {where}: {error.strerror or error}; make it readable or give another") from None
    if not found:
        raise UsageError(f"inputs {inputs}: got nothing, {_EXPECTED} with at least one video")


def _read(inputs: str) -> Iterator[str]:
    path = Path(inputs)
    if path.is_dir():
        yield from _folder(inputs)
    elif path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            yield from _parquet(path)
        elif suffix == ".csv":
            yield from _csv(path)
        elif suffix in VIDEO_SUFFIXES:
            yield inputs
        elif suffix in (".txt", ".list", ""):
            yield from _text(path)
        else:
            raise UsageError(f"inputs {inputs}: got a file of type {suffix}, {_EXPECTED}")
    elif glob.has_magic(inputs):
        paths = glob.iglob(inputs, recursive=True)  # noqa: PTH207 Path.glob takes no absolute pattern
        yield from (found for found in paths if Path(found).is_file())
    else:
        raise UsageError(f"inputs {inputs}: no such file or folder, {_EXPECTED}")


def _folder(folder: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _folder(entry.path)
            elif Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                yield entry.path


def _name(text: str) -> str:
    """Without the spaces around it, unless a file is called just so."""
    name = text.strip()
    return text if name and name != text and os.path.lexists(text) else name


def _text(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as stream:
            for number, line in enumerate(stream, 1):
                if "\0" in line:
                    raise UsageError(f"inputs {path}, line {number}: not text; {_EXPECTED}")
                if name := _name(line.rstrip("\r\n")):
                    yield name
    except UnicodeDecodeError:  # UTF-16 and the like, in spite of surrogateescape
        raise UsageError(f"inputs {path}: not UTF-8 text; {_EXPECTED}") from None


def _csv(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        column = 0
        try:
            for number, row in enumerate(csv.reader(stream)):
                if number == 0:
                    named = [i for i, cell in enumerate(row) if cell.strip().lower() in COLUMNS]
                    if named:  # a header; without one the first column holds the paths
                        column = named[0]
                        continue
                if row and len(row) <= column:
                    raise UsageError(f"inputs {path}, row {number + 1}: got {len(row)} cells, expected {column + 1}")
                if row and (name := _name(row[column])):
                    yield name
        except csv.Error as error:
            raise UsageError(f"inputs {path}: not a CSV file ({error}); {_EXPECTED}") from None


def _parquet(path: Path) -> Iterator[str]:
    arrow = require("pyarrow")
    parquet = require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            column = next((name for name in COLUMNS if name in names), None)
            if column is None:
                raise UsageError(f"inputs {path}: got columns {', '.join(names)}, expected one of {', '.join(COLUMNS)}")
            for batch in file.iter_batches(batch_size=10_000, columns=[column]):
                for name in batch.column(0).to_pylist():
                    if not isinstance(name, (str, bytes, type(None))):
                        raise UsageError(f"inputs {path}, column {column}: got {type(name).__name__}, expected paths")
                    if name:
                        yield os.fsdecode(name)
    except arrow.ArrowException as error:
        raise UsageError(f"inputs {path}: not a Parquet file ({' '.join(str(error).split())[:100]})") from None
