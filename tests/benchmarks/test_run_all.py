"""`make bench`: one script's failure costs only itself."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import run_all as everything

from tests.benchmarks.conftest import BENCHMARKS


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


def test_what_fails_or_hangs_does_not_end_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    commands = {
        "fails": python("raise SystemExit(3)"),
        "hangs": python("import time; time.sleep(600)"),
        "works": python("print('measured', flush=True)"),
    }
    assert everything.run_all({"hangs": commands["hangs"]}, 1) == ["hangs"]
    assert everything.run_all({name: commands[name] for name in ("fails", "works")}, 300) == ["fails"]
    out = capfd.readouterr().out
    for words in (
        "[1/2] fails: failed (exit 3)",
        "[2/2] works …",
        "measured",
        "works: done",
        "hangs: stopped after 1 s",
    ):
        assert words in out, out


def test_a_script_that_is_stopped_takes_its_workers_along() -> None:
    """Its child would otherwise go on and disturb what is measured next."""
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', '{}']); time.sleep(600)"
    marker = "import time; time.sleep(601)"
    everything.run_all({"x": python(code.format(marker))}, 5)
    for _ in range(300):  # a killed process is there until the system has come round to it
        left = subprocess.run(["pgrep", "-f", "time.sleep[(]601[)]"], capture_output=True, text=True, check=False)
        if left.returncode == 1:
            break
        time.sleep(0.1)
    assert left.returncode == 1, left.stdout


def test_every_script_is_there_and_has_a_smallest_size() -> None:
    for name, options in everything.SCRIPTS.items():
        assert (BENCHMARKS / f"{name}.py").is_file() and options[-1] == "--dry"


def test_an_unknown_script_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "run_all.py"), "--only", "abacus"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "abacus" in done.stderr
