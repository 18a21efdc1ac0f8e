"""Writing a bundle: whole or not at all."""

from __future__ import annotations

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

from tests.bundlehelp import snapshot, write
from vtn_export import bundle as bundle_module
from vtn_export.bundle import (
    MANIFEST,
    Bundle,
    Manifest,
    check_target,
    writing,
    writing_file,
)
from vtn_export.errors import OutputError
from vtn_export.untrusted import sha256


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
    from tests.bundlehelp import write
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
