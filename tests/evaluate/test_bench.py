"""`bench` and `compare` through the command line, and what they say to bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.evaluate.compare import compare, read_result


@pytest.fixture(scope="module")
def result(cli: Cli, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "result.json"
    arguments = ("--frames", "3,40", "--chunk", "1,4", "--batch", "2", "--mode", "chunked,full", "--streams", 2)
    done = cli("bench", small_bundle, *arguments, "--duration", 0.05, "--json", path)
    assert done.code == 0, done.err
    assert "p99" in done.out
    return path


def test_every_case_is_measured_with_its_context(result: Path) -> None:
    data = read_result(result)
    cases = [entry["case"] for entry in data["results"]]
    for case in (
        {"part": "backbone", "chunk": 4},
        {"part": "temporal", "batch": 2, "frames": 40},
        {"part": "full", "batch": 2, "frames": 3},
        {"mode": "full", "frames": 40},
        {"mode": "chunked", "frames": 3},
    ):
        assert case in cases, case
    assert {case["part"] for case in cases if "streams" in case} == {"full", "backbone", "temporal"}
    for entry in data["results"]:
        assert entry["frames_per_second"] > 0
        if "p50_seconds" in entry:
            ordered = [entry[f"p{p}_seconds"] for p in (50, 90, 95, 99)]
            assert ordered == sorted(ordered) and entry["min_seconds"] <= ordered[0] <= entry["max_seconds"]
    chunked = next(entry for entry in data["results"] if entry["case"].get("mode") == "chunked")
    assert set(chunked["split_seconds"]) == {"decode", "backbone", "temporal"}
    assert data["context"]["packages"]["onnxruntime"] and data["peak_host_bytes"] > 0
    assert set(data["load_seconds"]) == {"full", "backbone", "temporal"}


def test_the_same_result_has_not_moved(cli: Cli, result: Path) -> None:
    done = cli("compare", result, result, "--json")
    assert done.code == 0 and not done.json["slower"] and not done.json["remarks"]
    assert {change["verdict"] for change in done.json["changes"]} == {"noise"}


def scaled(result: Path, factor: float, to: Path) -> Path:
    data = json.loads(result.read_text())
    for entry in data["results"]:
        if "seconds" in entry and isinstance(entry["seconds"], list):
            entry["seconds"] = [value * factor for value in entry["seconds"]]
    to.write_text(json.dumps(data))
    return to


def test_a_slow_down_fails_and_a_speed_up_does_not(cli: Cli, result: Path, tmp_path: Path) -> None:
    slow = scaled(result, 3, tmp_path / "slow.json")
    done = cli("compare", result, slow)
    assert done.code == 1 and "slower by more than 5%" in done.err
    assert cli("compare", result, slow, "--threshold", 9).code == 0
    faster = cli("compare", slow, result, "--json")
    assert faster.code == 0 and "faster" in {change["verdict"] for change in faster.json["changes"]}


def test_another_machine_is_allowed_but_said(result: Path) -> None:
    data: dict[str, Any] = read_result(result)
    other = copy.deepcopy(data)
    other["context"]["cpu"] = "another"
    other["results"] = other["results"][1:]
    _, remarks = compare(data, other)
    assert any("another machine: cpu" in remark for remark in remarks)
    assert any("only before" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "cannot be read"),
        ("[]", "not a result"),
        ('{"schema": "vtn-export/bench", "schema_version": 99}', "schema version 99"),
        ('{"schema": "vtn-export/bench", "schema_version": 1}', "malformed"),
        (
            '{"schema": "vtn-export/bench", "schema_version": 1, "context": {},'
            ' "results": [{"case": {"part": "full"}, "p50_seconds": 1, "seconds": [0, "x"]}]}',
            "run time of 0",
        ),
    ],
)
def test_what_is_no_result_is_refused(cli: Cli, result: Path, tmp_path: Path, content: str, part: str) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text(content)
    done = cli("compare", result, bad)
    assert done.code == errors.ShapeError.exit_code and part in done.err and done.err.count("error:") == 1


def test_bad_options(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    for arguments, part in (
        (("--duration", 0), "--duration"),
        (("--frames", "0"), "--frames"),
        (("--chunk", "four"), "--chunk"),
        (("--part", "head"), "--part"),
        (("--mode", "features"), "--mode"),
        (("--backend", "abacus"), "--backend"),
    ):
        done = cli("bench", small_bundle, *arguments)
        assert done.code == errors.UsageError.exit_code and part in done.err, done.err
    blocked = tmp_path / "folder.json"
    blocked.mkdir()
    quick = ("--part", "temporal", "--mode", "none", "--frames", 1, "--duration", 0.01)
    done = cli("bench", small_bundle, *quick, "--json", blocked)
    assert done.code == errors.OutputError.exit_code and "a folder is in the way" in done.err
