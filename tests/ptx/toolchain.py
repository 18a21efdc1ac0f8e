"""Finding nvcc, and compiling CUDA to PTX."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]


def find_nvcc() -> Path | None:
    """nvcc of CUDA_HOME, of PATH, or of a root of NVIDIA's wheels under .cache/cuda; None if there is none."""
    candidates = []
    if home := os.environ.get("CUDA_HOME"):
        candidates.append(Path(home) / "bin" / "nvcc")
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.extend(sorted((_ROOT / ".cache" / "cuda").glob("**/nvidia/cu*/bin/nvcc")))
    return next((path for path in candidates if path.is_file()), None)


def compile_ptx(source: str | Path, arch: str = "sm_80", flags: Sequence[str] = ("-O3", "-std=c++17")) -> str:
    """PTX of a CUDA file, or of CUDA text."""
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc: not found; set CUDA_HOME, or install the CUDA wheels into .cache/cuda")
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
