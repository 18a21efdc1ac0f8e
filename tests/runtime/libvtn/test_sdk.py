"""`vtn-export sdk`: the tarball is unpacked, an example is built from nothing but its content, and run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import openvino
import pytest

from tests.clihelp import Cli
from tests.runtime.libvtn.library import HEIGHT, ROOT, WIDTH, run
from vtn_export.bundle import Bundle
from vtn_export.trt.plugins import read_sidecar

TOOLCHAIN = ROOT / "plugins" / "cmake" / "aarch64.cmake"
QEMU = ("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu")


def unpacked(cli: Cli, bundle: Path, target: str, folder: Path) -> Path:
    archive = folder / "vtn-sdk.tar.gz"
    result = cli("sdk", bundle, "--target", target, "-o", archive, "--json")
    assert result.code == 0, result.err
    assert result.json == {"written": [str(archive)]}
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    sdk = folder / "vtn-sdk"
    assert {path.name for path in (sdk / "include" / "vtn").iterdir()} == {
        "classifier.hpp", "error.hpp", "frame.hpp", "stream.hpp", "vtn.h",
    }  # fmt: skip
    Bundle.open(sdk / "bundle").verify()
    return sdk


def built(sdk: Path, folder: Path, *settings: str) -> Path:
    for command in (
        ["cmake", "-S", str(sdk / "examples"), "-B", str(folder), f"-DCMAKE_PREFIX_PATH={sdk}", *settings],
        ["cmake", "--build", str(folder)],
    ):
        done = run(*command)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode()
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cpu(cli: Cli, small_bundle: Path, clip: bytes, tmp_path: Path) -> None:
    sdk = unpacked(cli, small_bundle, "cpu", tmp_path)
    libraries = Path(openvino.__file__).parent / "libs"
    needs = run("readelf", "-d", sdk / "lib" / "libvtn.so").stdout.decode()
    assert "libopenvino" in needs
    assert str(libraries) not in needs  # it is for another machine, whose OpenVINO is beside it or on the path
    build = built(sdk, tmp_path / "build")
    on_path = ("env", f"LD_LIBRARY_PATH={libraries}")
    done = run(*on_path, build / "classify_video", sdk / "bundle", WIDTH, HEIGHT, stdin=clip)
    assert done.returncode == 0, done.stderr
    assert abs(sum(float(line.split()[0]) for line in done.stdout.decode().splitlines()) - 1) < 1e-4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_jetson_thor(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    """Cross-built: aarch64 with no library of TensorRT or CUDA, a glibc that JetPack has, kernels for SM 11.0; started
    under qemu it gets as far as the missing TensorRT, and says so."""
    sdk = unpacked(cli, small_bundle, "jetson-thor", tmp_path)
    library = sdk / "lib" / "libvtn.so"
    header = subprocess.run(["readelf", "-h", library], capture_output=True, text=True, check=True).stdout
    assert "AArch64" in header
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"NEEDED.*\[(.+)\]", needed))
    assert names <= {"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"}
    symbols = subprocess.run(["readelf", "-V", library], capture_output=True, text=True, check=True).stdout
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_(2\.\d+)", symbols)}
    assert max(versions) <= (2, 35)
    plugin = read_sidecar(sdk / "bundle" / "libvtn_plugins.so")
    assert (plugin.machine, plugin.compute_capabilities) == ("aarch64", ("11.0",))

    build = built(sdk, tmp_path / "build", f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}",
                  "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++ -static-libgcc")  # fmt: skip
    done = subprocess.run(
        [*QEMU, "-E", f"LD_LIBRARY_PATH={sdk / 'lib'}", str(build / "embed"), str(sdk / "bundle")],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 12, done.stderr
    assert re.match(r"embed: tensorrt: libnvinfer\.so\.\d+ cannot be loaded \(.*\); install TensorRT", done.stderr)


def test_what_cannot_be_packed_is_one_line(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    for target, code, said in (("rtx", 2, "libvtn does not run"), ("toaster", 2, "toaster")):
        result = cli("sdk", small_bundle, "--target", target, "-o", tmp_path / "sdk.tar.gz", "--json")
        assert result.code == code, result.err
        assert said in json.loads(result.out)["error"]
    for said, options in (
        ("expected .tar.gz or .tgz", ("-o", tmp_path / "sdk.zip")),
        ("without --target and --out", ("--inline", "-o", tmp_path / "sdk.tar.gz")),
        ("without --target and --out", ("--inline", "--target", "cpu")),
    ):
        result = cli("sdk", small_bundle, *options, "--json")
        assert result.code == 2, result.err
        assert said in json.loads(result.out)["error"]
    assert not list(tmp_path.iterdir())
    damaged = tmp_path / "none"
    assert cli("sdk", damaged, "-o", tmp_path / "sdk.tar.gz").code == 8


def test_inline_writes_beside_the_bundle(cli: Cli, small_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(small_bundle, bundle)
    result = cli("sdk", bundle, "--inline", "--json")
    assert result.code == 0, result.err
    assert sorted(Path(path).name for path in result.json["written"]) == ["backbone.onnx", "full.onnx", "temporal.onnx"]
    record = json.loads((bundle / "openvino" / "full.json").read_text())
    assert record["source_sha256"] == Bundle.open(bundle).manifest.files["full.onnx"]
