"""libvtn built here: its GoogleTest hosts under sanitizers, the CPU executor against PyTorch, examples, fuzzers."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest

from examples import python_ctypes
from tests.clihelp import cli, small_bundle, small_config  # noqa: F401
from tests.plugins.library import locked
from vtn_export.bundle import Bundle
from vtn_export.runtime.cpu_form import write_cpu_form
from vtn_export.runtime.golden import bundle_samples
from vtn_export.trt import plugins
from vtn_export.trt.plugins.cross import target_libraries
from vtn_export.trt.plugins.toolchain import complete_root

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "libvtn"
CLIP = ROOT / "vtn_export" / "data" / "clip.mp4"
WIDTH, HEIGHT = 480, 270


def build(name: str, *settings: str) -> Path:
    folder = BUILD / name
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["-DCMAKE_CXX_COMPILER_LAUNCHER=ccache"] if shutil.which("ccache") else []
    environment = dict(os.environ, CCACHE_DIR=str(ROOT / "build" / "ccache"))
    with locked(BUILD / f"{name}.lock"):
        for command in (
            ["cmake", "-S", str(ROOT / "engines" / "runtime"), "-B", str(folder), *launcher, *settings],
            ["cmake", "--build", str(folder), "--parallel", "2"],
        ):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return folder


def gpu_settings(root: Path | None = None) -> list[str]:
    root = root or plugins.find_toolkit().root
    return [
        "-DVTN_WITH_TENSORRT=ON",
        f"-DCUDAToolkit_ROOT={root}",
        f"-DCMAKE_CUDA_COMPILER={root / 'bin' / 'nvcc'}",
        "-DCMAKE_CUDA_ARCHITECTURES=87",  # one is enough where nothing runs on it
        f"-DTENSORRT_INCLUDE_DIR={plugins.find_headers().folder}",
    ]


def run(*command: object, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    # an installed libvtn finds OpenVINO by the loader's path, as on a user's machine
    environment = dict(os.environ, LD_LIBRARY_PATH=str(Path(openvino.__file__).parent / "libs"))
    return subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, check=False, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def library() -> Path:
    cmake = Path(openvino.__file__).parent / "cmake"
    return build("openvino", "-DVTN_WITH_OPENVINO=ON", f"-DOpenVINO_DIR={cmake}") / "libvtn.so"


@pytest.fixture(scope="module")
def bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A copy with the CPU executor's graphs beside it."""
    path = tmp_path_factory.mktemp("libvtn") / "bundle"
    shutil.copytree(small_bundle, path)
    write_cpu_form(Bundle.open(path))
    return path


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Raw RGB frames of the real clip."""
    done = run("ffmpeg", "-v", "error", "-i", CLIP, "-frames:v", 24, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) == 24 * WIDTH * HEIGHT * 3
    return done.stdout


@pytest.mark.timeout(1200)
def test_everything_under_address_and_undefined_sanitizers() -> None:
    host = build("asan", "-DVTN_BUILD_TESTS=ON", "-DVTN_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=Debug",
                 *gpu_settings()) / "tests" / "vtn_tests"  # fmt: skip
    done = run(host)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_threads_under_the_thread_sanitizer() -> None:
    host = build("tsan", "-DVTN_BUILD_TESTS=ON", "-DVTN_SANITIZE=thread", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    done = run(host / "tests" / "vtn_tests", "--gtest_filter=Streams.*:CApi.*")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cross_build_runs_under_qemu() -> None:
    toolkit = plugins.find_toolkit()
    root = complete_root(toolkit.root, target_libraries(toolkit), "aarch64")
    folder = build(
        "aarch64",
        "-DVTN_BUILD_TESTS=ON", *gpu_settings(root), f"-DCMAKE_CUDA_FLAGS=-L{root / 'lib'}",
        f"-DVTN_CUDART_STATIC={root / 'lib' / 'libcudart_static.a'}",
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'engines' / 'runtime' / 'cmake' / 'aarch64.cmake'}",
    )  # fmt: skip
    done = run("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", folder / "tests" / "vtn_tests")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:].decode()


@pytest.mark.timeout(600)
def test_logits_are_pytorchs(library: Path, bundle: Path) -> None:
    """The golden samples: features and indices in, PyTorch's float64 logits expected."""
    vtn = python_ctypes.load(str(library))
    handle = ctypes.c_void_p()
    assert vtn.vtn_classifier_open(str(bundle).encode(), None, ctypes.byref(handle)) == 0, vtn.vtn_last_error()
    compared = 0
    for sample in bundle_samples(Bundle.open(bundle), "temporal"):
        for row, length in enumerate(sample.inputs["lengths"]):
            features = np.ascontiguousarray(sample.inputs["features"][row, :length])
            index = sample.inputs["frame_index"][row, :length].astype(np.int64)
            logits = np.zeros(5, np.float32)
            code = vtn.vtn_classify_features(
                handle, features.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(features)),
                index.ctypes.data_as(ctypes.c_void_p), logits.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(5),
            )  # fmt: skip
            assert code == 0, vtn.vtn_last_error()
            assert np.abs(logits - sample.expected["logits"][row]).max() <= 1e-4
            compared += 1
    assert compared == 11
    assert vtn.vtn_classifier_close(handle) == 0
    assert vtn.vtn_classifier_close(handle) == 2


