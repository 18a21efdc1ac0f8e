"""`vtn-export sdk`: libvtn for one device with all that an application needs, as a tarball.

    vtn-sdk/include/vtn/  lib/libvtn.so*  lib/cmake/vtn/  bundle/ (with libvtn_plugins.so, or openvino/)  examples/

The library is built here: for a Jetson with CUDA 13 by cross-build, for this machine's CPU with OpenVINO's package.
Engines that stand beside the bundle come along; the library checks them against the machine that it runs on.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from vtn_export.bundle import Bundle, writing_file
from vtn_export.errors import BackendError, MissingDependencyError, UsageError
from vtn_export.runtime.cpu_form import write_cpu_form
from vtn_export.trt import plugins, targets
from vtn_export.trt.plugins.build import source_folder
from vtn_export.trt.plugins.cross import target_libraries
from vtn_export.trt.plugins.toolchain import check_architectures, complete_root

CPU = "cpu"
_ROOT = Path(__file__).resolve().parents[2]
_EXAMPLES = ("CMakeLists.txt", "classify_video.cpp", "camera_stream.cpp", "embed.c", "python_ctypes.py")

_ERROR = re.compile(r"\berror:|CMake Error", re.IGNORECASE)  # not a compiler's options, as -Wno-error=…

Step = Callable[[str], AbstractContextManager[None]]


def write_sdk(
    bundle: Bundle, target: str, out: Path, *, with_plugin: bool = True, step: Step = lambda _: nullcontext()
) -> Path:
    """Build libvtn for `target` (`cpu`, or a name of `engines/targets`) and pack it with the bundle into `out`.

    out: the .tar.gz; written whole or not at all. step: entered with the name of each stage. Raises UsageError (unknown
    target, another ending), MissingDependencyError (a compiler, OpenVINO), BackendError (the build failed, no
    sources), PluginError, BundleError, OutputError.
    """
    sources = _ROOT / "engines" / "runtime"
    if not (sources / "CMakeLists.txt").is_file():
        raise BackendError(f"{sources}: no sources of libvtn; in a checkout: pip install --editable .")
    device = None if target == CPU else targets.load(target)
    if device is not None and device.flavor != "tensorrt":
        raise UsageError(f"--target {target}: its engines are of {device.flavor}, which libvtn does not run")
    if not out.name.endswith((".tar.gz", ".tgz")):
        raise UsageError(f"--out {out}: got another ending, expected .tar.gz or .tgz, which is what is written")
    bundle.verify()
    with writing_file(out) as archive, tempfile.TemporaryDirectory(prefix="vtn-sdk-") as name:
        work = Path(name)
        folder = work / "vtn-sdk"
        (folder / "examples").mkdir(parents=True)
        with step("library"):
            _build(sources, work / "build", folder, _cpu_settings() if device is None else _gpu_settings(device))
        with step("bundle"):
            _copy_bundle(bundle, folder / "bundle", engines=device is not None)
            if device is None:
                write_cpu_form(bundle, folder / "bundle" / "openvino")
        if device is not None and with_plugin:
            with step("plugin"):
                cross = "aarch64" if _is_cross(device) else None
                plugins.build(plugins.BuildRequest(folder / "bundle", device.compute_capabilities, cross=cross))
        for example in _EXAMPLES:
            shutil.copyfile(_ROOT / "examples" / example, folder / "examples" / example)
        with step("archive"), tarfile.open(archive, "w:gz", compresslevel=1) as tar:
            tar.add(folder, "vtn-sdk")
    return out


def _copy_bundle(bundle: Bundle, folder: Path, *, engines: bool) -> None:
    folder.mkdir()
    for file in ("manifest.json", *bundle.manifest.files):
        shutil.copyfile(bundle.path / file, folder / file)
    if engines and (bundle.path / "engines").is_dir():
        shutil.copytree(bundle.path / "engines", folder / "engines")


def _is_cross(device: targets.Target) -> bool:
    return device.name.startswith("jetson") and platform.machine() != "aarch64"


def _cpu_settings() -> list[str]:
    found = importlib.util.find_spec("openvino")
    if found is None or found.origin is None:
        raise MissingDependencyError("openvino: not found; pip install 'vtn-export[openvino]'")
    openvino = Path(found.origin).parent / "cmake"
    return ["-DVTN_WITH_OPENVINO=ON", f"-DOpenVINO_DIR={openvino}", "-DVTN_INSTALL_OPENVINO_PATH=OFF"]


def _gpu_settings(device: targets.Target) -> list[str]:
    toolkit, headers = plugins.find_toolkit(), plugins.find_headers()
    numbers = check_architectures(toolkit, device.compute_capabilities)
    settings = ["-DVTN_WITH_TENSORRT=ON", f"-DTENSORRT_INCLUDE_DIR={headers.folder}"]
    root = toolkit.root
    if _is_cross(device):
        if toolkit.version[0] < 13:
            raise BackendError(
                f"--target {device.name}: got CUDA {toolkit.version_text}, expected 13 or newer for a cross-build; "
                "on JetPack 6 run this on the board itself"
            )
        if shutil.which("aarch64-linux-gnu-g++") is None:
            raise MissingDependencyError("aarch64-linux-gnu-g++: not found; apt-get install g++-aarch64-linux-gnu")
        root = complete_root(root, target_libraries(toolkit), "aarch64")
        settings.append(f"-DCMAKE_TOOLCHAIN_FILE={source_folder() / 'cmake' / 'aarch64.cmake'}")
    return [
        *settings,
        f"-DCUDAToolkit_ROOT={root}",
        f"-DCMAKE_CUDA_COMPILER={root / 'bin' / 'nvcc'}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(numbers)}",
    ]


def _build(sources: Path, build: Path, prefix: Path, settings: list[str]) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        raise MissingDependencyError("cmake: not found; pip install cmake, or the system's package")
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    generator = ["-GNinja"] if shutil.which("ninja") else []
    for command in (
        [cmake, "-S", str(sources), "-B", str(build), "-DCMAKE_INSTALL_LIBDIR=lib", *generator, *launcher, *settings],
        [cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1), "--target", "vtn"],
        [cmake, "--install", str(build), "--prefix", str(prefix), "--strip"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            told = next((i for i, line in enumerate(lines) if _ERROR.search(line)), max(len(lines) - 1, 0))
            raise BackendError(f"libvtn build: {' '.join(lines[told : told + 3])[:400]}")
