"""Finding compilers, headers and libraries; every wrong one is one line that names it."""

from __future__ import annotations

import importlib
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.plugins.covering import covering_array
from vtn_export.errors import INTERRUPTED_EXIT_CODE, MissingDependencyError, OutputError, PluginError
from vtn_export.trt import plugins
from vtn_export.trt.plugins import cross, find, sidecar, toolchain
from vtn_export.untrusted import sha256

building = importlib.import_module("vtn_export.trt.plugins.build")  # the package has a function of that name


def fake_toolkit(root: Path, version: str = "13.0.88", architectures: str = "sm_75\nsm_80\nsm_87") -> Path:
    (root / "bin").mkdir(parents=True)
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {version[:4]}, V{version}";;\n'
        f'--list-gpu-code) printf "{architectures}\\n";; esac\n'.replace("\nsm", "\\nsm")
    )
    nvcc.chmod(0o755)
    return root


def fake_headers(folder: Path, version: tuple[int, int, int], names: str = "NV_TENSORRT_{}") -> Path:
    folder.mkdir(parents=True)
    (folder / "NvInferRuntime.h").touch()
    parts = zip(("MAJOR", "MINOR", "PATCH"), version, strict=True)
    (folder / "NvInferVersion.h").write_text("".join(f"#define {names.format(p)} {v} //!<\n" for p, v in parts))
    return folder


def fake_library(
    folder: Path, capabilities: tuple[str, ...] = ("8.0",), machine: str = os.uname().machine, contract: int = 1
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / sidecar.LIBRARY
    library.write_bytes(b"\x7fELF" + b"\2" + bytes(11) + struct.pack("<HH", 3, 62) + bytes(44))
    described = sidecar.Sidecar("1.0.0", contract, ("x",), capabilities, machine, "13", "10.14", sha256(library))
    sidecar.write_sidecar(library, described)
    return library


def test_given_toolkit(tmp_path: Path) -> None:
    found = plugins.find_toolkit(fake_toolkit(tmp_path / "cuda"))
    assert (found.version, found.source, found.architectures) == ((13, 0, 88), "given", ("sm_75", "sm_80", "sm_87"))


def test_toolkits_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no bin/nvcc in it"):
        plugins.find_toolkit(tmp_path)
    with pytest.raises(PluginError, match=r"got CUDA 11\.8\.0, expected 12\.6 or later"):
        plugins.find_toolkit(fake_toolkit(tmp_path / "old", "11.8.0"))
    toolkit = plugins.find_toolkit(fake_toolkit(tmp_path / "cuda", "12.6.85"))
    with pytest.raises(PluginError, match=r"11\.0: nvcc 12\.6\.85 does not know it .*use a newer CUDA"):
        toolchain.check_architectures(toolkit, ["8.7", "11.0"])
    with pytest.raises(PluginError, match=r"compute capability: got 8\.8, expected one of 7\.5, 8\.0"):
        toolchain.check_architectures(toolkit, ["8.8"])


def test_an_old_system_compiler_gives_way_to_the_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    old = fake_toolkit(tmp_path / "old", "12.2.91")
    wheels = fake_toolkit(tmp_path / "wheels")
    (wheels / "lib").mkdir()
    (wheels / "lib" / "libcudart.so.13").touch()
    monkeypatch.setattr(toolchain, "_system_roots", lambda: iter([old]))
    monkeypatch.setattr(toolchain, "_wheel_roots", lambda: iter([wheels]))
    found = plugins.find_toolkit()
    assert (found.source, found.version) == ("wheels", (13, 0, 88))
    assert (found.root / "lib64" / "libcudart.so").exists()
    monkeypatch.setattr(toolchain, "_wheel_roots", lambda: iter([]))
    with pytest.raises(PluginError, match=r"got CUDA 12\.2\.91, expected 12\.6 or later; name another with --cuda"):
        plugins.find_toolkit()


@pytest.mark.parametrize("source", ["given", "system"])
def test_the_root_of_the_wheels_gets_the_names_that_cmake_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = fake_toolkit(tmp_path / "cuda")
    (root / "lib").mkdir()
    (root / "lib" / "libcudart.so.13").touch()
    monkeypatch.setattr(toolchain, "_system_roots", lambda: iter([root]))
    found = plugins.find_toolkit(root if source == "given" else None)
    assert found.source == source
    assert (found.root / "lib64" / "libcudart.so").exists()
    assert not (root / "lib64").exists()  # nothing is written into the toolkit


def test_libraries_of_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    toolkit = plugins.find_toolkit(fake_toolkit(tmp_path / "cuda"))
    with pytest.raises(PluginError, match=r"--target-libraries .*: no libcudart_static\.a in it; expected CUDA 13\.0"):
        cross.target_libraries(toolkit, tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # no network, no wheel
    with pytest.raises(PluginError, match=r"nvidia-cuda-runtime==13\.0\.\*: ERROR: .*--target-libraries"):
        cross.target_libraries(toolkit)
    assert not any((tmp_path / "cache" / "vtn-export").glob("cuda-runtime*"))  # nothing half-unpacked
    inside = toolkit.root / "targets" / "sbsa-linux" / "lib"
    inside.mkdir(parents=True)
    (inside / "libcudart_static.a").touch()
    assert cross.target_libraries(toolkit) == inside


def test_no_compiler_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "_system_roots", lambda: iter(()))
    monkeypatch.setattr(toolchain, "_wheel_roots", lambda: iter(()))
    with pytest.raises(MissingDependencyError, match=r"nvcc: not found; .*vtn-export\[plugins\]"):
        plugins.find_toolkit()


@pytest.mark.parametrize("names", ["NV_TENSORRT_{}", "TRT_{}_ENTERPRISE"])
def test_headers(tmp_path: Path, names: str) -> None:
    assert plugins.find_headers(fake_headers(tmp_path / "good", (10, 3, 0), names)).version == (10, 3, 0)
    with pytest.raises(PluginError, match=r"headers of TensorRT 8\.6\.1, expected 10\.3 or later"):
        plugins.find_headers(fake_headers(tmp_path / "old", (8, 6, 1), names))
    with pytest.raises(PluginError, match=r"no NvInferRuntime\.h in it"):
        plugins.find_headers(tmp_path)


def test_library_is_found_in_the_documented_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "PACKAGE_FOLDER", tmp_path / "package")
    monkeypatch.delenv(find.VARIABLE, raising=False)
    assert plugins.find_library("8.0") is None
    inside = fake_library(tmp_path / "package" / "linux")
    assert plugins.find_library("8.0") == inside.resolve()
    assert plugins.find_library("8.7") is None
    named = fake_library(tmp_path / "named")
    monkeypatch.setenv(find.VARIABLE, str(named))
    assert plugins.find_library("8.0") == named.resolve()
    beside = fake_library(tmp_path / "bundle")
    assert plugins.find_library("8.0", tmp_path / "bundle") == beside.resolve()
    with pytest.raises(PluginError, match=r"got kernels for 8\.0, expected 8\.7; run vtn-export plugins build"):
        plugins.find_library("8.7", tmp_path / "bundle")


