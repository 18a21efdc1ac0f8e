"""`--backend auto`: measured, said, and only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.clihelp import Cli
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import BundleError
from vtn_export.evaluate import race
from vtn_export.evaluate.race import Choice, choose, example
from vtn_export.runtime.session import OrtSession
from vtn_export.spec import PARTS, Array, check_inputs
from vtn_export.video import shipped_clip


def test_the_winner_has_the_least_measured_time(small_bundle: Path) -> None:
    choice = choose(Bundle.open(small_bundle), threads=1)
    assert set(choice.seconds) == {"ort", "openvino"}
    assert choice.seconds[choice.backend] == min(choice.seconds.values()) > 0
    assert all(name in choice.describe() for name in ("ort", "openvino"))


@pytest.mark.parametrize("slow", ["ort", "openvino"])
def test_a_slow_backend_loses(small_bundle: Path, monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    import time

    from vtn_export.runtime.openvino import OpenVinoSession

    kind = OrtSession if slow == "ort" else OpenVinoSession
    run = kind._run

    def delayed(self: OrtSession, inputs: dict[str, Array]) -> dict[str, Array]:
        time.sleep(0.2)
        return run(self, inputs)

    monkeypatch.setattr(kind, "_run", delayed)
    assert choose(Bundle.open(small_bundle), ("temporal",), threads=1).backend != slow


def test_alone_means_no_race(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "is_installed", lambda name: False)
    choice = choose(Bundle.open(small_bundle))
    assert (choice.backend, choice.seconds) == ("ort", {}) and "openvino" in choice.why


def test_engines_for_this_gpu_win_without_a_race(small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "_engines_fit", lambda bundle, parts: True)
    assert choose(Bundle.open(small_bundle)).backend == "trt"


def test_a_missing_part_is_an_error(small_bundle: Path) -> None:
    bundle = Bundle.open(small_bundle)
    del bundle.manifest.graphs["full"]  # type: ignore[attr-defined]
    with pytest.raises(BundleError, match="no full graph"):
        choose(bundle, ("full",))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("frames", "batch"), [(1, 1), (17, 2)])
def test_examples_are_what_the_graph_takes(small_bundle: Path, part: str, frames: int, batch: int) -> None:
    spec = Bundle.open(small_bundle).graph(part).spec  # type: ignore[arg-type]
    inputs = example(spec, part, frames, batch)  # type: ignore[arg-type]
    check_inputs(spec, inputs)
    with Sessions(Bundle.open(small_bundle)) as sessions:
        sessions[part].run(inputs)  # type: ignore[index]


def test_run_says_who_won(cli: Cli, small_bundle: Path) -> None:
    result = cli("run", small_bundle, shipped_clip(), "--backend", "auto", "--json", "--threads", "1")
    assert result.code == 0, result.err
    assert result.json["backend"] in ("ort", "openvino")
    assert "--backend auto" in result.err and "openvino" in result.err


def test_without_auto_nothing_is_raced(cli: Cli, small_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "choose", lambda *_, **__: pytest.fail("raced"))
    assert cli("run", small_bundle, shipped_clip(), "--json").code == 0


@pytest.mark.parametrize("command", ["run", "features", "validate", "bench"])
def test_an_unknown_backend_names_those_there_are(cli: Cli, small_bundle: Path, command: str) -> None:
    video = [shipped_clip()] if command in ("run", "features") else []
    result = cli(command, small_bundle, *video, "--backend", "cuda")
    assert result.code == 2
    assert all(name in result.err for name in ("got 'cuda'", "ort, openvino, torch, trt", "auto"))


def test_validate_takes_the_winner(cli: Cli, small_bundle: Path) -> None:
    result = cli("validate", small_bundle, "--backend", "auto", "--threads", "1", "--json")
    assert result.code == 0, result.err
    assert result.json["backend"] in ("ort", "openvino") and "--backend auto" in result.err


def test_a_choice_without_times_gives_its_reason() -> None:
    assert Choice("ort", why="alone").describe() == "--backend auto: ort (alone)"
