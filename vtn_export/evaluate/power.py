"""Clocks, power mode and temperatures as the kernel tells them: files under /sys, /proc, /etc and /var alone.

Nothing is started and no root is needed. On a Jetson the power mode is what `nvpmodel` last set, its name from
the board's own table, and `jetson_clocks` shows in the clocks that it pins: every processor's and the GPU's least
frequency is then its largest. A fact that the machine does not tell is None. `root` stands for / in tests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GPU_NAMES = re.compile(r"(gpu|ga10b|gv11b|gp10b|gm20b|gb10b|gpu-gpc.*)$")  # of devfreq devices: 17000000.gpu
_MODE = re.compile(r"pmode:(\d+)")
_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")


def power_state(root: Path = Path("/")) -> dict[str, Any]:
    """JSON-ready: processors' governors and frequencies (kHz), the GPU's (Hz), power mode, pinned clocks, degrees."""
    processors = list(_processors(root))
    gpu = _gpu(root)
    jetson = read(root / "etc/nv_tegra_release")
    return {
        "cpu_governor": processors[0]["governor"] if processors else None,
        "cpu_khz": processors[0]["current"] if processors else None,
        "cpu_clocks_khz": [{key: p[key] for key in ("current", "least", "largest")} for p in processors],
        "gpu_devfreq_hz": gpu,
        "jetson": jetson.splitlines()[0].strip("# ") if jetson else None,
        "model": _model(root),
        "power_mode": _power_mode(root),
        "jetson_clocks": _pinned(processors, gpu) if jetson is not None else None,
        "temperature_celsius": _temperatures(root),
    }


def read(path: Path) -> str | None:
    """A small text file of the kernel's, stripped; None where it is not there or may not be read."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def number(path: Path) -> int | None:
    """A file that holds one integer."""
    text = read(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d{1,18}", text) else None


def _processors(root: Path) -> Iterator[dict[str, Any]]:
    folders = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")
    for folder in sorted(folders, key=lambda path: int(path.parent.name[3:])):
        yield {
            "governor": read(folder / "scaling_governor"),
            "current": number(folder / "scaling_cur_freq"),
            "least": number(folder / "scaling_min_freq"),
            "largest": number(folder / "scaling_max_freq"),
        }


def _gpu(root: Path) -> dict[str, Any] | None:
    """The first GPU that the kernel scales by devfreq (Jetson; a discrete card's driver has its own tool)."""
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        if _GPU_NAMES.search(folder.name):
            keys = {"current": "cur_freq", "least": "min_freq", "largest": "max_freq"}
            found: dict[str, Any] = {key: number(folder / file) for key, file in keys.items()}
            return {**found, "governor": read(folder / "governor")}
    return None


def _power_mode(root: Path) -> str | None:
    """`NAME (ID)` of the mode in force, from nvpmodel's status file and the board's table of modes."""
    status = _MODE.search(read(root / "var/lib/nvpmodel/status") or "")
    if status is None:
        return None
    mode = int(status[1])
    names = {int(number): name for number, name in _MODEL.findall(read(root / "etc/nvpmodel.conf") or "")}
    return f"{names[mode]} ({mode})" if mode in names else str(mode)


def _pinned(processors: list[dict[str, Any]], gpu: dict[str, Any] | None) -> bool | None:
    clocks = [*processors, *([gpu] if gpu is not None else [])]
    known = [c for c in clocks if c["least"] is not None and c["largest"] is not None]
    return all(clock["least"] == clock["largest"] for clock in known) if known else None


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        value = number(zone / "temp")
        if value is not None:
            found[f"{zone.name} {read(zone / 'type') or ''}".strip()] = value / 1000
    return found


def _model(root: Path) -> str | None:
    return read(root / "proc/device-tree/model")