@pytest.mark.timeout(600)
def test_a_real_clip_as_in_python(library: Path, bundle: Path, clip: bytes) -> None:
    from vtn_export.runtime.session import OrtSession
    from vtn_export.video import Preprocessor

    opened = Bundle.open(bundle)
    frames = np.frombuffer(clip, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)
    process = Preprocessor(opened.manifest.preprocessing)
    with OrtSession(opened.graph_path("full"), opened.graph("full").spec) as session:
        expected = session.run(
            {
                "frames": np.stack([process(frame) for frame in frames])[None],
                "frame_index": np.arange(24, dtype=np.int32)[None],
                "lengths": np.array([24], np.int32),
            }
        )["logits"][0]
    weights = np.exp(expected.astype(np.float64) - expected.max())
    done = run(sys.executable, ROOT / "examples" / "python_ctypes.py", library, bundle, WIDTH, HEIGHT, stdin=clip)
    assert done.returncode == 0, done.stderr
    told = dict(reversed(line.split(" ")) for line in done.stdout.decode().splitlines())
    for label, probability in zip(opened.labels(), weights / weights.sum(), strict=True):
        assert abs(float(told[label]) - probability) <= 1e-4


@pytest.fixture(scope="module")
def examples(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of C and C++, built in a project of their own by find_package(vtn)."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(user LANGUAGES C CXX)\nfind_package(vtn 1.0 REQUIRED)\n"
        "find_package(PkgConfig REQUIRED)\n"
        "pkg_check_modules(GST REQUIRED IMPORTED_TARGET gstreamer-app-1.0 gstreamer-video-1.0)\n"
        f"set(from {ROOT / 'examples'})\n"
        "add_executable(embed ${from}/embed.c)\nadd_executable(classify_video ${from}/classify_video.cpp)\n"
        "add_executable(camera_stream ${from}/camera_stream.cpp)\n"
        "foreach(name embed classify_video camera_stream)\n  target_link_libraries(${name} PRIVATE vtn::vtn)\n"
        "endforeach()\ntarget_link_libraries(camera_stream PRIVATE PkgConfig::GST)\n"
    )
    for command in (
        ["cmake", "--install", str(library.parent), "--prefix", str(folder / "prefix")],
        ["cmake", "-S", str(folder), "-B", str(folder / "build"), f"-DCMAKE_PREFIX_PATH={folder / 'prefix'}",
         f"-DCMAKE_EXE_LINKER_FLAGS=-Wl,-rpath-link,{Path(openvino.__file__).parent / 'libs'}"],
        ["cmake", "--build", str(folder / "build")],
    ):  # fmt: skip
        done = run(*command)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode()
    return folder / "build"


@pytest.mark.timeout(600)
def test_examples_run(examples: Path, bundle: Path, clip: bytes) -> None:
    done = run(examples / "embed", bundle)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().count("openvino") == 4
    assert "closed twice: classifier: got a handle that is closed" in done.stdout.decode()

    done = run(examples / "classify_video", bundle, WIDTH, HEIGHT, stdin=clip)
    assert done.returncode == 0, done.stderr
    assert abs(sum(float(line.split()[0]) for line in done.stdout.decode().splitlines()) - 1) < 1e-4
    nv12 = run("ffmpeg", "-v", "error", "-i", CLIP, "-frames:v", 24, "-f", "rawvideo", "-pix_fmt", "nv12", "-").stdout
    assert run(examples / "classify_video", bundle, WIDTH, HEIGHT, "nv12", stdin=nv12).returncode == 0
    assert run(examples / "classify_video", bundle, WIDTH, HEIGHT, stdin=b"").returncode == 6
    assert run(examples / "classify_video", "/none", WIDTH, HEIGHT, stdin=clip).returncode == 8


@pytest.mark.timeout(600)
def test_camera_stream(examples: Path, bundle: Path) -> None:
    for source in ("videotestsrc num-buffers=40", f"filesrc location={CLIP} ! decodebin ! videoconvert"):
        done = run(examples / "camera_stream", bundle, source, 4, 16)
        assert done.returncode == 0, done.stderr
        assert "results" in done.stdout.decode().splitlines()[-1]
    assert run(examples / "camera_stream", bundle, "videotestsrc num-buffers=4", 0).returncode == 2
    assert run(examples / "camera_stream", bundle, "nosuchelement").returncode == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("damage", ["hash", "source", "missing"])
def test_damaged_graphs_are_refused(library: Path, bundle: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    graph, record = copy / "openvino" / "backbone.onnx", copy / "openvino" / "backbone.json"
    if damage == "hash":
        graph.write_bytes(graph.read_bytes()[:-1])
    elif damage == "source":
        record.write_text(record.read_text().replace(Bundle.open(copy).manifest.files["backbone.onnx"], "0" * 64))
    else:
        shutil.rmtree(copy / "openvino")
    vtn = python_ctypes.load(str(library))
    handle = ctypes.c_void_p()
    assert vtn.vtn_classifier_open(str(copy).encode(), None, ctypes.byref(handle)) == 12
    assert b"vtn-export sdk" in vtn.vtn_last_error()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", ["manifest", "c_api"])
def test_fuzzers(target: str, tmp_path: Path) -> None:
    seconds = os.environ.get("VTN_FUZZ_SECONDS", "10")
    folder = build("fuzz", "-DVTN_BUILD_FUZZERS=ON", "-DVTN_SANITIZE=address,undefined",
                   "-DCMAKE_CXX_COMPILER=clang++-19", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")  # fmt: skip
    corpus = ROOT / "tests" / "cpp" / "runtime" / "fuzz" / "corpus" / target
    command = [folder / "tests" / f"vtn_fuzz_{target}", tmp_path, corpus, f"-max_total_time={seconds}",
               "-timeout=20", f"-artifact_prefix={tmp_path}/"]  # fmt: skip
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:].decode(errors="replace")
