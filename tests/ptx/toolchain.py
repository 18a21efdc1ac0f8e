"""Compiling CUDA to PTX."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vtn_export.trt.plugins.toolchain import find_toolkit


def compile_ptx(source: str | Path, arch: str = "sm_80", flags: Sequence[str] = ("-O3", "-std=c++17")) -> str:
    """PTX of a CUDA file, or of CUDA text, by the nvcc that builds the plugin. Raises MissingDependencyError."""
    nvcc = find_toolkit().nvcc
    with tempfile.TemporaryDirectory() as folder:
        path = source if isinstance(source, Path) else Path(folder) / "kernel.cu"
        if isinstance(source, str):
            path.write_text(source)
        out = Path(folder) / "kernel.ptx"
        command = [str(nvcc), f"-arch={arch}", *flags, "-ptx", str(path), "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return out.read_text()
