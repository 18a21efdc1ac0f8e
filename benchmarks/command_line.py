"""What does the command line cost: start-up, an export, a video?

    python benchmarks/command_line.py
    python benchmarks/command_line.py --configs deit_tiny_vtn --starts 3 --rounds 1 --dry

Every command is a process of its own, as a user starts it; peak memory is what the system counted for it.
Python itself stands beside the start-ups. Writes results/command_line.json and a section of README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import context, noise, store, summary
from tables import describe_context, write_section

from vtn_export.video import shipped_clip

SCHEMA = 1
VTN = (sys.executable, "-m", "vtn_export")
START_UPS: dict[str, tuple[str, ...]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "vtn-export --version": (*VTN, "--version"),
    "vtn-export --help": (*VTN, "--help"),
    "vtn-export onnx --help": (*VTN, "onnx", "--help"),
    "vtn-export doctor": (*VTN, "doctor"),
}
CONFIGS = ("deit_tiny_vtn", "resnet50_vtn", "vit_b_vtn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), help="presets or files to export")
    parser.add_argument("--starts", type=int, default=15, help="runs of every start-up")
    parser.add_argument("--rounds", type=int, default=3, help="runs of the commands on a bundle; exports run once")
    parser.add_argument("--dry", action="store_true", help="print, but store nothing")
    arguments = parser.parse_args()
    found: dict[str, Any] = {"schema_version": SCHEMA, "context": context()}
    found["start_ups"] = measure(START_UPS, arguments.starts)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {config: Path(folder) / Path(config).stem for config in arguments.configs}
        exports = {f"onnx --config {c}": (*VTN, "onnx", "--config", c, "--out", str(b)) for c, b in bundles.items()}
        found["exports"] = measure(exports, 1)
        first, clip = str(next(iter(bundles.values()))), str(shipped_clip())
        found["bundle"] = arguments.configs[0]
        found["commands"] = measure(
            {
                "inspect": (*VTN, "inspect", first),
                "validate": (*VTN, "validate", first),
                "run, 32 frames": (*VTN, "run", first, clip, "--frames", "32"),
                "run, 32 frames, openvino": (*VTN, "run", first, clip, "--frames", "32", "--backend", "openvino"),
            },
            arguments.rounds,
        )
    print("\n".join(table(found)))
    if not arguments.dry:
        store("command_line", found)
        write_section("command_line", "\n".join(table(found)))


def measure(commands: dict[str, Sequence[str]] | dict[str, tuple[str, ...]], rounds: int) -> list[dict[str, Any]]:
    """Seconds and peak memory of every command, in turns."""
    names = list(commands)
    runs: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for turn in range(rounds):
        at = turn % len(names)
        for name in names[at:] + names[:at]:
            runs[name].append(run(commands[name]))
    return [
        {
            "command": name,
            **summary([seconds for seconds, _ in found]),
            "peak_bytes": max(peak for _, peak in found),
        }
        for name, found in runs.items()
    ]


# Between us and the command: a process starts with the peak of the one that made it, and this one is small.
_LAUNCHER = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, 1, 0)])
_, code, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(code))
"""


def run(command: Sequence[str]) -> tuple[float, int]:
    """Wall seconds and peak memory in bytes of one process, its children counted in. SystemExit if it fails."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, capture_output=True, text=True, check=True)
    seconds, peak, code = done.stdout.split()
    if int(code) != 0:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(f"command_line: {' '.join(command)}: {lines[-1] if lines else f'exit {code}'}")
    return float(seconds), int(peak)


def table(found: dict[str, Any]) -> list[str]:
    lines = [
        "## Command line (`python benchmarks/command_line.py`)",
        "",
        "Each a process of its own, from start to end; the largest peak of its runs.",
        "",
        "| command | seconds (runs) | peak memory |",
        "| --- | ---: | ---: |",
    ]
    for row in found["start_ups"]:
        lines.append(_row(f"`{row['command']}`", row))
    for row in found["exports"]:
        lines.append(_row(f"`{row['command']}`, all parts", row))
    for row in found["commands"]:
        lines.append(_row(f"`{row['command']}` ({found['bundle']})", row))
    lines += ["", noise([*found["start_ups"], *found["commands"]]), ""]
    return [*lines, describe_context(found["context"])]


def _row(title: str, row: dict[str, Any]) -> str:
    digits = 2 if row["median_seconds"] < 10 else 0
    middle, low, high = (f"{row[f'{key}_seconds']:.{digits}f}" for key in ("median", "min", "max"))
    runs = f" ({low}–{high})" if row["runs"] > 1 else " (one run)"
    return f"| {title} | {middle} s{runs} | {row['peak_bytes'] / 1e6:.0f} MB |"


if __name__ == "__main__":
    main()