def test_a_library_of_another_machine_or_contract_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find, "PACKAGE_FOLDER", tmp_path / "package")
    monkeypatch.setenv(find.VARIABLE, str(fake_library(tmp_path / "foreign", machine="sparc")))
    with pytest.raises(PluginError, match=r"got a library for sparc, expected .*; run vtn-export plugins build"):
        plugins.find_library("8.0")
    monkeypatch.setenv(find.VARIABLE, str(fake_library(tmp_path / "later", contract=2)))
    with pytest.raises(PluginError, match=r"got version 2 of the op's contract, expected 1"):
        plugins.find_library("8.0")
    monkeypatch.delenv(find.VARIABLE)
    fake_library(tmp_path / "package", machine="sparc")
    assert plugins.find_library("8.0") is None
    monkeypatch.setenv(find.VARIABLE, str(tmp_path / "none.so"))
    with pytest.raises(PluginError, match=r"none\.so: no such file"):
        plugins.find_library("8.0")


def test_contract_is_the_op_s() -> None:
    from vtn_export.onnx.op import OP_VERSION

    assert sidecar.CONTRACT_VERSION == OP_VERSION


def test_changed_library_is_refused(tmp_path: Path) -> None:
    library = fake_library(tmp_path)
    library.write_bytes(library.read_bytes() + b"x")
    with pytest.raises(PluginError, match="the file was changed, build it again"):
        plugins.read_sidecar(library)
    sidecar.sidecar_path(library).unlink()
    with pytest.raises(PluginError, match=r"no libvtn_plugins\.so\.json beside it"):
        plugins.read_sidecar(library)


