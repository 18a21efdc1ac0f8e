"""libvtn with the CPU executor, a bundle for it, a real clip."""

from __future__ import annotations

import shutil
from pathlib import Path

import openvino
import pytest

from tests.runtime.libvtn.library import CLIP, FRAMES, HEIGHT, WIDTH, build, gpu_settings, run


@pytest.fixture(scope="session")
def library() -> Path:
    """With both executors: what `auto` takes is tested, too."""
    cmake = Path(openvino.__file__).parent / "cmake"
    settings = ("-DVTN_WITH_OPENVINO=ON", f"-DOpenVINO_DIR={cmake}", *gpu_settings())
    return build("both", *settings, target="vtn") / "libvtn.so"


@pytest.fixture(scope="session")
def clip() -> bytes:
    """Raw RGB frames of the real clip."""
    done = run("ffmpeg", "-v", "error", "-i", CLIP, "-frames:v", FRAMES, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == FRAMES * WIDTH * HEIGHT * 3
    return done.stdout


@pytest.fixture(scope="session")
def cpu_bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small bundle with the CPU executor's graphs beside it."""
    from vtn_export.bundle import Bundle
    from vtn_export.runtime.cpu_form import write_cpu_form

    path = tmp_path_factory.mktemp("libvtn") / "bundle"
    shutil.copytree(small_bundle, path)
    write_cpu_form(Bundle.open(path))
    return path
