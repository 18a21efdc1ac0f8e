"""The bundle on disk: whole or not at all, and nothing of it is trusted."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtn_export import bundle as bundle_module
from vtn_export.bundle import (
    MANIFEST,
    Bundle,
    GraphEntry,
    Manifest,
    check_target,
    sha256,
    write_manifest,
    writing,
    writing_file,
)
from vtn_export.errors import BundleError, OutputError
from vtn_export.spec import Preprocessing, graph_spec


def manifest(name: str = "small") -> Manifest:
    spec = graph_spec("temporal", crop_size=32, feature_dim=64, num_classes=3, input_type="uint8")
    return Manifest(
        name=name,
        precision="fp32",
        input_type="uint8",
        op_version=1,
        preprocessing=Preprocessing(),
        config={"name": name, "temporal": {"num_layers": 2}},
        graphs={"temporal": GraphEntry("temporal.onnx", spec, 1e-5, 1e-6, 1000, 10, {"fp16": 0.01, "bf16": None})},
        weights={"checkpoint": None, "seed": 0, "fingerprint": "ab", "backbone_fingerprint": "cd"},
        tools={"vtn-export": "0.1.0"},
    )


def write(path: Path, content: bytes = b"graph", name: str = "small") -> Bundle:
    """A bundle of arbitrary bytes: this module never looks into the files."""
    with writing(path) as folder:
        (folder / "temporal.onnx").write_bytes(content)
        (folder / "labels.txt").write_text("left\nright\nstill\n")
        write_manifest(folder, manifest(name))
    return Bundle.open(path)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def old(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A bundle, and a check that it is as it was with nothing beside it."""
    path = tmp_path / "out"
    write(path, b"old")
    before = snapshot(path)

    def unchanged() -> None:
        assert snapshot(path) == before
        assert [item.name for item in tmp_path.iterdir()] == ["out"]

    yield path, unchanged


def test_round_trip(tmp_path: Path) -> None:
    bundle = write(tmp_path / "deep" / "er" / "out")
    assert bundle.labels() == ["left", "right", "still"]
    assert bundle.graph_path("temporal").read_bytes() == b"graph"
    assert bundle.manifest.random_weights and bundle.manifest.backbone_fingerprint == "cd"
    again = Manifest.from_json(json.loads((bundle.path / MANIFEST).read_text()), bundle.path)
    assert again == bundle.manifest
    assert set(again.files) == {"temporal.onnx", "labels.txt"}
    assert again.files["temporal.onnx"] == sha256(bundle.path / "temporal.onnx")
    bundle.verify()
    assert [item.name for item in (tmp_path / "deep" / "er").iterdir()] == ["out"]


def test_folder_has_ordinary_permissions(tmp_path: Path) -> None:
    write(tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_replaces_the_old_one(old: tuple[Path, Any]) -> None:
    path, _ = old
    assert write(path, b"new", "newer").manifest.name == "newer"
    assert (path / "temporal.onnx").read_bytes() == b"new"
    assert [item.name for item in path.parent.iterdir()] == ["out"]


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")


def test_link_to_a_bundle_is_followed(old: tuple[Path, Any], tmp_path: Path) -> None:
    path, _ = old
    (tmp_path / "link").symlink_to(path)
    write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (path / "temporal.onnx").read_bytes() == b"new"


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, SystemExit, OSError, MemoryError])
def test_interrupted_leaves_the_old_one(raised: type[BaseException], old: tuple[Path, Any]) -> None:
    path, unchanged = old
    with pytest.raises((OutputError, raised)), writing(path) as folder:
        (folder / "temporal.onnx").write_bytes(b"half")
        raise raised("in the middle")
    unchanged()