def test_info_of_what_is_no_library(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("hello")
    with pytest.raises(PluginError, match="not a 64-bit ELF library"):
        plugins.inspect_library(text)
    with pytest.raises(PluginError, match="cannot be read"):
        plugins.inspect_library(tmp_path / "none.so")
    for endless in (Path("/dev/zero"), tmp_path):
        with pytest.raises(PluginError, match="not a file"):
            plugins.inspect_library(endless)


def test_info_of_damaged_libraries(tmp_path: Path) -> None:
    """Cut anywhere, or with any byte of its headers changed: an answer or one line, soon."""
    whole = bytearray(Path(sys.executable).resolve().read_bytes())  # an ELF file that every machine has
    damaged = tmp_path / "damaged.so"
    (table,) = struct.unpack_from("<Q", whole, 40)
    for length in (64, 100, 4096, len(whole) // 2, table, table + 70, len(whole) - 1):
        damaged.write_bytes(whole[:length])
        with suppress(PluginError):
            plugins.inspect_library(damaged)
    generator = random.Random(0)
    for _ in range(60):
        changed = bytearray(whole[: 1 << 16]) + whole[table:]
        struct.pack_into("<Q", changed, 40, 1 << 16)
        changed[generator.choice((*range(16, 64), *range(1 << 16, len(changed))))] = generator.randrange(256)
        damaged.write_bytes(changed)
        with suppress(PluginError):
            plugins.inspect_library(damaged)
    struct.pack_into("<HH", whole, 58, 0, 0xFFFF)  # 65,535 sections, all the first one
    damaged.write_bytes(whole)
    with suppress(PluginError):
        plugins.inspect_library(damaged)


def test_library_of_another_machine(tmp_path: Path) -> None:
    library = tmp_path / "libvtn_plugins.so"
    header = bytearray(64)
    header[:5] = b"\x7fELF\2"
    struct.pack_into("<HH", header, 16, 3, 183)
    library.write_bytes(bytes(header))
    problems = plugins.inspect_library(library).problems
    assert problems[0] == f"built for aarch64, this machine is {os.uname().machine}"
    assert "exports no getCreators and no setLoggerFinder" in problems[1]


def test_build_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    request = plugins.BuildRequest(
        file, ("8.0",), cuda=fake_toolkit(tmp_path / "cuda"), tensorrt_include=fake_headers(tmp_path / "h", (10, 3, 0))
    )
    with pytest.raises(OutputError, match="is a file; expected a folder"):
        plugins.build(request)
    with pytest.raises(OutputError, match=r"file/inside: cannot be written \(Not a directory\)"):
        plugins.build(replace(request, out=file / "inside"))
    with pytest.raises(OutputError, match=r"--out /proc/.*: cannot be written"):  # before anything is compiled
        plugins.build(replace(request, out=Path("/proc/self")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    (tmp_path / "cuda" / "lib").mkdir()
    with pytest.raises(OutputError, match=r"cannot be written .*; name another cache with XDG_CACHE_HOME"):
        plugins.build(request)
    monkeypatch.setenv(building.SOURCES_VARIABLE, str(tmp_path))
    with pytest.raises(PluginError, match="no plugin sources"):
        plugins.build(request)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    """Neither files nor compilers: a build's processes end with it. cmake is a script that never gets done."""
    cmake = tmp_path / "tools" / "cmake"
    cmake.parent.mkdir()
    cmake.write_text(
        f'#!/bin/sh\n[ "$1" = --build ] || exit 0\nsleep 600 &\necho $! > "{tmp_path}/child"\necho "[1/9] x"\nwait\n'
    )
    cmake.chmod(0o755)
    cuda, headers = fake_toolkit(tmp_path / "cuda"), fake_headers(tmp_path / "h", (10, 3, 0))
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "vtn_export", "plugins", "build", "--compute-capability", "8.0"]
    process = subprocess.Popen(
        [*command, "--cuda", cuda, "--tensorrt-include", headers, "--out", out], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": f"{cmake.parent}:{os.environ['PATH']}", "TMPDIR": str(scratch)},
    )  # fmt: skip
    child = tmp_path / "child"
    while not (child.is_file() and child.read_text().strip()):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED_EXIT_CODE, error
    assert "Traceback" not in error
    status = Path(f"/proc/{int(child.read_text())}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()
    assert list(out.iterdir()) == list(scratch.iterdir()) == []


def test_compiler_errors_are_one_line() -> None:
    output = "[1/2] x\nptxas error   : Registers are spilled to local memory in function 'k'\nninja: build stopped\n"
    assert building._first_error(output).startswith("ptxas error")
    assert building._first_error("/bin/ld: cannot find -lx\ncollect2: error: ld returned 1 exit status").endswith("-lx")
    assert building._first_error("CMake Error at CMakeLists.txt:3 (find_package):\n  By not\n  providing").endswith(
        "By not providing"
    )


@pytest.mark.parametrize("strength", [2, 3])
def test_covering_arrays_cover(strength: int) -> None:
    factors = {"a": range(4), "b": "xyz", "c": (True, False), "d": range(3)}
    rows = covering_array(factors, strength)
    for names in itertools.combinations(factors, strength):
        wanted = set(itertools.product(*(factors[name] for name in names)))
        assert wanted == {tuple(row[name] for name in names) for row in rows}
    assert len(rows) < 72
