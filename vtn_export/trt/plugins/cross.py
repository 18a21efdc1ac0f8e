"""What a cross-build for a Jetson needs beside the compiler: CUDA's libraries for aarch64."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from vtn_export.errors import MissingDependencyError, PluginError
from vtn_export.trt.plugins.toolchain import Toolkit, cache_folder

RUNTIME = "nvidia-cuda-runtime"
STATIC_RUNTIME = "libcudart_static.a"


def target_libraries(toolkit: Toolkit, given: Path | None = None) -> Path:
    """Folder of libcudart_static.a for aarch64: given, in a toolkit made for cross-builds, or NVIDIA's wheel.

    The wheel is downloaded once, with pip, into the user's cache. Raises PluginError for a folder without the
    library or a failed download, MissingDependencyError without pip.
    """
    if given is not None:
        if not (given / STATIC_RUNTIME).is_file():
            raise PluginError(
                f"--target-libraries {given}: no {STATIC_RUNTIME} in it; expected CUDA {toolkit.version_text}'s lib "
                "folder for aarch64"
            )
        return given
    for name in ("targets/sbsa-linux/lib", "targets/aarch64-linux/lib"):
        if (toolkit.root / name / STATIC_RUNTIME).is_file():
            return toolkit.root / name
    major, minor = toolkit.version[:2]
    folder = cache_folder() / f"cuda-runtime-{major}.{minor}-aarch64"
    if not (folder / STATIC_RUNTIME).is_file():
        _download(f"{RUNTIME}=={major}.{minor}.*", folder)
    return folder


def _download(requirement: str, folder: Path) -> None:
    """Unpacks the libraries of the aarch64 wheel into `folder`, whole or not at all."""
    remedy = f"download the aarch64 wheel of {requirement}, unpack it, and name its lib folder with --target-libraries"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        temporary = Path(name)
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--platform", "manylinux2014_aarch64", "--only-binary=:all:", "--dest", str(temporary), requirement,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = next(temporary.glob("*.whl"), None)
        if wheel is None:
            if "No module named pip" in done.stderr:
                raise MissingDependencyError(f"pip: not found; {remedy}")
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise PluginError(f"{requirement}: {lines[-1] if lines else 'the download failed'}; {remedy}")
        unpacked = temporary / "lib"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                if Path(member).parent.name == "lib" and not member.endswith("/"):
                    with archive.open(member) as source, (unpacked / Path(member).name).open("wb") as target:
                        shutil.copyfileobj(source, target)
        if not (unpacked / STATIC_RUNTIME).is_file():
            raise PluginError(f"{wheel.name}: no {STATIC_RUNTIME} in it; {remedy}")
        if not folder.exists():  # else another process was first
            unpacked.rename(folder)