@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt])
def test_interrupted_leaves_nothing(raised: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(raised), writing(tmp_path / "out") as folder:
        (folder / "temporal.onnx").write_bytes(b"half")
        raise raised
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("raised", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", [1, 2])
def test_without_atomic_exchange(
    call: int, raised: BaseException, old: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems without it: the old bundle steps aside for one rename, and comes back if that fails."""
    path, unchanged = old
    monkeypatch.setattr(bundle_module, "_exchange", lambda _a, _b: False)
    real, calls = Path.rename, []

    def rename(self: Path, target: Any) -> Path:
        calls.append(target)
        if len(calls) == call:
            raise raised
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        write(path, b"new")
    monkeypatch.undo()
    unchanged()
    monkeypatch.setattr(bundle_module, "_exchange", lambda _a, _b: False)
    write(path, b"newest")
    assert [item.name for item in path.parent.iterdir()] == ["out"]


def test_engines_are_carried_over(old: tuple[Path, Any]) -> None:
    path, _ = old
    (path / "engines" / "sm_87").mkdir(parents=True)
    (path / "engines" / "sm_87" / "temporal.engine").write_bytes(b"engine")
    write(path, b"new")
    assert (path / "engines" / "sm_87" / "temporal.engine").read_bytes() == b"engine"
    Bundle.open(path).verify()
    assert "engines" not in Bundle.open(path).manifest.files


def _child(code: str, *arguments: str) -> subprocess.Popen[str]:
    source = "from pathlib import Path\nimport sys, time\nfrom vtn_export.bundle import writing\n" + textwrap.dedent(
        code
    )
    return subprocess.Popen(
        [sys.executable, "-c", source, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


HANGS = """
with writing(sys.argv[1]) as folder:
    (folder / "temporal.onnx").write_bytes(b"half" * 1000)
    print("writing", flush=True)
    time.sleep(60)
"""


def test_killed_export_is_swept_by_the_next(old: tuple[Path, Any]) -> None:
    path, _ = old
    child = _child(HANGS, str(path))
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    leftovers = [item for item in path.parent.iterdir() if item != path]
    assert len(leftovers) == 1
    # another export to the same place, while that one runs, leaves its folder alone
    write(path.parent / "other")
    with pytest.raises(RuntimeError), writing(path):
        assert leftovers[0].exists()
        raise RuntimeError
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert leftovers[0].exists()
    assert (path / "temporal.onnx").read_bytes() == b"old"
    write(path, b"new")
    assert sorted(item.name for item in path.parent.iterdir()) == ["other", "out"]


def test_sweeping_spares_neighbours(tmp_path: Path) -> None:
    """`vtn` must not sweep the running export of `vtn.2`, nor anything a user named alike."""
    child = _child(HANGS, str(tmp_path / "vtn.4194303"))  # as a process id: larger than any
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    mine = [tmp_path / ".vtn.backup", tmp_path / ".vtn.4194303", tmp_path / ".vtn.4194303.mine.too"]
    for folder in mine:
        folder.mkdir()
    before = set(tmp_path.iterdir())
    write(tmp_path / "vtn")
    assert set(tmp_path.iterdir()) == before | {tmp_path / "vtn"}
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.mark.parametrize("name", ["out[1]", "a*b", "with space", "ünï", "-dash"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    """Glob characters in the name are no pattern when leftovers are swept."""
    left = tmp_path / f".{name}.4194303.abcd1234"
    left.mkdir()
    write(tmp_path / name)
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_interrupt_signal(tmp_path: Path) -> None:
    child = _child(HANGS, str(tmp_path / "out"))
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors and list(tmp_path.iterdir()) == []


def test_disk_full(old: tuple[Path, Any]) -> None:
    """A limit on file size stands in for a full disk: the same OSError where the write happens."""
    path, unchanged = old
    code = """
    import resource, signal
    import numpy as np, onnx
    from onnx import helper, numpy_helper
    from vtn_export.errors import OutputError
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    weights = [numpy_helper.from_array(np.zeros((1000, 100), np.float32), "w")]
    model = helper.make_model(helper.make_graph([], "g", [], [], initializer=weights))
    writers = {
        "bytes": lambda folder: (folder / "a").write_bytes(bytes(200_000)),
        "npz": lambda folder: np.savez(folder / "a.npz", x=np.zeros(100_000)),
        "onnx": lambda folder: onnx.save(model, folder / "a.onnx"),
        "external": lambda folder: onnx.save(model, folder / "a.onnx", save_as_external_data=True, location="a.data"),
    }
    try:
        with writing(sys.argv[1]) as folder:
            writers[sys.argv[2]](folder)
    except OutputError as error:
        print(error)
    """
    for kind in ("bytes", "npz", "onnx", "external"):
        done = _child(code, str(path), kind)
        output, errors = done.communicate(timeout=60)
        assert output == f"writing {path}: File too large; nothing was changed\n", (kind, output, errors)
        unchanged()


def test_no_room_on_a_small_file_system(tmp_path: Path) -> None:
    """A real full disk where this machine lets us mount one; else the limit above is the proof."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs rights that this machine does not give")
    try:
        write(small / "out", b"old")
        before = snapshot(small)
        with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
            write(small / "out", bytes(200_000))
        assert snapshot(small) == before
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_unwritable_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target, reason in (
        (tmp_path / "file", "a file is in the way, expected a folder"),
        (tmp_path / "file" / "out", "ot a directory|ile exists"),
    ):
        with pytest.raises(OutputError, match=reason), writing(target):
            raise AssertionError("never entered")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="broken link"):
        check_target(tmp_path / "broken")


def test_foreign_folder_is_never_touched(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "1.jpg").write_bytes(b"jpg")
    with pytest.raises(OutputError, match="not empty and no bundle"), writing(photos):
        raise AssertionError("never entered")
    assert snapshot(photos) == {"1.jpg": b"jpg"}


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


def test_single_files_are_atomic_too(tmp_path: Path) -> None:
    path = tmp_path / "features.npz"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), writing_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert snapshot(tmp_path) == {"features.npz": b"old"}
    with writing_file(path) as temporary:
        temporary.write_bytes(b"new")
    assert snapshot(tmp_path) == {"features.npz": b"new"}
    with pytest.raises(OutputError, match="a folder is in the way"), writing_file(tmp_path):
        raise AssertionError("never entered")
    with pytest.raises(OutputError, match="nothing was changed"), writing_file(path / "below"):
        raise AssertionError("never entered")


def test_a_reader_always_sees_a_whole_bundle(tmp_path: Path) -> None:
    """While one process replaces the bundle again and again, every open finds one that verifies."""
    path = tmp_path / "out"
    write(path, b"0")
    code = """
    sys.path.insert(0, sys.argv[2])
    from tests.test_bundle import write
    for i in range(60): write(Path(sys.argv[1]), str(i).encode() * 2000)
    """
    child = _child(code, str(path), str(Path(__file__).parent.parent))
    opened, started = 0, time.monotonic()
    while child.poll() is None and time.monotonic() - started < 60:
        Bundle.open(path)
        opened += 1
    _, errors = child.communicate()
    assert child.returncode == 0, errors
    assert opened > 0
    Bundle.open(path).verify()
