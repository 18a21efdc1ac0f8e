"""What a measurement was made on: machine, clocks, power mode, temperature, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from vtn_export import __version__
from vtn_export.evaluate.doctor import gpu_name, processor_name
from vtn_export.evaluate.power import power_state
from vtn_export.runtime.inference import available_memory
from vtn_export.runtime.session import available_cpus

_PACKAGES = ("numpy", "onnx", "onnxruntime", "torch", "timm", "tensorrt", "tensorrt-rtx-cu13", "openvino", "av")


def machine_context(threads: int | None) -> dict[str, Any]:
    """JSON-ready facts; a fact that this machine does not tell is null."""
    power = power_state()
    if power["power_mode"] is None:  # another place for the status file than we know
        power["power_mode"] = _command("nvpmodel", "-q")
    return {
        **power,
        "vtn_export": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "cpu": processor_name(),
        "cpus_usable": available_cpus(),
        "threads": threads or available_cpus(),
        "load_average": list(os.getloadavg()),
        "memory_free_bytes": available_memory(),
        "gpu": gpu_name(),
        "gpu_driver": _nvidia("driver_version"),
        "gpu_clock_mhz": _nvidia("clocks.sm"),
        "packages": _versions(),
    }


def same_machine(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What differs between two contexts that makes their times incomparable; empty when nothing does."""
    keys = (
        "system",
        "cpu",
        "cpus_usable",
        "threads",
        "gpu",
        "gpu_driver",
        "power_mode",
        "jetson_clocks",
        "cpu_governor",
    )
    return [f"{key}: {a.get(key)} and {b.get(key)}" for key in keys if a.get(key) != b.get(key)]


def _command(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _nvidia(field: str) -> str | None:
    return _command("nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader")


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
