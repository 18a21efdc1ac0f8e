"""Every JSON file that comes from outside: what is wrong with it is one sentence and the reader's own code."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vtn_export.batch.results import RECORD, load_record
from vtn_export.bundle import MANIFEST, Bundle
from vtn_export.errors import VtnError
from vtn_export.evaluate.documents import MAX_BYTES, read_document
from vtn_export.trt import sidecar
from vtn_export.trt.plugins import read_sidecar
from vtn_export.untrusted import MAX_JSON_BYTES, read_json

WRONG = {
    "no JSON": b"{",
    "not UTF-8": b"\xff\xfe{}",
    "nested too deep": b"[" * 200_000,
    "a number of 5,000 digits": b"1" * 5000,
    "larger than it may be": b" " * (MAX_JSON_BYTES + 1),
    "a folder": None,
    "a pipe": None,  # that nobody writes to
    "null": b"null",
}


def plugin(folder: Path) -> Any:
    library = folder / "libvtn_plugins.so"
    library.write_bytes(b"library")
    return read_sidecar(library)


READERS: dict[str, tuple[str, int, Callable[[Path], Any]]] = {
    "bundle": (MANIFEST, 8, Bundle.open),
    "engine": ("e.json", 13, lambda folder: sidecar.read(folder / "e.json")),
    "plugin": ("libvtn_plugins.so.json", 14, plugin),
    "results": (RECORD, 10, load_record),
    "document": ("d.json", 7, lambda folder: read_document(folder / "d.json", "s", 1, {}, made_by="vtn-export bench")),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("reader", READERS)
def test_one_sentence(reader: str, wrong: str, tmp_path: Path) -> None:
    name, code, read = READERS[reader]
    content = WRONG[wrong]
    if wrong == "a folder":
        (tmp_path / name).mkdir()
    elif content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VtnError) as caught:
        read(tmp_path)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    if wrong == "a pipe":
        assert "(Not a regular file)" in str(caught.value)
    if reader != "document" and wrong.startswith("larger"):
        assert "larger than 16 MiB" in str(caught.value)


def test_no_more_is_read_than_may_be(tmp_path: Path) -> None:
    file = tmp_path / "d.json"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # of which nothing is on the disk
    for most in (MAX_JSON_BYTES, MAX_BYTES):
        with pytest.raises(ValueError, match=f"larger than {most >> 20} MiB"):
            read_json(file, most)
