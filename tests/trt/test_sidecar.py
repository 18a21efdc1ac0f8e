"""An engine's record: what it refuses before anything is deserialised, each time with the command that rebuilds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vtn_export.bundle import Bundle
from vtn_export.errors import EngineError
from vtn_export.spec import GraphSpec
from vtn_export.trt import sidecar
from vtn_export.trt.gpu import Gpu
from vtn_export.trt.inspector import parse_layers
from vtn_export.trt.plugin_form import PluginRecord
from vtn_export.trt.profile import Range
from vtn_export.trt.sidecar import Sidecar
from vtn_export.untrusted import sha256

ORIN = Gpu("Orin", "8.7", 12060, 8 << 30, True)


def make_record(bundle: Bundle, name: str = "temporal-fp16-tensorrt-sm87-0", **changes: Any) -> Sidecar:
    """A record and its engine file (not a real engine: nothing here deserialises)."""
    engine = sidecar.engine_path(bundle, name)
    engine.parent.mkdir(exist_ok=True)
    engine.write_bytes(b"engine of " + name.encode())
    record = Sidecar(
        name=name,
        part="temporal",
        key="k",
        engine_sha256=sha256(engine),
        engine_bytes=engine.stat().st_size,
        flavor="tensorrt",
        version="10.3.0",
        compute_capabilities=("8.7",),
        gpu=ORIN.to_json(),
        platform="linux-aarch64",
        precision="fp16",
        tf32=False,
        attention="portable",
        kept_fp32=[],
        accuracy=None,
        profiles=[{"batch": Range(1, 1, 4), "frames": Range(1, 8, 16)}],
        spec=bundle.graph("temporal").spec,
        plugin=None,
        source_file="temporal.onnx",
        source_sha256=bundle.manifest.files["temporal.onnx"],
        forecast={},
        options={},
        command="vtn-export trt b --part temporal --fp16 --force",
        build={"layers": 3},
    )
    record = dataclasses.replace(record, **changes)
    sidecar.record_path(bundle, name).write_text(json.dumps(record.to_json()))
    return record


@pytest.fixture
def opened(bundle: Path) -> Bundle:
    return Bundle.open(bundle)


def usable(record: Sidecar, gpu: Gpu = ORIN, version: str | None = "10.3.0", plugin: Path | None = None) -> list[str]:
    return sidecar.machine_problems(record, gpu, lambda _flavor: version, plugin)


def test_round_trip(opened: Bundle) -> None:
    record = make_record(opened, plugin=PluginRecord("SlidingWindowAttention", "1", "vtn", "libvtn.so", "ab"))
    assert sidecar.read(sidecar.record_path(opened, record.name)) == record
    assert sidecar.problems(record, opened) == [] and isinstance(record.spec, GraphSpec)


def test_the_engine_that_fits_is_found(opened: Bundle) -> None:
    make_record(opened, "temporal-a", version="10.16.2")
    fits = make_record(opened, "temporal-b")
    make_record(opened, "backbone-c", part="backbone")
    assert sidecar.find(opened, "temporal", lambda record: usable(record)).name == fits.name


@pytest.mark.parametrize(
    ("changes", "gpu", "version", "words"),
    [
        ({}, dataclasses.replace(ORIN, name="AGX", compute_capability="11.0"), "10.3.0", "got AGX (SM 11.0)"),
        ({}, ORIN, "10.16.2", "got 10.16.2, expected 10.3.0"),
        ({}, ORIN, None, "got not installed, expected 10.3.0"),
        ({"flavor": "rtx", "gpu": None, "compute_capabilities": ("8.6",)}, ORIN, "10.3.0", "got SM 8.7"),
        ({"plugin": PluginRecord("S", "1", "vtn", "libvtn.so", "abc")}, ORIN, "10.3.0", "plugin: none found"),
        ({"source_sha256": "0" * 64}, ORIN, "10.3.0", "the bundle's temporal.onnx: got"),
        ({"engine_sha256": "0" * 64}, ORIN, "10.3.0", "got SHA-256"),
    ],
)
def test_mismatches(opened: Bundle, changes: dict[str, Any], gpu: Gpu, version: str | None, words: str) -> None:
    make_record(opened, **changes)
    with pytest.raises(EngineError) as caught:
        sidecar.find(opened, "temporal", lambda record: usable(record, gpu, version))
    message = str(caught.value)
    assert words in message and "expected" in message
    assert message.endswith("rebuild it: vtn-export trt b --part temporal --fp16 --force")


def test_another_plugin(opened: Bundle, tmp_path: Path) -> None:
    record = make_record(opened, plugin=PluginRecord("S", "1", "vtn", "libvtn.so", "abc"))
    library = tmp_path / "libvtn.so"
    library.write_bytes(b"another")
    (told,) = usable(record, plugin=library)
    assert "plugin libvtn.so: got" in told and "expected abc" in told


def test_changed_engine_file(opened: Bundle) -> None:
    record = make_record(opened)
    with sidecar.engine_path(opened, record.name).open("ab") as stream:
        stream.write(b"!")
    assert "expected" in sidecar.problems(record, opened)[0]
    sidecar.engine_path(opened, record.name).unlink()
    assert "No such file" in sidecar.problems(record, opened)[0]


def test_no_engine(opened: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no engine of the temporal part; build one: vtn-export trt .* temporal"):
        sidecar.find(opened, "temporal", lambda _record: [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"schema_version": 2}',
        '{"schema_version": 1}',
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
        "[" * 100_000,
    ],
)
def test_damaged_record(opened: Bundle, text: str) -> None:
    path = sidecar.record_path(opened, "x")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(EngineError, match=r"x\.json"):
        sidecar.read(path)
    assert sidecar.describe_engines(opened)[0]["problems"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("part", "head"),
        ("precision", "fp4"),
        ("name", "../../etc/passwd"),
        ("profiles", [{"batch": [1, 2]}]),
        ("engine_sha256", 5),
        ("tf32", "no"),
        ("plugin", {"file": "x"}),
        ("io", {"inputs": [{"name": 1}]}),
    ],
)
def test_malformed_field(opened: Bundle, field: str, value: Any) -> None:
    record = make_record(opened)
    path = sidecar.record_path(opened, record.name)
    path.write_text(json.dumps({**record.to_json(), field: value}))
    with pytest.raises(EngineError, match=r"malformed engine record .* build it again"):
        sidecar.read(path)


def test_layers_of_the_inspector() -> None:
    assert parse_layers('{"Layers": [{"Name": "a"}], "Bindings": []}') == [{"Name": "a"}]
    assert parse_layers('{"Layers": ["a"], "I/O Tensors": []}') == ["a"]
    assert parse_layers("not json") == [] and parse_layers("[]") == []
