"""`bench` and `compare` through the command line, and what they say to bad input."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.backends import Sessions
from vtn_export.bundle import MANIFEST, Bundle
from vtn_export.cli.options import seconds_of
from vtn_export.evaluate.bench_schema import read_bench
from vtn_export.evaluate.compare import compare
from vtn_export.runtime.session import OrtSession
from vtn_export.trt.profile import Range

QUICK = ("--part", "temporal", "--mode", "none", "--frames", "1", "--duration", "10ms", "--min-runs", "2")


@pytest.fixture(scope="module")
def result(cli: Cli, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    arguments = ("--frames", "12,3", "--chunk", "4,1", "--batch", "2", "--mode", "chunked,full", "--streams", 2)
    done = cli("bench", small_bundle, *arguments, "--duration", "50ms", "--min-runs", 5, "--json", path)
    assert done.code == 0, done.err
    for column in ("first", "p50", "p90", "p95", "p99", "mean (95 %)", "frames/s", "videos/s", "preprocess"):
        assert column in done.out, column
    assert "loaded in: " in done.err and "peak memory: host" in done.err
    return path


def test_every_case_is_measured_with_its_context(result: Path, small_bundle: Path) -> None:
    data = read_bench(result)
    cases = [entry["case"] for entry in data["results"]]
    for case in (
        {"part": "backbone", "chunk": 4},
        {"part": "temporal", "batch": 2, "frames": 12},
        {"part": "full", "batch": 2, "frames": 3},
        {"mode": "full", "frames": 12},
        {"mode": "chunked", "frames": 3},
    ):
        assert case in cases, case
    assert {case["part"] for case in cases if "streams" in case} == {"full", "backbone", "temporal"}
    for entry in data["results"]:
        assert entry["frames_per_second"] > 0
        if "p50_seconds" in entry:
            ordered = [entry[f"p{p}_seconds"] for p in (50, 90, 95, 99)]
            assert ordered == sorted(ordered) and entry["min_seconds"] <= ordered[0] <= entry["max_seconds"]
            assert len(entry["seconds"]) == entry["runs"] >= 5
            assert entry["peak_host_bytes"] > 50 << 20
        if entry["case"].get("part") == "temporal" and "work" in entry:
            assert entry["videos_per_second"] == pytest.approx(2 / entry["p50_seconds"])
            assert entry["work"]["flops"] > 0 and entry["work"]["roofline_share"] > 0
    assert data["context"]["packages"]["onnxruntime"] and data["peak_host_bytes"] > 0
    assert data["peak_device_bytes"] is None and data["engines"] == {}
    assert set(data["load_seconds"]) == {"full", "backbone", "temporal"}
    assert data["bundle"]["files"] == dict(Bundle.open(small_bundle).manifest.files)


def test_a_modes_time_is_split(result: Path) -> None:
    """What was waited for adds up to the time; each stage alone stands beside it, decoding and preprocessing apart."""
    modes = {entry["case"]["mode"]: entry for entry in read_bench(result)["results"] if "mode" in entry["case"]}
    chunked, full = modes["chunked"], modes["full"]
    assert set(chunked["split_seconds"]) == {"decode", "backbone", "temporal"}
    assert set(full["split_seconds"]) == {"decode", "full"}
    assert list(chunked["stage_seconds"]) == ["decode", "preprocess", "transfer", "backbone", "temporal"]
    for entry in (chunked, full):
        assert entry["stage_seconds"]["decode"] > 0 and entry["stage_seconds"]["preprocess"] > 0
        assert entry["stage_seconds"]["transfer"] is None  # the CPU reads the caller's own memory
        assert max(entry["split_seconds"].values()) <= entry["max_seconds"]


def test_cases_run_from_the_smallest_up(result: Path) -> None:
    cases = [entry["case"] for entry in read_bench(result)["results"] if "streams" not in entry["case"]]
    for key, group in (("chunk", "backbone"), ("frames", "temporal"), ("frames", "full")):
        sizes = [case[key] for case in cases if case.get("part") == group]
        assert sizes == sorted(sizes) and len(sizes) == 2
    assert [case["frames"] for case in cases if case.get("mode") == "chunked"] == [3, 12]


def test_the_same_result_has_not_moved(cli: Cli, result: Path) -> None:
    done = cli("compare", result, result, "--json")
    assert done.code == 0 and not done.json["slower"] and not done.json["remarks"]
    assert {change["verdict"] for change in done.json["changes"]} == {"noise"}


def scaled(result: Path, factor: float, to: Path) -> Path:
    data = json.loads(result.read_text())
    for entry in data["results"]:
        if "seconds" in entry and isinstance(entry["seconds"], list):
            # no noise of this machine in it: within 2 % of its median
            entry["seconds"] = [entry["p50_seconds"] * factor * (1 + 0.01 * (i % 3 - 1)) for i in range(21)]
    to.write_text(json.dumps(data))
    return to


def test_noise_between_runs_is_said(cli: Cli, result: Path, tmp_path: Path) -> None:
    """An interval knows the noise within a run alone: a case that a run calls noisy is called so beside its verdict."""
    data = json.loads(result.read_text())
    entries = [entry for entry in data["results"] if "p50_seconds" in entry]
    for number, entry in enumerate(entries):
        entry["noisy"] = number == 0
    (tmp_path / "noisy.json").write_text(json.dumps(data))
    done = cli("compare", tmp_path / "noisy.json", tmp_path / "noisy.json", "--json")
    assert [change["noisy"] for change in done.json["changes"]] == [True] + [False] * (len(entries) - 1)
    assert done.json["schema"] == "vtn-export/compare" and done.json["schema_version"] == 1
    done = cli("compare", tmp_path / "noisy.json", tmp_path / "noisy.json")
    assert f"NOISY: 1 of {len(entries)} cases" in done.err and done.out.count("NOISY") == 1


def test_a_slow_down_fails_and_a_speed_up_does_not(cli: Cli, result: Path, tmp_path: Path) -> None:
    result, slow = scaled(result, 1, tmp_path / "before.json"), scaled(result, 1.2, tmp_path / "slow.json")
    done = cli("compare", result, slow)
    assert done.code == 1 and "slower by more than 5%" in done.err
    assert cli("compare", result, slow, "--threshold", 0.25).code == 0
    faster = cli("compare", slow, result, "--json")
    assert faster.code == 0 and {change["verdict"] for change in faster.json["changes"]} == {"faster"}


def test_another_machine_is_allowed_but_said(cli: Cli, result: Path, tmp_path: Path) -> None:
    data: dict[str, Any] = read_bench(result)
    other = copy.deepcopy(data)
    other["context"].update(cpu="another\x1b[2J", power_mode="MODE_15W (1)")
    other["backend"] = "openvino"
    other["bundle"]["files"]["temporal.onnx"] = "0" * 64
    other["results"] = other["results"][1:]
    _, remarks = compare(data, other)
    for words in ("another machine: cpu", "another machine: power_mode", "another backend", "another temporal.onnx"):
        assert any(words in remark for remark in remarks), (words, remarks)
    assert any("only before" in remark for remark in remarks)
    (tmp_path / "other.json").write_text(json.dumps(other))
    done = cli("compare", result, tmp_path / "other.json")
    assert done.code == 0 and "another machine: cpu" in done.err and "\x1b" not in done.err + done.out


def test_results_without_a_common_case(cli: Cli, result: Path, tmp_path: Path) -> None:
    data = json.loads(result.read_text())
    for entry in data["results"]:
        entry["case"]["frames"] = 9999
    (tmp_path / "other.json").write_text(json.dumps(data))
    done = cli("compare", result, tmp_path / "other.json")
    assert done.code == errors.UsageError.exit_code and "no case in common" in done.err


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        *way, last = path
        for key in way:
            data = data[key]
        del data[last]

    return change


def put(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        *way, last = path
        for key in way:
            data = data[key]
        data[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(99, "schema_version"), "got schema version 99, expected 1; update vtn-export"),
        (put(0, "schema_version"), "got schema version 0, expected 1; make it again"),
        (put(True, "schema_version"), "got schema version true"),
        (put("vtn-export/bench-vs", "schema"), "but vtn-export/bench-vs"),
        (drop("schema"), "not a result of `vtn-export bench --json FILE`"),
        (drop("results"), "malformed: results is missing"),
        (drop("context"), "malformed: context is missing"),
        (put({}, "results"), "results: got {}, expected a list"),
        (put(0, "results", 0, "seconds", 0), "results[0].seconds[0]: got 0, expected a number above 0"),
        (put("x", "results", 0, "seconds", 1), "results[0].seconds[1]: got x"),
        (put(1e999, "results", 0, "p50_seconds"), "results[0].p50_seconds: got Infinity"),
        (put([1], "results", 0, "case", "frames"), "results[0].case.frames: got [1]"),
        (drop("results", 0, "case"), "results[0].case is missing"),
        (put([], "bundle", "files"), "bundle.files: got [], expected an object"),
    ],
)
def test_what_is_no_result_is_refused(
    cli: Cli, result: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    data = json.loads(result.read_text())
    change(data)
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(data))
    done = cli("compare", result, bad)
    assert done.code == errors.ShapeError.exit_code and words in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "not a result"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"schema": "vtn-export/bench", "schema_version": 1' + b"0" * 5000 + b"}", "cannot be read"),
        (None, "No such file"),
    ],
)
def test_what_is_no_json_is_refused(cli: Cli, result: Path, tmp_path: Path, content: bytes | None, words: str) -> None:
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    done = cli("compare", bad, result)
    assert done.code == errors.ShapeError.exit_code and words in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--duration", "0"), errors.UsageError, "--duration: got '0', expected a time above 0 such as 10s"),
        (("--frames", "0"), errors.UsageError, "--frames"),
        (("--chunk", "four"), errors.UsageError, "--chunk"),
        (("--part", "head"), errors.UsageError, "--part"),
        (("--mode", "features"), errors.UsageError, "--mode"),
        (("--backend", "abacus"), errors.UsageError, "--backend"),
        (("--backend", "trt"), errors.GpuError, "no NVIDIA GPU answers"),
    ],
)
def test_bad_options(
    cli: Cli, small_bundle: Path, arguments: tuple[str, ...], kind: type[errors.VtnError], words: str
) -> None:
    done = cli("bench", small_bundle, *QUICK, *arguments)
    assert done.code == kind.exit_code and words in done.err, done.err
    assert done.err.count("error: ") == 1 and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("500ms", 0.5), ("2m", 120), (".5", 0.5), ("3", 3), ("1.5s", 1.5)]
)
def test_durations_are_spelled_as_people_do(text: str, seconds: float) -> None:
    assert seconds_of(text, "--duration") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["0", "0s", "-1s", "soon", "nan", "inf", "", "1h", "1e3", "99999999s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(errors.UsageError, match="expected a time above 0 such as 10s"):
        seconds_of(text, "--duration")


def test_the_duration_is_measured(cli: Cli, small_bundle: Path) -> None:
    done = cli("bench", small_bundle, *QUICK, "--duration", "20ms", "--json", "-")
    assert done.code == 0, done.err
    assert done.json["protocol"]["duration_seconds"] == 0.02
    assert sum(done.json["results"][0]["seconds"]) >= 0.02 * (1 - 1e-9)


def test_a_backend_that_is_not_installed(cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    done = cli("bench", small_bundle, *QUICK, "--backend", "openvino")
    assert done.code == errors.MissingDependencyError.exit_code
    assert "pip install 'vtn-export[openvino]'" in done.err


def test_a_bundle_of_another_schema(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    manifest = json.loads((small_bundle / MANIFEST).read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST).write_text(json.dumps({**manifest, "schema_version": 7}))
    done = cli("bench", other, *QUICK, "--json", tmp_path / "x.json")
    assert done.code == errors.BundleError.exit_code and "got schema version 7" in done.err
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "x.json").exists()


@pytest.mark.parametrize("command", ["bench", "vs"])
def test_a_result_that_cannot_be_written_is_said_before_any_work(
    cli: Cli, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("vtn_export.evaluate.bench.bench", lambda *_, **__: pytest.fail("measured"))
    monkeypatch.setattr("vtn_export.evaluate.versus.versus", lambda *_, **__: pytest.fail("measured"))
    folder, file = tmp_path / "folder.json", tmp_path / "file"
    folder.mkdir()
    file.write_text("")
    vs = ("--vs", "ort") if command == "vs" else ()
    for target, words in ((folder, "a folder is in the way"), (file / "x.json", "cannot be written")):
        done = cli("bench", small_bundle, *QUICK, *vs, "--json", target)
        assert done.code == errors.OutputError.exit_code and words in done.err, done.err
        assert len(done.err.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == [file, folder]


class Profiled(OrtSession):
    """The graph on the CPU, with the record of an engine of up to 32 frames and chunks of 8."""

    class record:
        name, engine_sha256 = "a", "0" * 64
        profiles = ({"batch": Range(1, 1, 1), "frames": Range(1, 8, 32), "chunk": Range(1, 4, 8)},)
        spec: Any = None


def profiled(sessions: Sessions, part: Any) -> Profiled:
    entry = sessions.bundle.graph(part)
    made = Profiled(sessions.bundle.graph_path(part), entry.spec, threads=1)
    made.record.spec = entry.spec
    return made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--part", "temporal", "--mode", "none", "--frames", "8,64"), "frames"),
        (("--part", "backbone", "--mode", "none", "--chunk", "9"), "chunk"),
        (("--part", "temporal", "--mode", "chunked", "--frames", "12"), "chunk"),
    ],
)
def test_lengths_beyond_an_engines_profile(
    cli: Cli,
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    """Before anything is measured, one line; with the real choice of profiles."""
    monkeypatch.setattr(Sessions, "_make", profiled)
    monkeypatch.setattr("vtn_export.evaluate.bench.measure", lambda *_: pytest.fail("measured"))
    path = tmp_path / "x.json"
    done = cli("bench", small_bundle, "--duration", "10ms", *arguments, "--json", path)
    assert done.code == errors.ShapeError.exit_code, done.err
    assert words in done.err.splitlines()[-1] and done.err.count("error: ") == 1 and not path.exists()


def test_an_engines_hash_stands_in_the_result(cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sessions, "_make", profiled)
    done = cli("bench", small_bundle, *QUICK, "--json", "-")
    assert done.code == 0, done.err
    assert done.json["engines"] == {"temporal": {"name": "a", "sha256": "0" * 64}}
