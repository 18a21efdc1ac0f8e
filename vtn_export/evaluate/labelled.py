"""A labelled set of videos: a folder with one sub-folder a class, or a CSV of video and label."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtn_export.errors import DatasetError
from vtn_export.evaluate.videos import SUFFIXES

_EXPECTED = "expected a folder with a sub-folder of videos a class, or a CSV of video,label"
_VIDEO_COLUMNS = ("video", "path", "input", "file", "filename")
_LABEL_COLUMNS = ("label", "class")


@dataclass(frozen=True)
class LabelledVideo:
    """A video and its class's index in the bundle's labels."""

    path: Path
    label: int


@dataclass(frozen=True)
class LabelledSet:
    """Videos in the order of the listing; labels are the bundle's."""

    source: Path
    labels: Sequence[str]
    videos: Sequence[LabelledVideo]

    @property
    def missing(self) -> list[str]:
        """Classes that no video has."""
        have = {video.label for video in self.videos}
        return [label for index, label in enumerate(self.labels) if index not in have]


def read_labelled(source: Path, labels: Sequence[str]) -> LabelledSet:
    """Every video and its label. labels: the bundle's.

    A sub-folder's own videos count, not those of folders in it. Paths of a CSV are relative to the CSV; a first
    row of column names (video, label) is optional. Raises DatasetError: nothing there, malformed, no videos, or a
    label that the bundle has not.
    """
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise DatasetError(
            f"dataset {source}: the bundle has two classes named {twice[0]!r}; labels would be ambiguous"
        )
    try:
        rows = list(_folder(source) if source.is_dir() else _csv(source))
    except OSError as error:
        raise DatasetError(f"dataset {source}: {error.strerror or error}; {_EXPECTED}") from None
    if not rows:
        lists = sorted(source.glob("*.csv")) if source.is_dir() else []
        hint = f"; did you mean {lists[0]}?" if lists else ""
        raise DatasetError(f"dataset {source}: no videos in it; {_EXPECTED}{hint}")
    index = {label: number for number, label in enumerate(labels)}
    unknown = sorted({label for _, label in rows if label not in index})
    if unknown:
        named = ", ".join(repr(label) for label in unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        known = ", ".join(repr(label) for label in labels[:3]) + (", ..." if len(labels) > 3 else "")
        raise DatasetError(
            f"dataset {source}: {len(unknown)} labels are not the bundle's: got {named}, expected some of {known} "
            f"(its labels.txt)"
        )
    return LabelledSet(source, labels, [LabelledVideo(path, index[label]) for path, label in rows])


def _folder(folder: Path) -> Iterator[tuple[Path, str]]:
    for child in sorted(folder.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            for path in sorted(child.iterdir()):
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    yield path, child.name


def _csv(path: Path) -> Iterator[tuple[Path, str]]:
    if path.suffix.lower() != ".csv":
        raise DatasetError(
            f"dataset {path}: {'got a file' if path.exists() else 'no such folder or file'}; {_EXPECTED}"
        )
    columns = (0, 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                names = [cell.strip().lower() for cell in row]
                if number == 1 and set(names) & {*_LABEL_COLUMNS}:
                    columns = _columns(path, names)
                    continue
                if not any(names):
                    continue
                if len(row) <= max(columns) or not all(row[column].strip() for column in columns):
                    raise DatasetError(f"dataset {path}, row {number}: got {len(row)} cells, expected video,label")
                yield path.parent / row[columns[0]].strip(), row[columns[1]].strip()
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"dataset {path}: not a CSV file in UTF-8 ({error}); {_EXPECTED}") from None


def _columns(path: Path, names: Sequence[str]) -> tuple[int, int]:
    video = [i for i, name in enumerate(names) if name in _VIDEO_COLUMNS]
    label = [i for i, name in enumerate(names) if name in _LABEL_COLUMNS]
    if not video:
        raise DatasetError(f"dataset {path}: got columns {', '.join(names)}, expected video and label")
    return video[0], label[0]
