"""Programs built of libvtn's parts: GoogleTest under sanitizers and on aarch64, fuzzers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import openvino
import pytest

from tests.runtime.libvtn.library import ROOT, build, gpu_settings, run, sanitized
from vtn_export.trt import plugins
from vtn_export.trt.plugins.cross import target_libraries
from vtn_export.trt.plugins.toolchain import complete_root


@pytest.mark.timeout(1200)
def test_everything_under_address_and_undefined_sanitizers() -> None:
    done = run(sanitized() / "vtn_tests")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_threads_under_the_thread_sanitizer() -> None:
    host = build("tsan", "-DVTN_BUILD_TESTS=ON", "-DVTN_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    done = run(host / "tests" / "vtn_tests", "--gtest_filter=Streams.*:CApi.*:Handles.*")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cross_build_runs_under_qemu() -> None:
    toolkit = plugins.find_toolkit()
    root = complete_root(toolkit.root, target_libraries(toolkit), "aarch64")
    folder = build(
        "aarch64",
        "-DVTN_BUILD_TESTS=ON", *gpu_settings(root),
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'plugins' / 'cmake' / 'aarch64.cmake'}",
    )  # fmt: skip
    done = run("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", folder / "tests" / "vtn_tests")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("preset", ["native", "native-gpu", "jetson", "sanitize", "tsan"])
def test_presets(preset: str, tmp_path: Path) -> None:
    """As docs/libvtn.md has them, on a copy of the sources."""
    for folder in ("engines/runtime", "plugins/cmake", "tests/cpp"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("build"))
    toolkit = plugins.find_toolkit()
    root, told = toolkit.root, []
    if preset == "native":
        told = [f"-DOpenVINO_DIR={Path(openvino.__file__).parent / 'cmake'}"]
    elif preset in ("native-gpu", "jetson"):
        if preset == "jetson":
            root = complete_root(root, target_libraries(toolkit), "aarch64")
        told = [f"-DCUDAToolkit_ROOT={root}", f"-DTENSORRT_INCLUDE_DIR={plugins.find_headers().folder}"]
    commands = [["--preset", preset, *told], ["--build", "--preset", preset, "--parallel", "2"]]
    if preset not in ("sanitize", "tsan"):
        commands.append(["--install", f"build/{preset}", "--prefix", str(tmp_path / "prefix")])
    environment = dict(os.environ, CUDACXX=str(root / "bin" / "nvcc"))
    for command in [["cmake", *one] for one in commands] + ([["ctest", "--preset", preset]] if not told else []):
        done = subprocess.run(command, cwd=tmp_path / "engines" / "runtime", env=environment, capture_output=True,
                              text=True, check=False)  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    if told:
        library = next((tmp_path / "prefix").rglob("libvtn.so"))
        machine = run("readelf", "-h", library).stdout.decode()
        assert ("AArch64" if preset == "jetson" else this_machine_in_elf()) in machine


def this_machine_in_elf() -> str:
    return "AArch64" if platform.machine() == "aarch64" else "X86-64"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["manifest", "c_api"])
def test_fuzzers(target: str, tmp_path: Path) -> None:
    seconds = os.environ.get("VTN_FUZZ_SECONDS", "30")
    corpus = ROOT / "tests" / "cpp" / "runtime" / "fuzz" / "corpus" / target
    # A process that is started by this large one inherits its peak memory, which libFuzzer then takes for its own: a
    # shell in between starts from nothing (two commands, or it would become the fuzzer itself).
    command = ["sh", "-c", '"$@"; exit $?', "sh", sanitized() / f"vtn_fuzz_{target}", tmp_path, corpus,
               f"-max_total_time={seconds}", "-timeout=20", f"-artifact_prefix={tmp_path}/"]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=800)
    said = done.stderr[-3000:].decode(errors="replace")
    assert done.returncode == 0, said
    print(said.strip().splitlines()[-1])  # how many inputs
