"""The sources compile for SM 8.7 with CUDA 12.6, JetPack 6's: `make test-cuda12` installs what this needs.

PyPI has no nvcc 12.6. Clang in CUDA mode takes its place, with 12.6's headers and 12.6's own ptxas.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.library import DTYPES, ROOT, SOURCES, cuobjdump
from vtn_export.trt import plugins

WHEELS = ROOT / ".cache" / "cuda12" / "nvidia"
CLANG = "clang++-22"


@pytest.fixture(scope="module")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CUDA 12.6 as one root, of links."""
    if not WHEELS.is_dir() or shutil.which(CLANG) is None:
        pytest.skip(f"CUDA 12.6's wheels or {CLANG}: not found; make test-cuda12")
    root = tmp_path_factory.mktemp("cuda12")
    for part in ("cuda_nvcc", "cuda_runtime", "cuda_cccl"):
        shutil.copytree(
            WHEELS / part / "include", root / "include", copy_function=_link, dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__init__.py", "__pycache__"),
        )  # fmt: skip
    for target, link in (("cuda_nvcc/bin", "bin"), ("cuda_nvcc/nvvm", "nvvm"), ("cuda_runtime/lib", "lib64")):
        (root / link).symlink_to(WHEELS / target)
    (root / "include" / "curand_mtgp32_kernel.h").touch()  # clang's wrapper header asks for it; nothing uses it
    return root


def _link(source: str, target: str) -> None:
    Path(target).symlink_to(source)


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels(toolkit: Path, tmp_path: Path, dtype: str) -> None:
    """Device and host halves of each translation unit, unmodified; the cubin is ptxas 12.6's."""
    assert "release 12.6" in run(toolkit / "bin" / "ptxas", "--version")
    cubin = tmp_path / f"{dtype}.cubin"
    command = [
        CLANG, "-x", "cuda", f"--cuda-path={toolkit}", "-Wno-unknown-cuda-version", "--cuda-gpu-arch=sm_87",
        "-std=c++17", "-O3", "-c", SOURCES / "sliding_window_attention" / f"{dtype}.cu", "-o",
    ]  # fmt: skip
    run(*command, cubin, "--cuda-device-only")
    run(*command, tmp_path / "host.o", "--cuda-host-only", "-Xclang", "-fcuda-include-gpubinary", "-Xclang", cubin)
    kernels = set(re.findall(r"Function (vtn_swa_\w+):", run(cuobjdump(), "--dump-resource-usage", cubin)))
    assert len(kernels) == (5 if dtype == "fp32" else 24), kernels
    assert "sm=87, toolkit=126" in run(cuobjdump(), "-elf", cubin)


@pytest.mark.slow
def test_host_code(toolkit: Path, tmp_path: Path) -> None:
    """Everything that is no kernel, with g++ and CUDA 12.6's headers."""
    headers = plugins.find_headers().folder
    for source in sorted(SOURCES.rglob("*.cpp")):
        run(
            "g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-c", source, "-o", tmp_path / f"{source.stem}.o",
            f"-I{SOURCES}", f"-I{SOURCES / 'sliding_window_attention'}", f"-isystem{toolkit / 'include'}",
            f"-isystem{headers}", '-DVTN_PLUGINS_VERSION="1.0.0"',
        )  # fmt: skip
