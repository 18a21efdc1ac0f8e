"""The examples, built as a user builds them and run on a real clip; graphs of the CPU executor that are not right."""

from __future__ import annotations

import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.libvtn.fixtures import clip, library
from tests.runtime.libvtn.fixtures import cpu_bundle as bundle
from tests.runtime.libvtn.library import CLIP, HEIGHT, ROOT, WIDTH, Lib, LibError, run
from vtn_export.bundle import Bundle

__all__ = ["bundle", "clip", "library"]


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
    cut = run(sys.executable, ROOT / "examples" / "python_ctypes.py", library, bundle, WIDTH, HEIGHT, stdin=clip[:-1])
    assert (cut.returncode, b"ended inside a frame" in cut.stderr) == (6, True)
    told = dict(reversed(line.split(" ")) for line in done.stdout.decode().splitlines())
    for label, probability in zip(opened.labels(), weights / weights.sum(), strict=True):
        assert abs(float(told[label]) - probability) <= 1e-4


@pytest.fixture(scope="module")
def examples(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples of C and C++, built in a project of their own by find_package(vtn)."""
    folder = tmp_path_factory.mktemp("examples")
    prefix, build = folder / "prefix", folder / "build"
    for command in (
        ("cmake", "--install", library.parent, "--prefix", prefix),
        ("cmake", "-S", ROOT / "examples", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"),
        ("cmake", "--build", build),
    ):
        done = run(*command)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:].decode()
    return build


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
    said = {
        matrix: run(examples / "classify_video", bundle, WIDTH, HEIGHT, "nv12", *matrix, stdin=nv12)
        for matrix in ((), ("bt601",), ("bt709",), ("bt2020",))
    }
    assert [done.returncode for done in said.values()] == [0, 0, 0, 2]
    assert said[()].stdout == said[("bt601",)].stdout != said[("bt709",)].stdout
    assert run(examples / "classify_video", bundle, WIDTH, HEIGHT, stdin=b"").returncode == 6
    assert run(examples / "classify_video", bundle, WIDTH, HEIGHT, "bgr24", stdin=clip).returncode == 2
    cut = run(examples / "classify_video", bundle, WIDTH, HEIGHT, stdin=clip[:-1])
    assert cut.returncode == 6
    assert b"ended inside a frame" in cut.stderr
    assert run(examples / "classify_video", "/none", WIDTH, HEIGHT, stdin=clip).returncode == 8


def counted(line: str) -> tuple[int, ...]:
    found = re.fullmatch(r"(\d+) frames, (\d+) results, (\d+) dropped", line)
    assert found is not None, line
    return tuple(map(int, found.groups()))


@pytest.mark.timeout(600)
def test_camera_stream(examples: Path, bundle: Path) -> None:
    for source, frames in (
        ("videotestsrc num-buffers=40", 40),
        (f"filesrc location={CLIP} ! decodebin ! videoconvert", 75),
    ):
        done = run(examples / "camera_stream", bundle, source, 4, 16)
        assert done.returncode == 0, done.stderr
        *results, last = done.stdout.decode().splitlines()
        seen, given, dropped = counted(last)
        # every frame was looked at or counted as dropped; the newest result of those since the last look is printed
        assert seen + dropped == frames and given == seen // 4
        assert 1 <= len(results) <= given and all(line.startswith("frame ") for line in results)
    # in its own time, as a camera: 39 times a thirtieth of a second
    started = time.monotonic()
    assert run(examples / "camera_stream", bundle, "videotestsrc num-buffers=40", 4, 16).returncode == 0
    assert time.monotonic() - started > 1.2
    assert run(examples / "camera_stream", bundle, "videotestsrc num-buffers=4", 0).returncode == 2
    assert run(examples / "camera_stream", bundle, "nosuchelement").returncode == 2


@pytest.mark.timeout(120)
def test_a_camera_that_breaks_ends_with_what_was_seen(examples: Path, bundle: Path) -> None:
    done = run(examples / "camera_stream", bundle, "filesrc location=/none ! decodebin ! videoconvert")
    assert (done.returncode, done.stdout) == (6, b"0 frames, 0 results, 0 dropped\n")
    assert b"camera: Resource not found" in done.stderr
    source = "videotestsrc num-buffers=60 ! identity error-after=20"
    done = run(examples / "camera_stream", bundle, source, 4, 16)
    assert done.returncode == 16, done.stderr
    assert b"camera: " in done.stderr
    seen, given, dropped = counted(done.stdout.decode().splitlines()[-1])
    assert seen + dropped == 19 and given == seen // 4
    done = run(examples / "camera_stream", bundle, "videotestsrc num-buffers=0")
    assert (done.returncode, done.stderr) == (6, b"camera_stream: camera: no frames\n")


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
    for backend in ("openvino", "auto"):
        with pytest.raises(LibError, match="vtn-export sdk") as caught:
            Lib(library, copy, backend)
        assert caught.value.code == 12


@pytest.mark.timeout(600)
def test_auto_takes_the_cpu_where_tensorrt_cannot_serve(library: Path, bundle: Path, tmp_path: Path) -> None:
    """Of a library with both executors, on a machine without TensorRT; where neither serves, both reasons are told."""
    missing = r"^tensorrt: libnvinfer\.so\.\d+ cannot be loaded .*; install TensorRT"
    with pytest.raises(LibError, match=missing) as caught:
        Lib(library, bundle, "tensorrt")
    assert caught.value.code == 12
    for backend in ("auto", "openvino"):
        opened = Lib(library, bundle, backend)
        assert opened.backend == "openvino"
        opened.close()
    shutil.copytree(bundle, tmp_path / "bundle")
    shutil.rmtree(tmp_path / "bundle" / "openvino")
    with pytest.raises(LibError, match=missing + r".*; nor on the CPU: bundle .*: no backbone graph for OpenVINO"):
        Lib(library, tmp_path / "bundle")
