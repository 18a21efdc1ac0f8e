"""Ceilings, shares of the roofline, and `bench --vs`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.evaluate.roofline import Ceilings, measure_ceilings, share
from vtn_export.onnx.cost import GraphCost


def cost(flops: int, compulsory: int) -> GraphCost:
    return GraphCost(flops, 0, compulsory, 2 * compulsory, ())


@pytest.mark.parametrize(
    ("flops", "compulsory", "seconds", "bound", "expected"),
    [(100, 10, 2.0, "compute", 0.5), (10, 100, 4.0, "memory", 0.5), (100, 50, 1.0, "compute", 1.0)],
)
def test_share_by_hand(flops: int, compulsory: int, seconds: float, bound: str, expected: float) -> None:
    found = share(cost(flops, compulsory), seconds, Ceilings(100.0, 50.0, 1))
    assert (found["bound"], found["roofline_share"]) == (bound, expected)
    assert found["flops_per_second"] == flops / seconds and found["flops_per_byte"] == flops / compulsory


def test_ceilings_are_a_machines() -> None:
    one = measure_ceilings(1, 0.2)
    assert 1e9 < one.flops_per_second < 1e13 and 1e8 < one.bytes_per_second < 1e12
    assert one.threads == 1


def test_a_bundle_against_itself(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    options = ("--part", "temporal", "--mode", "none", "--frames", "7,40", "--duration", 0.05)
    done = cli("bench", small_bundle, "--vs", small_bundle, *options, "--json", "-")
    assert done.code == 0, done.err
    assert done.json["schema"] == "vtn-export/bench-vs" and len(done.json["results"]) == 2
    for entry in done.json["results"]:
        low, high = entry["ratio"]["ci95"]
        assert low <= entry["ratio"]["median"] <= high
        assert len(entry["a"]["seconds"]) == len(entry["b"]["seconds"]) >= 20


@pytest.mark.parametrize("other", ["openvino", "rewrite"])
def test_two_backends_or_forms(cli: Cli, small_bundle: Path, tmp_path: Path, other: str) -> None:
    path = tmp_path / "vs.json"
    options = ("--part", "temporal", "--mode", "none", "--frames", "7", "--duration", 0.05, "--json", path)
    done = cli("bench", small_bundle, "--vs", other, *options)
    assert done.code == 0, done.err
    assert "b / a" in done.out and json.loads(path.read_text())["b"]["backend"] == other


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--vs", "nowhere"), errors.UsageError.exit_code, "--vs: got 'nowhere', expected a bundle's folder or one of"),
        (("--vs", "ort", "--duration", "0"), errors.UsageError.exit_code, "--duration: got '0'"),
        (("--vs", "fp16"), errors.UsageError.exit_code, "a float32 copy that rounds"),
        (("--vs", "trt"), None, "error: "),
    ],
)
def test_bad_sides_are_one_line(
    cli: Cli, small_bundle: Path, options: tuple[str, ...], code: int | None, words: str
) -> None:
    done = cli("bench", small_bundle, "--part", "temporal", "--mode", "none", *options)
    assert done.code == (code or done.code) != 0
    assert words in done.err and len(done.err.strip().splitlines()) <= 2
