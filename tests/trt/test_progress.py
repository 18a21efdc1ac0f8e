"""What a build tells while it runs: phases of the library's monitor, and the live line made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.trt.test_build import _request
from vtn_export.cli.build_progress import BuildProgress
from vtn_export.trt.process import run_worker


def test_phases_reach_the_listener(rtx: Any, small_bundle: Path, tmp_path: Path) -> None:
    events: list[Mapping[str, Any]] = []
    with BuildProgress("temporal fp32") as progress:

        def listen(event: Mapping[str, Any]) -> None:
            events.append(event)
            progress(event)

        run_worker(_request(small_bundle, engine=str(tmp_path / "e.engine")), listen)
    assert [event["stage"] for event in events if event["event"] == "stage"] == ["parse", "build", "write"]
    started = [event["name"] for event in events if event["event"] == "phase"]
    done = [event["name"] for event in events if event["event"] == "phase_done"]
    assert started and sorted(started) == sorted(done)
    assert any(event["event"] == "phase" and event["parent"] is not None for event in events)
    assert (tmp_path / "e.engine").stat().st_size > 1000


def test_a_listener_that_raises_ends_the_worker(rtx: Any, small_bundle: Path) -> None:
    def listen(_event: Mapping[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_worker(_request(small_bundle), listen)


def test_the_line_follows_nested_phases() -> None:
    progress = BuildProgress("full fp16")
    progress({"event": "stage", "stage": "build"})
    progress({"event": "phase", "name": "outer", "parent": None, "steps": 4})
    progress({"event": "phase", "name": "inner", "parent": "outer", "steps": 9})
    progress({"event": "step", "name": "outer", "step": 1})
    progress({"event": "step", "name": "inner", "step": 2})
    (task,) = progress._progress.tasks
    assert task.total == 4 and task.completed == 2
    assert task.fields["phase"] == "inner 3/9" and task.description == "full fp16: build"
    progress({"event": "phase_done", "name": "inner"})
    progress({"event": "phase_done", "name": "outer"})
    assert progress._open == []
