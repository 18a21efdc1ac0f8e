"""The C++ host that drives the plugin as TensorRT does, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.library import CACHE, SOURCES, locked
from vtn_export.errors import MissingDependencyError
from vtn_export.trt import plugins

GTEST = Path("/usr/include/gtest/gtest.h")


def build_host(name: str, *entries: str) -> Path:
    """Configures and builds plugins/ with its test host; one GPU generation is enough for host code."""
    if not GTEST.is_file():
        pytest.skip("GoogleTest: not found; apt-get install libgtest-dev")
    try:
        toolkit, headers = plugins.find_toolkit(), plugins.find_headers()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    folder = CACHE / name
    configure = [
        "cmake", "-S", str(SOURCES), "-B", str(folder), "-DVTN_PLUGINS_BUILD_TESTS=ON",
        f"-DCUDAToolkit_ROOT={toolkit.root}", f"-DTENSORRT_INCLUDE_DIR={headers.folder}", *entries,
        *(["-GNinja"] if shutil.which("ninja") else []),
    ]  # fmt: skip
    environment = dict(os.environ, CUDACXX=str(toolkit.nvcc))
    with locked(CACHE / f"{name}.lock"):
        for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder / "tests" / "vtn_plugins_host"


def test_life_under_sanitizers() -> None:
    host = build_host(
        "host-sanitized",
        "-DCMAKE_CUDA_ARCHITECTURES=80-real",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DVTN_PLUGINS_SANITIZE=address,undefined",
    )
    done = subprocess.run([str(host)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "[  PASSED  ] 16 tests" in done.stdout, done.stdout[-500:]
