"""Statistics, turns, memory and workers of the benchmarks."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import protocol
import pytest
from hypothesis import given
from hypothesis import strategies as st

SECONDS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=30)


@given(SECONDS)
def test_summary_is_numpys(seconds: list[float]) -> None:
    got = protocol.summary(seconds)
    assert got["median_seconds"] == pytest.approx(np.median(seconds))
    assert (got["min_seconds"], got["max_seconds"], got["runs"]) == (min(seconds), max(seconds), len(seconds))
    assert got["spread"] == pytest.approx(np.ptp(seconds) / np.median(seconds))


def test_ratios_are_taken_round_by_round() -> None:
    # the machine was twice as slow in the second round: the ratio does not move
    got = protocol.ratios([2.0, 4.0, 2.2], [1.0, 2.0, 1.0])
    assert got["median"] == 2.0 and got["min"] == 2.0 and got["max"] == pytest.approx(2.2) and got["best"] == 2.0
    with pytest.raises(ValueError, match="zip"):
        protocol.ratios([1.0], [1.0, 2.0])


@pytest.mark.parametrize("p", [0.5, 1.0, 2.0])
def test_slope_is_the_exponent(p: float) -> None:
    assert protocol.slope({n: 3e-5 * n**p for n in (250, 1024, 4096, 16384)}) == pytest.approx(p)


def test_slope_of_one_length_is_refused() -> None:
    with pytest.raises(ValueError, match="got 1 lengths"):
        protocol.slope({250: 1.0})


def test_every_run_takes_every_place_in_turn() -> None:
    order: list[str] = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = protocol.interleave(runs, 3, pause=0)  # type: ignore[arg-type]
    assert "".join(order) == "abcbcacab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(time >= 0 for times in seconds.values() for time in times)


def test_noise_is_stated() -> None:
    entries = [{"spread": 0.1, "runs": 3}, {"spread": 0.5, "runs": 3}, {"spread": 0.15, "runs": 3}]
    assert protocol.noise(entries).endswith("15% in the middle, 50% at worst; 1 of 3 medians beyond 20%.")
    assert "One run each" in protocol.noise([{"spread": 0.0, "runs": 1}])


_WORKER = """
import sys
sys.path.insert(0, {benchmarks!r})
from protocol import serve
def handle(value):
    print("libraries print what they like")
    if value == 13:
        raise ValueError("bad\\nluck")
    if value == 99:
        import os; os._exit(7)
    return {{"square": value * value}}
serve(handle)
"""


def test_worker_answers_and_says_how_it_failed(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(_WORKER.format(benchmarks=str(Path(protocol.__file__).parent)))
    with protocol.Worker(str(script)) as worker:
        assert worker.ask(value=5) == {"square": 25}
        assert worker.ask(value=13) == {"error": "ValueError: bad luck"}
        assert worker.ask(value=3) == {"square": 9}
        assert worker.ask(value=99) == {"error": "its process ended with 7"}
        assert "error" in worker.ask(value=1)


def test_results_are_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "RESULTS", tmp_path)
    protocol.store("x", {"a": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    with pytest.raises(TypeError):
        protocol.store("x", {"a": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1\n}\n'


def test_context_names_the_machine() -> None:
    found = protocol.context()
    assert found["threads"] == protocol.THREADS and found["cpu"] and found["packages"]["onnxruntime"]
    assert statistics.mean(found["load_average"]) >= 0
