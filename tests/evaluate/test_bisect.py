"""`validate --bisect`: enough, nothing too much, and the file that `trt --keep-fp32` takes."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.clihelp import SMALL, Cli
from vtn_export import errors
from vtn_export.bundle import Bundle
from vtn_export.evaluate.bisect import Witness, _quick_explain, minimal
from vtn_export.evaluate.forms import Bound
from vtn_export.trt.ranges import read_keep_list
from vtn_export.trt.typed import typed_graph


@pytest.fixture(scope="module")
def one_layer(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one temporal layer: every list tried is a graph typed and run, and lists grow with the nodes."""
    folder = tmp_path_factory.mktemp("one-layer")
    (folder / "config.toml").write_text(SMALL.replace("num_layers = 2", "num_layers = 1"))
    made = cli("onnx", "--config", folder / "config.toml", "--out", folder / "bundle", "--seed", 3)
    assert made.code == 0, made.err
    return folder / "bundle"


@pytest.fixture(scope="module")
def bundle(one_layer: Path) -> Bundle:
    return Bundle.open(one_layer)


def witness(bundle: Bundle, tolerance: float, precision: str = "fp16") -> Witness:
    return Witness(bundle, "temporal", precision, Bound(False, tolerance), lambda _: None)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(8))
def test_quick_explain_finds_a_minimal_set(seed: int) -> None:
    """Hidden needs: some sets, one of which must be wholly inside. What is found holds one, and no more."""
    generator = random.Random(seed)
    names = [str(i) for i in range(generator.randint(1, 40))]
    needs = [set(generator.sample(names, min(len(names), generator.randint(1, 4)))) for _ in range(3)]
    calls = 0

    def passes(some: Sequence[str]) -> bool:
        nonlocal calls
        calls += 1
        return any(need <= set(some) for need in needs)

    found = _quick_explain(passes, names)
    assert passes(found)
    assert not any(passes([name for name in found if name != dropped]) for dropped in found)
    assert calls < 20 + 4 * len(names)


def test_without_any_one_node_the_tolerance_is_not_met(bundle: Bundle) -> None:
    plain = witness(bundle, 0.0).error(())
    judge = witness(bundle, plain * 0.35)
    found = minimal(judge)
    assert len(found) > 1, "choose a tolerance that takes several nodes"
    fresh = witness(bundle, judge.bound.tolerance)  # nothing remembered
    assert fresh.passes(found) and not fresh.passes([])
    for dropped in found:
        assert not fresh.passes([name for name in found if name != dropped]), f"{dropped} is not needed"
    if len(judge.candidates()) <= 256:
        assert not any(fresh.passes([name]) for name in judge.candidates()), "a single node would do"


def test_overflowing_nodes_are_found(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges left out: the nodes that overflow fp16 are what has to stay float32."""
    config, out = tmp_path / "config.toml", tmp_path / "bundle"
    config.write_text(SMALL.replace("tests.nets:patches", "tests.trt.nets:swelling"))
    assert cli("onnx", "--config", config, "--out", out, "--part", "backbone").code == 0
    monkeypatch.setattr("vtn_export.trt.typed.near_limit", lambda *_: {})
    bound = Bundle.open(out).graph("backbone").typed_bounds["fp16"]
    assert bound is not None
    judge = Witness(Bundle.open(out), "backbone", "fp16", Bound(False, bound), lambda _: None)
    assert judge.error(()) == float("inf")
    found = minimal(judge)
    assert found and judge.passes(found)
    assert all("/Mul" in name for name in found), found
    assert not any(judge.passes([name for name in found if name != dropped]) for dropped in found)


@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_file_meets_the_tolerance_through_trts_typing(
    cli: Cli, one_layer: Path, bundle: Bundle, tmp_path: Path, precision: str
) -> None:
    file = tmp_path / "keep.txt"
    plain = {check["part"]: check["measured"] for check in
             cli("validate", one_layer, "--backend", precision, "--json").json["checks"]}  # fmt: skip
    tolerance = 0.6 * plain["temporal"]
    result = cli(
        "validate", one_layer, "--backend", precision, "--bisect", "--atol", tolerance, "--out", file, "--json"
    )
    assert result.code == 0, result.err
    names = read_keep_list(file)
    assert names and names == result.json["bisect"]["nodes"]
    parts = {entry["part"]: entry for entry in result.json["bisect"]["parts"]}
    assert parts["temporal"]["error_without"] == plain["temporal"] > tolerance
    judges = [
        Witness(bundle, part, precision, Bound(False, tolerance), lambda _: None)  # type: ignore[arg-type]
        for part in bundle.manifest.graphs
    ]
    for dropped in names:
        left = [name for name in names if name != dropped]
        assert not all(judge.passes(left) for judge in judges), f"{dropped} is not needed"
    for part in bundle.manifest.graphs:
        graph = typed_graph(bundle, part, precision, keep_fp32=names)  # type: ignore[arg-type]
        (check,) = graph.checks
        assert check.measured <= tolerance and check.measured == pytest.approx(parts[part]["error_with"], rel=1e-6)
        assert {kept.node for kept in graph.kept if kept.reason == "asked for"} <= set(names)

    # and real engines, by TensorRT-RTX on the CPU, whatever of a part is left in the type
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'vtn-export[rtx]'")
    target = Path(shutil.copytree(one_layer, tmp_path / "bundle"))
    shape = ("--batch", "1", "--frames", "1:8:32")
    built = cli("trt", target, f"--{precision}", "--keep-fp32", file, *shape, "--json")
    assert built.code == 0, built.err
    records = {entry["record"]["part"]: entry["record"] for entry in built.json["parts"]}
    assert set(records) == set(parts)
    for part, record in records.items():
        assert record["accuracy"]["measured"] == pytest.approx(parts[part]["error_with"], rel=1e-6)
    assert len(list((target / "engines").glob("*.engine"))) == len(parts)


def test_nothing_to_keep_is_said(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keep.txt"
    result = cli("validate", small_bundle, "--bisect", "--out", file)
    assert result.code == 0 and "0 nodes in" in result.err
    assert read_keep_list(file) == []


def test_a_tolerance_that_nothing_meets(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "keep.txt"
    file.write_text("old\n")
    result = cli("validate", small_bundle, "--bisect", "--atol", "0", "--out", file)
    assert result.code == errors.AccuracyError.exit_code
    assert "give a larger tolerance" in result.err.splitlines()[-1]
    assert file.read_text() == "old\n" and list(tmp_path.iterdir()) == [file]


def test_an_unwritable_list_is_one_line(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    result = cli("validate", small_bundle, "--bisect", "--out", tmp_path / "no" / "folder" / "keep.txt")
    assert result.code in (0, errors.OutputError.exit_code)
    folder = tmp_path / "keep"
    folder.mkdir()
    taken = cli("validate", small_bundle, "--bisect", "--out", folder)
    assert taken.code == errors.OutputError.exit_code and "Traceback" not in taken.err
