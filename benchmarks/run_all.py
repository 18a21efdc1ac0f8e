"""`make bench`: every benchmark in turn, one process each; what one finished is kept if the next one fails.

    python benchmarks/run_all.py                 everything at full size: half an hour to an hour on two quiet cores
    python benchmarks/run_all.py --smallest      each at its smallest size, nothing stored: does it all run here?
    python benchmarks/run_all.py --only engines command_line

Each script stores its own results/*.json, section of README.md and plot when it is done. Exit 1 if one failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
# script -> options of its smallest size
SCRIPTS: dict[str, tuple[str, ...]] = {
    "temporal": ("--frames", "17", "250", "--dry"),
    "temporal_peers": ("--small", "--frames", "17", "60", "--dry"),
    "whole_video": ("--configs", "deit_tiny_vtn", "--frames", "3", "--rounds", "1", "--networks", "r3d_18", "--dry"),
    "engines": ("--configs", "deit_tiny_vtn", "--precisions", "fp32", "--parts", "temporal", "--rounds", "1", "--dry"),
    "precisions": ("--clips", "2", "--calibration", "8", "--precisions", "int8", "--dry"),
    "streaming": ("--configs", "deit_tiny_vtn", "--rounds", "1", "--dry"),
    "command_line": ("--configs", "deit_tiny_vtn", "--starts", "1", "--rounds", "1", "--dry"),
}
MINUTES = 30.0  # a script; one that hangs must not keep the others from running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", action="store_true", help="each at its smallest size; nothing is stored")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--minutes", type=float, default=MINUTES, help="the most that one script may take")
    arguments = parser.parse_args()
    options = SCRIPTS if arguments.smallest else dict.fromkeys(SCRIPTS, ())
    commands = {name: (sys.executable, str(HERE / f"{name}.py"), *options[name]) for name in arguments.only}
    failed = run_all(commands, arguments.minutes * 60)
    if failed:
        raise SystemExit(f"bench: {', '.join(failed)} failed; the others' results are kept")


def run_all(commands: Mapping[str, Sequence[str]], seconds: float) -> list[str]:
    """Run every command, whatever became of the one before; names of those that failed."""
    states: dict[str, str] = {}
    begin = time.monotonic()
    for number, (name, command) in enumerate(commands.items(), 1):
        print(f"[{number}/{len(commands)}] {name} …", flush=True)
        start = time.monotonic()
        states[name] = _run(command, seconds)
        print(f"[{number}/{len(commands)}] {name}: {states[name]}, {time.monotonic() - start:.0f} s", flush=True)
    print(f"all: {time.monotonic() - begin:.0f} s; " + ", ".join(f"{name} {state}" for name, state in states.items()))
    return [name for name, state in states.items() if state != "done"]


def _run(command: Sequence[str], seconds: float) -> str:
    # a group of its own: a script that is stopped takes its workers with it
    process = subprocess.Popen(command, cwd=HERE.parent, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if code == 0 else f"failed (exit {code})"


if __name__ == "__main__":
    main()
