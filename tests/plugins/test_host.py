"""The C++ host that drives the plugin as TensorRT does, under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.plugins.library import CACHE, SOURCES, build_library, locked, shared_compiling
from vtn_export.errors import MissingDependencyError
from vtn_export.trt import plugins
from vtn_export.trt.plugins.cross import target_libraries
from vtn_export.trt.plugins.toolchain import complete_root

GTEST = Path("/usr/include/gtest/gtest.h")
HOST = SOURCES.parent / "tests" / "cpp" / "plugins"
TESTS = sum(file.read_text().count("\nTEST(") for file in HOST.glob("*_test.cpp"))


def build_host(name: str, *entries: str, toolkit_root: Path | None = None) -> Path:
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
        f"-DCUDAToolkit_ROOT={toolkit_root or toolkit.root}", f"-DTENSORRT_INCLUDE_DIR={headers.folder}", *entries,
        *(["-GNinja"] if shutil.which("ninja") else []),
    ]  # fmt: skip
    with locked(CACHE / f"{name}.lock"):
        for command in (configure, ["cmake", "--build", str(folder), "--parallel", "2"]):
            with shared_compiling():
                environment = dict(os.environ, CUDACXX=str((toolkit_root or toolkit.root) / "bin" / "nvcc"))
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder / "tests" / "vtn_plugins_host"


def test_life_under_sanitizers() -> None:
    build_library("8.0")  # its kernels are this build's, too; two at once would both compile them
    host = build_host(
        "host-sanitized",
        "-DCMAKE_CUDA_ARCHITECTURES=80",
        "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1 -g1",
        "-DCMAKE_CUDA_FLAGS_RELWITHDEBINFO=-O3 -DNDEBUG",  # the library's, which ccache then has
        "-DVTN_PLUGINS_SANITIZE=address,undefined",
    )
    done = subprocess.run([str(host)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"[  PASSED  ] {TESTS} tests" in done.stdout, done.stdout[-500:]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_life_on_aarch64() -> None:
    """The Jetson build of CUDA 13, run under qemu."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64-static"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool}: not found; apt-get install g++-aarch64-linux-gnu qemu-user-static")
    toolkit = plugins.find_toolkit()
    root = complete_root(toolkit.root, target_libraries(toolkit), "aarch64")
    host = build_host(
        "host-aarch64",
        f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'cmake' / 'aarch64.cmake'}",
        "-DCMAKE_CUDA_ARCHITECTURES=87-real;110-real",
        toolkit_root=root,
    )
    command = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", str(host)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"[  PASSED  ] {TESTS} tests" in done.stdout, done.stdout[-500:]
    info = plugins.inspect_library(CACHE / "host-aarch64" / "libvtn_plugins.so")
    assert (info.machine, info.compute_capabilities) == ("aarch64", ("8.7", "11.0"))
    assert info.problems == ("built for aarch64, this machine is x86_64",)
    assert set(info.needed) <= {"libc.so.6", "ld-linux-aarch64.so.1"}, info.needed
    symbols = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-T", str(info.path)], capture_output=True, text=True, check=True
    ).stdout
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", symbols)}
    assert max(versions) <= (2, 35), max(versions)  # JetPack 6 has 2.35, JetPack 7 2.39


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("preset", ["native", "aarch64", "jetpack6", "sanitize"])
def test_presets(preset: str, tmp_path: Path) -> None:
    """`cmake --preset`, as docs/plugins.md has it, on a copy of the sources; one GPU generation to save time."""
    toolkit, headers = plugins.find_toolkit(), plugins.find_headers()
    root = toolkit.root
    if preset == "aarch64":
        root = complete_root(root, target_libraries(toolkit), "aarch64")
    shutil.copytree(SOURCES, tmp_path / "plugins", ignore=shutil.ignore_patterns("build"))
    shutil.copytree(SOURCES.parent / "tests" / "cpp", tmp_path / "tests" / "cpp")
    entries = [f"-DCUDAToolkit_ROOT={root}", f"-DTENSORRT_INCLUDE_DIR={headers.folder}"]
    if preset == "native":
        entries.append("-DCMAKE_CUDA_ARCHITECTURES=80-real")
    environment = dict(os.environ, CUDACXX=str(root / "bin" / "nvcc"))
    folder = tmp_path / "plugins"
    for command in (
        ["cmake", "--preset", preset, *entries],
        ["cmake", "--build", "--preset", preset, "--parallel", "2"],
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    info = plugins.inspect_library(folder / "build" / preset / "libvtn_plugins.so")
    expected = {"native": ("8.0",), "aarch64": ("8.7", "11.0"), "jetpack6": ("8.7",), "sanitize": ("8.0",)}
    assert info.compute_capabilities == expected[preset]
    assert info.machine == ("aarch64" if preset == "aarch64" else "x86_64")


@pytest.mark.slow
@pytest.mark.parametrize("cross", [None, "aarch64"])
def test_spaces_in_paths(cross: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the sources, the toolkit, the headers and the result; a library of one empty kernel shows it soon."""
    sources = tmp_path / "with spaces" / "plugins"
    shutil.copytree(SOURCES / "cmake", sources / "cmake")
    text = (SOURCES / "CMakeLists.txt").read_text()
    text = re.sub(r"(SHARED\n).*?\n\)", r"\1  kernel.cu common.cpp\n)", text, count=1, flags=re.S)
    (sources / "CMakeLists.txt").write_text(text)
    for name in ("exports.map", "sliding_window_attention/c_api.h"):
        (sources / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(SOURCES / name, sources / name)
    (sources / "kernel.cu").write_text("__global__ void kernel() {}\nvoid launch() { kernel<<<1, 1>>>(); }\n")
    (sources / "common.cpp").write_text('extern "C" void getCreators() {}\nextern "C" void setLoggerFinder() {}\n')
    headers = tmp_path / "with spaces" / "headers"
    shutil.copytree(plugins.find_headers().folder, headers)
    monkeypatch.setenv("VTN_PLUGIN_SOURCES", str(sources))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with spaces" / "cache"))
    libraries = None
    if cross is not None:
        monkeypatch.delenv("XDG_CACHE_HOME")
        libraries = tmp_path / "with spaces" / "lib"
        shutil.copytree(target_libraries(plugins.find_toolkit()), libraries)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "with spaces" / "cache"))
    toolkit = tmp_path / "with spaces" / "cuda"
    toolkit.symlink_to(plugins.find_toolkit().root)
    out = tmp_path / "with spaces" / "out"
    request = plugins.BuildRequest(
        out, ("8.7",), cross=cross, cuda=toolkit, tensorrt_include=headers, target_libraries=libraries
    )
    for _ in range(2):  # the second over the first
        info = plugins.inspect_library(plugins.build(request))
        assert info.compute_capabilities == ("8.7",) and info.machine == (cross or "x86_64")
    assert sorted(path.name for path in out.iterdir()) == ["libvtn_plugins.so", "libvtn_plugins.so.json"]


def test_installs_as_a_package(tmp_path: Path) -> None:
    """`cmake --install`, then find_package(vtn_plugins) and a C program that plans a launch, in another project."""
    built = build_library("8.0").parent / "build"
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(user LANGUAGES C)\n"
        "find_package(vtn_plugins 1.0 REQUIRED)\nadd_executable(user main.c)\n"
        "target_link_libraries(user PRIVATE vtn_plugins::vtn_plugins)\n"
    )
    (tmp_path / "main.c").write_text(
        "#include <c_api.h>\n#include <stdio.h>\n"
        "int main(void) {\n  puts(vtn_plugins_version());\n"
        "  return vtn_sliding_window_attention_plan(0, 80, 0, 0) == 1 ? 0 : 1;\n}\n"
    )
    prefix = tmp_path / "prefix"
    for command in (
        ["cmake", "--install", str(built), "--prefix", str(prefix)],
        ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={prefix}"],
        ["cmake", "--build", str(tmp_path / "build")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    done = subprocess.run([str(tmp_path / "build" / "user")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "1.0.0 op=1\n")
