"""The C++ loader says what the Python loader says of the same broken files: same code, same sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.libvtn.library import run, sanitized
from vtn_export.bundle import Bundle
from vtn_export.errors import VtnError
from vtn_export.trt import sidecar
from vtn_export.trt.gpu import Gpu
from vtn_export.trt.plugins import find
from vtn_export.untrusted import sha256

pytestmark = pytest.mark.timeout(1200)
SM, GPU, VERSION = "8.7", "Orin", "10.3.0"


@pytest.fixture(scope="module")
def say() -> Path:
    """What the C++ loader says, under ASan and UBSan."""
    return sanitized() / "vtn_say"


def cpp(say: Path, *arguments: object) -> tuple[int, str]:
    done = run(say, *arguments)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    code, _, message = done.stdout.decode().partition("\n")
    return int(code), message.removesuffix("\n")


def python(call: Callable[[], Any]) -> tuple[int, str]:
    try:
        call()
    except VtnError as error:
        return error.exit_code, str(error)
    return 0, ""


def plain(told: tuple[int, str]) -> tuple[int, str]:
    """Without what a JSON parser says of its own: two parsers have two ways to say it."""
    code, message = told
    message = re.sub(r"(malformed [a-z ]+|cannot be read|not readable|preprocessing: malformed) \(.*\)", r"\1", message)
    return code, re.sub(r"(\.json: ).* (is missing or malformed)", r"\1\2", message)


Edit = Callable[[dict[str, Any]], Any]
MANIFESTS: dict[str, Edit] = {
    "newer schema": lambda m: m.update(schema_version=2),
    "older schema": lambda m: m.update(schema_version=0),
    "no schema": lambda m: m.pop("schema_version"),
    "schema of another type": lambda m: m.update(schema_version="1"),
    "name that leaves the folder": lambda m: m["graphs"]["backbone"].update(file="../backbone.onnx"),
    "file that leaves the folder": lambda m: m["files"].update({"a/b": "0" * 64}),
    "graph without a file": lambda m: m["files"].pop("temporal.onnx"),
    "no graphs": lambda m: m.update(graphs={}),
    "unknown part": lambda m: m["graphs"].update(trunk=m["graphs"]["backbone"]),
    "unknown precision": lambda m: m.update(precision="int4"),
    "int8 without its record": lambda m: m.update(precision="int8"),
    "a record of fp32": lambda m: m.update(quantization={}),
    "unknown input type": lambda m: m.update(input_type="uint16"),
    "no accuracy": lambda m: m["graphs"]["full"].pop("accuracy"),
    "no memory": lambda m: m["graphs"]["full"].pop("memory"),
    "no fingerprint": lambda m: m["weights"].pop("backbone_fingerprint"),
    "no op": lambda m: m.pop("op"),
    "no tools": lambda m: m.pop("tools"),
    "no config": lambda m: m.pop("config"),
    "int64 input": lambda m: m["graphs"]["temporal"]["inputs"][1].update(dtype="int64"),
    "input without a shape": lambda m: m["graphs"]["temporal"]["inputs"][0].pop("shape"),
    "crop beyond the short side": lambda m: m["preprocessing"].update(crop_size=41),
    "no short side": lambda m: m["preprocessing"].pop("short_side"),
    "short side of zero": lambda m: m["preprocessing"].update(short_side=0, crop_size=0),
    "deviation of zero": lambda m: m["preprocessing"].update(std=[0.2, 0.0, 0.2]),
    "two means": lambda m: m["preprocessing"].update(mean=[0.4, 0.4]),
    "wrong hash": lambda m: m["files"].update({"labels.txt": "0" * 64}),
    "missing file": lambda m: m["files"].update({"more.bin": "0" * 64}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests(say: Path, small_bundle: Path, tmp_path: Path, name: str) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(small_bundle, bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    MANIFESTS[name](manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    told = plain(python(lambda: Bundle.open(bundle).verify()))
    assert told[0] == 8
    assert plain(cpp(say, "bundle", bundle)) == told


def test_folders_and_files(say: Path, small_bundle: Path, tmp_path: Path) -> None:
    assert cpp(say, "bundle", small_bundle) == (0, "")
    cases = {name: tmp_path / name for name in ("none", "file", "empty", "text", "brackets", "large", "truncated")}
    cases["device"], cases["long"], cases["loop"] = Path("/dev/null"), tmp_path / ("n" * 300), tmp_path / "loop"
    cases["loop"].symlink_to(cases["loop"])
    cases["file"].write_text("x")
    for name, text in zip(("empty", "text", "brackets", "large"), (None, *UNREADABLE), strict=True):
        cases[name].mkdir()
        if text is not None:
            (cases[name] / "manifest.json").write_text(text)
    shutil.copytree(small_bundle, cases["truncated"])
    graph = cases["truncated"] / "temporal.onnx"
    graph.write_bytes(graph.read_bytes()[:-7])
    for name, path in cases.items():
        told = plain(python(lambda path=path: Bundle.open(path).verify()))  # type: ignore[misc]
        assert told[0] == 8, name
        assert plain(cpp(say, "bundle", path)) == told, name
    for name in ("manifest.json", "temporal.onnx", "labels.txt"):  # a pipe in its place would be waited for
        path = tmp_path / f"pipe {name}"
        shutil.copytree(small_bundle, path)
        (path / name).unlink()
        os.mkfifo(path / name)
        told = python(lambda path=path: Bundle.open(path).verify())  # type: ignore[misc]
        assert told[0] == 8 and "Not a regular file" in told[1]
        assert cpp(say, "bundle", path) == told
    part = tmp_path / "part"
    shutil.copytree(small_bundle, part)
    manifest = json.loads((part / "manifest.json").read_text())
    del manifest["graphs"]["full"]
    (part / "manifest.json").write_text(json.dumps(manifest))
    assert cpp(say, "graph", part, "full") == python(lambda: Bundle.open(part).graph("full"))


# no JSON, nested without end, larger than a document may be
UNREADABLE = ("{", "[" * 200000, " " * (17 << 20))
LIBRARY = {
    "schema": 1, "version": "1", "contract_version": 1, "creators": [], "compute_capabilities": [SM],
    "machine": "x86_64", "cuda": "13.0", "tensorrt_headers": "10.14.1",
}  # fmt: skip
PLUGINS: dict[str, Edit] = {
    "good": lambda r: None,
    "changed": lambda r: r.update(sha256="1" * 64),
    "another GPU": lambda r: r.update(compute_capabilities=["8.0", "11.0"]),
    "another contract": lambda r: r.update(contract_version=2),
    "another machine": lambda r: r.update(machine="riscv64"),
    "another schema": lambda r: r.update(schema=2),
    "no schema": lambda r: r.pop("schema"),
    "no version": lambda r: r.pop("version"),
    "no hash": lambda r: r.pop("sha256"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_libraries(say: Path, small_bundle: Path, tmp_path: Path, name: str) -> None:
    if find.this_machine() != "x86_64":
        LIBRARY["machine"] = find.this_machine()
    bundle = tmp_path / "b"
    shutil.copytree(small_bundle, bundle)
    file = bundle / "libvtn_plugins.so"
    file.write_bytes(b"library")
    assert cpp(say, "plugin", bundle, SM) == python(lambda: find.find_library(SM, bundle))  # no record
    record = dict(LIBRARY, sha256=sha256(file))
    PLUGINS[name](record)
    (bundle / "libvtn_plugins.so.json").write_text(json.dumps(record))
    told = plain(python(lambda: find.find_library(SM, bundle)))
    assert told[0] == (0 if name == "good" else 14)
    assert plain(cpp(say, "plugin", bundle, SM)) == told
    for text in UNREADABLE:
        (bundle / "libvtn_plugins.so.json").write_text(text)
        told = plain(python(lambda: find.find_library(SM, bundle)))
        assert told[0] == 14
        assert plain(cpp(say, "plugin", bundle, SM)) == told


def engine_record(bundle: Bundle, engine: Path) -> dict[str, Any]:
    graph = bundle.graph("temporal")
    return {
        "schema_version": 1, "name": engine.stem, "part": "temporal", "key": "k", "engine_sha256": sha256(engine),
        "engine_bytes": 6, "flavor": "tensorrt", "version": VERSION, "compute_capabilities": [],
        "gpu": {"name": GPU, "compute_capability": SM}, "platform": "p", "precision": "fp32", "tf32": False,
        "attention": "portable", "kept_fp32": [], "accuracy": None,
        "profiles": [{"batch": [1, 1, 1], "frames": [1, 24, 48]}], "io": graph.spec.to_json(),
        "plugin": {"name": "n", "version": "1", "namespace": "vtn", "file": "libvtn_plugins.so", "sha256": "a" * 64},
        "source_file": graph.file, "source_sha256": bundle.manifest.files[graph.file], "forecast": {}, "options": {},
        "command": "vtn-export trt b", "build": {}, "tools": {},
    }  # fmt: skip


ENGINES: dict[str, Edit] = {
    "good": lambda r: None,
    "changed engine": lambda r: r.update(engine_sha256="1" * 64),
    "another graph": lambda r: r.update(source_sha256="2" * 64),
    "a graph that is not there": lambda r: r.update(source_file="other.onnx"),
    "another GPU": lambda r: r["gpu"].update(name="Thor", compute_capability="11.0"),
    "other capabilities": lambda r: r.update(gpu=None, compute_capabilities=["11.0", "12.0"]),
    "another TensorRT": lambda r: r.update(version="10.13.3"),
    "another plugin": lambda r: r["plugin"].update(sha256="b" * 64),
    "everything at once": lambda r: r.update(
        engine_sha256="1" * 64, source_sha256="2" * 64, version="10.1.0", gpu={"name": "A", "compute_capability": "8.0"}
    ),
    "newer schema": lambda r: r.update(schema_version=2),
    "no schema": lambda r: r.pop("schema_version"),
    "no command": lambda r: r.pop("command"),
    "another name": lambda r: r.update(name="other"),
    "another part": lambda r: r.update(part="backbone"),
}


@pytest.mark.parametrize("name", ENGINES)
def test_engines(say: Path, small_bundle: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "b"
    shutil.copytree(small_bundle, path)
    bundle = Bundle.open(path)
    engine = path / "engines" / "e.engine"
    engine.parent.mkdir()
    library = tmp_path / "libvtn_plugins.so"
    library.write_bytes(b"plugin")
    engine.write_bytes(b"engine")
    gpu = Gpu(GPU, SM, *([0] * (len(Gpu.__dataclass_fields__) - 2)))
    record = engine_record(bundle, engine)
    record["plugin"]["sha256"] = sha256(library)

    def loaded() -> Any:
        return sidecar.find(
            bundle, "temporal", lambda found: sidecar.machine_problems(found, gpu, lambda _: VERSION, library)
        )

    ask = ("engine", path, GPU, SM, VERSION, library, sha256(library))
    assert cpp(say, *ask) == python(loaded)  # none yet
    ENGINES[name](record)
    (engine.parent / "e.json").write_text(json.dumps(record))
    told = plain(python(loaded))
    assert told[0] == (0 if name == "good" else 13)
    assert plain(cpp(say, *ask)) == told
    if name == "good":
        for text in UNREADABLE:
            (engine.parent / "e.json").write_text(text)
            assert (told := plain(python(loaded)))[0] == 13
            assert plain(cpp(say, *ask)) == told
        for name in ("nowhere", "loop.json"):
            (engine.parent / "loop.json").symlink_to(name)
            (engine.parent / "e.json").unlink(missing_ok=True)
            assert (told := python(loaded))[0] == 13 and "cannot be read" in told[1]
            assert cpp(say, *ask) == told
            (engine.parent / "loop.json").unlink()
        engine.unlink()
        os.mkfifo(engine)
        (engine.parent / "e.json").write_text(json.dumps(record))
        assert (told := python(loaded))[0] == 13 and "Not a regular file" in told[1]
        assert cpp(say, *ask) == told
        engine.unlink()
        (engine.parent / "e.json").write_text(json.dumps(record))
    engine.write_bytes(b"engin")  # truncated
    assert plain(cpp(say, *ask)) == plain(python(loaded))
    engine.unlink()
    assert plain(cpp(say, *ask)) == plain(python(loaded))
