"""Reading a bundle: nothing of it is trusted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.bundlehelp import manifest, write
from vtn_export.bundle import (
    MANIFEST,
    Bundle,
    Manifest,
    write_manifest,
    writing,
)
from vtn_export.errors import BundleError
from vtn_export.untrusted import sha256


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda p: None, "no such folder"),
        (lambda p: p.write_text("x"), "got a file, expected the folder"),
        (lambda p: p.mkdir(), "no manifest.json in it"),
        (lambda p: (p.mkdir(), (p / MANIFEST).mkdir()), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text("")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text("{")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_bytes(b"\xff\xfe{}")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text("[" * 100_000)), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text('{"schema_version": ' + "1" * 5000 + "}")), "cannot be read"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text("[]")), "not a manifest of a bundle"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text("{}")), "no schema_version"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text('{"schema_version": "1"}')), "no schema_version"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text('{"schema_version": true}')), "no schema_version"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_text('{"schema_version": 1}')), "malformed manifest"),
        (lambda p: (p.mkdir(), (p / MANIFEST).write_bytes(b" " * (17 << 20))), "larger than 16 MiB"),
    ],
)
def test_no_bundle_there(make: Callable[[Path], Any], expected: str, tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(BundleError, match=expected) as caught:
        Bundle.open(tmp_path / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def _edit(bundle: Bundle, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = bundle.path / MANIFEST
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return bundle.path


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "update vtn-export"), (99, "update"), (0, "export the bundle again")]
)
def test_other_schemas(version: int, remedy: str, tmp_path: Path) -> None:
    path = _edit(write(tmp_path / "out"), lambda d: d.update(schema_version=version))
    with pytest.raises(BundleError, match=f"got schema version {version}, expected 1; {remedy}"):
        Bundle.open(path)


def test_labels_are_one_a_line(tmp_path: Path) -> None:
    """A line ends with a newline and nothing else: label files hold every character there is."""
    with writing(tmp_path / "out") as folder:
        (folder / "temporal.onnx").write_bytes(b"graph")
        (folder / "labels.txt").write_text("tai\u2028chi\nécole\x85\n\nlast\n", encoding="utf-8")
        write_manifest(folder, manifest())
    assert Bundle.open(tmp_path / "out").labels() == ["tai\u2028chi", "école\x85", "", "last"]


def test_changed_files(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    (bundle.path / "temporal.onnx").write_bytes(b"grapH")
    for ask in (bundle.verify, lambda: bundle.graph_path("temporal")):
        with pytest.raises(BundleError, match=r"temporal\.onnx: SHA-256 .* is not the manifest's .*damaged"):
            ask()
    (bundle.path / "temporal.onnx").unlink()
    with pytest.raises(BundleError, match="No such file or directory; the manifest lists it"):
        bundle.graph_path("temporal")
    assert bundle.labels()


def test_external_data_is_compared_too(tmp_path: Path) -> None:
    with writing(tmp_path / "out") as folder:
        (folder / "temporal.onnx").write_bytes(b"graph")
        (folder / "temporal.onnx.data").write_bytes(b"weights")
        write_manifest(folder, manifest())
    bundle = Bundle.open(tmp_path / "out")
    bundle.graph_path("temporal")
    (bundle.path / "temporal.onnx.data").write_bytes(b"weightS")
    with pytest.raises(BundleError, match=r"temporal\.onnx\.data: SHA-256"):
        Bundle.open(tmp_path / "out").graph_path("temporal")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    bundle = write(tmp_path / "out")
    with pytest.raises(BundleError, match=r"no full graph \(it has temporal\)"):
        bundle.graph("full")
    with pytest.raises(BundleError, match=r"no secrets\.txt in its manifest"):
        bundle.file("secrets.txt")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "nul\0", 3, None])
@pytest.mark.parametrize("where", ["file", "graph"])
def test_no_way_out_of_the_folder(name: Any, where: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")

    def change(data: dict[str, Any]) -> None:
        if where == "graph":
            data["graphs"]["temporal"]["file"] = name
        data["files"][name if isinstance(name, str) else ""] = sha256(tmp_path / "outside")

    path = _edit(write(tmp_path / "out"), change)
    with pytest.raises(BundleError, match=r"malformed manifest.*file name"):
        Bundle.open(path)


BASE = json.loads(json.dumps({**manifest().to_json(), "files": {"temporal.onnx": "00", "labels.txt": "11"}}))


def _paths(value: Any, here: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*here, key)
        yield from _paths(inner, (*here, key))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
_INFINITE = ("graphs", "temporal", "memory", "fixed_bytes")


@given(st.sampled_from(sorted(_paths(BASE), key=str)), _json | st.just("<deleted>"))
@example(_INFINITE, float("inf"))
@example(_INFINITE, float("nan"))
@example(("preprocessing", "crop_size"), float("inf"))
@example(("preprocessing", "std", 0), 10**400)
@example(("op", "version"), float("inf"))
@example(("graphs", "temporal", "inputs"), {"a": 1})
@example(("graphs", "temporal", "accuracy", "typed_bounds"), [1])
@example(("graphs", "temporal", "accuracy", "typed_bounds", "fp16"), 10**400)
def test_any_malformed_field_is_refused_or_harmless(path: tuple[Any, ...], value: Any) -> None:
    data = copy.deepcopy(BASE)
    inner: Any = data
    for key in path[:-1]:
        inner = inner[key]
    if value == "<deleted>":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    try:
        read = Manifest.from_json(data, Path("manifest.json"))
    except BundleError as error:
        assert "\n" not in str(error)
    else:
        assert set(read.graphs) <= {"full", "backbone", "temporal"} and read.precision in ("fp32", "fp16", "bf16")
        for name in (*read.files, *(g.file for g in read.graphs.values())):
            assert "/" not in name and name not in ("", ".", "..")


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_for_a_manifest(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(folder)
