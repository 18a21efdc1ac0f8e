"""Repositories on the real tritonserver: the library's numbers over both protocols, whatever else is asked."""

from __future__ import annotations

import random
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.clihelp import Cli
from tests.serve.clients import CROP, Crowd, client, clip, expected, infer
from tests.serve.conftest import IDLE_SECONDS, started
from vtn_export import errors
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.serve.cameras import Cameras
from vtn_export.serve.endpoint import Request
from vtn_export.serve.server import TritonServer
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("frames", "clips"), [(1, 1), (2, 3), (7, 1), (24, 8), (199, 1)])
def test_answers_are_the_librarys(server: TritonServer, bundle: Bundle, protocol: str, frames: int, clips: int) -> None:
    arrays = clip(frames, clips)
    with Sessions(bundle) as sessions:
        want = expected(sessions, arrays)
    answer = infer(client(server, protocol), arrays)
    assert np.abs(answer.as_numpy(LOGITS) - want).max() <= 1e-5 * max(1, np.abs(want).max())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_one_clients_mistake_is_one_line(server: TritonServer, protocol: str) -> None:
    connection = client(server, protocol)
    good = clip(3)
    for change, text in (
        ({FRAMES: good[FRAMES][..., :2].copy()}, "shape"),
        ({FRAMES: good[FRAMES].astype(np.float32)}, "FP32"),
        ({FRAMES: clip(201)[FRAMES], FRAME_INDEX: clip(201)[FRAME_INDEX]}, "at most 200"),
        ({LENGTHS: np.array([[4]], np.int32)}, "1..3"),
        ({FRAME_INDEX: clip(5)[FRAME_INDEX]}, "frame_index: got 5 frames"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            infer(connection, {**good, **change})
        assert text in str(refused.value) and "Traceback" not in str(refused.value), refused.value
    assert infer(connection, good).as_numpy(LOGITS).shape == (1, 5)


def test_full_fills_in_positions_and_lengths_and_names_classes(bundle: Bundle, tmp_path: Path) -> None:
    frames = clip(9)[FRAMES]
    with Sessions(bundle) as sessions:
        positions = np.arange(9, dtype=np.int32)[None]
        want = expected(sessions, {FRAMES: frames, FRAME_INDEX: positions, LENGTHS: np.array([[9]], np.int32)})
    with started(bundle, tmp_path, "full") as server:
        connection = client(server, "http")
        assert np.abs(infer(connection, {FRAMES: frames}).as_numpy(LOGITS) - want).max() <= 1e-5
        import tritonclient.http

        outputs = [tritonclient.http.InferRequestedOutput(LOGITS, class_count=2)]
        best = infer(connection, {FRAMES: frames}, outputs=outputs).as_numpy(LOGITS)[0][0].decode()
        assert best.endswith(":" + bundle.labels()[int(want.argmax())])
        metadata = connection.get_model_metadata("vtn")
        assert metadata["inputs"][0]["shape"] == [-1, -1, CROP, CROP, 3] and metadata["versions"] == ["1"]
        with urllib.request.urlopen(f"http://{server.metrics}/metrics") as page:
            assert "nv_inference_request_success" in page.read().decode()
        connection.close()
        process = server.process
    assert process is not None and process.returncode == 0, "ended cleanly"


def _windows(bundle: Bundle, frames: Array, window: int, stride: int) -> list[Array]:
    """What a stream must say, frame by frame, written down plainly."""
    with Sessions(bundle) as sessions:
        features = sessions["backbone"].run({FRAMES: frames})[FEATURES]
        results = []
        for last in range(stride - 1, len(frames), stride):
            first = max(0, last + 1 - window)
            inputs = {
                FEATURES: features[None, first : last + 1],
                FRAME_INDEX: np.arange(first, last + 1, dtype=np.int32)[None],
                LENGTHS: np.array([last + 1 - first], np.int32),
            }
            results.append(sessions["temporal"].run(inputs)[LOGITS][0])
    return results


def test_cameras_are_sequences(stream_server: TritonServer, bundle: Bundle) -> None:
    """Three cameras at once, requests of odd lengths, over both protocols; one starts again in the middle."""
    cameras = {11: "http", 12: "grpc", 13: "grpc"}
    video = {name: clip(41, seed=name)[FRAMES][0] for name in cameras}
    got: dict[int, list[Array]] = {name: [] for name in cameras}
    at = dict.fromkeys(cameras, 0)
    connections = {name: client(stream_server, protocol) for name, protocol in cameras.items()}
    generator = random.Random(5)
    restarted = False
    while unfinished := [name for name in cameras if at[name] < 41]:
        name = generator.choice(unfinished)
        if name == 13 and at[name] > 20 and not restarted:
            restarted, at[name], got[name] = True, 0, []
        count = min(generator.choice([1, 2, 5, 13]), 41 - at[name])
        frames = video[name][None, at[name] : at[name] + count]
        options = {"sequence_id": name, "sequence_start": at[name] == 0, "sequence_end": at[name] + count == 41}
        answer = infer(connections[name], {FRAMES: frames}, **options)
        logits, last = answer.as_numpy(LOGITS), answer.as_numpy("last_frame_index")
        assert [int(i) for i in last.reshape(-1)] == [i for i in range(at[name], at[name] + count) if i % 3 == 2]
        got[name] += list(logits[0])
        at[name] += count
    for name in cameras:
        want = _windows(bundle, video[name], 10, 3)
        assert len(got[name]) == len(want) == 13
        assert np.abs(np.array(got[name]) - np.array(want)).max() <= 1e-5


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_cameras_mistake_costs_it_nothing(stream_server: TritonServer, bundle: Bundle, protocol: str) -> None:
    connection, frames = client(stream_server, protocol), clip(6, seed=3)[FRAMES]
    name = 31 if protocol == "http" else 32
    assert (
        infer(connection, {FRAMES: frames[:, :2].copy()}, sequence_id=name, sequence_start=True).as_numpy(LOGITS).size
        == 0
    )
    for wrong, text in (
        (frames[..., :2].copy(), "shape"),
        (frames.astype(np.float32), "FP32"),
        (clip(201)[FRAMES], "at most 200"),
        (np.concatenate([frames, frames]), "batch"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            infer(connection, {FRAMES: wrong}, sequence_id=name)
        assert text in str(refused.value) and "Traceback" not in str(refused.value), refused.value
    answer = infer(connection, {FRAMES: frames[:, 2:].copy()}, sequence_id=name, sequence_end=True)
    want = _windows(bundle, frames[0], 10, 3)
    assert answer.as_numpy("last_frame_index").tolist() == [[2, 5]]
    assert np.abs(answer.as_numpy(LOGITS)[0] - np.array(want)).max() <= 1e-5


def test_a_camera_that_ended_or_fell_silent_must_start_again(stream_server: TritonServer) -> None:
    connection, frames = client(stream_server, "grpc"), {FRAMES: clip(4)[FRAMES]}
    infer(connection, frames, sequence_id=21, sequence_start=True)
    infer(connection, frames, sequence_id=22, sequence_start=True)
    infer(connection, frames, sequence_id=21, sequence_end=True)
    with pytest.raises(InferenceServerException, match="START"):
        infer(connection, frames, sequence_id=21)
    infer(connection, frames, sequence_id=22)
    time.sleep(IDLE_SECONDS + 2)
    with pytest.raises(InferenceServerException):
        infer(connection, frames, sequence_id=22)
    with pytest.raises(InferenceServerException, match="correlation ID"):
        infer(connection, frames)


def test_silence_frees_a_cameras_state(bundle: Bundle) -> None:
    now = [0.0]
    parameters = {"window": "4", "stride": "2", "chunk": "3", "max_frames": "9", "idle_seconds": "60"}
    cameras = Cameras(Sessions(bundle), parameters, clock=lambda: now[0])
    frames = {FRAMES: clip(5)[FRAMES]}

    def ask(name: int, start: int = 0, end: int = 0) -> object:
        return cameras.run([Request(frames, {"START": start, "END": end, "READY": 1, "CORRID": name})])[0]

    for name in range(100):
        ask(name, start=1)
    assert len(cameras.cameras) == 100
    assert all(len(camera.features) == 4 for camera in cameras.cameras.values())
    now[0] = 59
    ask(7, end=1)
    ask(8)
    now[0] = 61
    cameras.sweep()
    assert list(cameras.cameras) == [8]
    assert "start it again" in str(ask(9))
    assert "at most 9" in str(
        cameras.run([Request({FRAMES: clip(10)[FRAMES]}, {"START": 1, "END": 0, "CORRID": 3})])[0]
    )
    cameras.close()


def _crowd(bundle: Bundle, folder: Path, seconds: float) -> Crowd:
    seed = random.randrange(1 << 20)
    print("seed", seed)
    with started(bundle, folder, "full") as server:
        crowd = Crowd(server, bundle, 64, seconds, seed)
        crowd.run()
        print(dict(crowd.counts), f"growth {crowd.growth() / 1e6:.1f} MB")
        assert server.process is not None and server.process.poll() is None and server.ready()
        assert not crowd.wrong, crowd.wrong[:5]
        log = server.log.read_text(errors="replace")
        assert "Traceback" not in log and "unexpectedly" not in log
        bad = {"wrong shape", "wrong type", "too long", "bad length", "missing input", "lies", "cut"}
        assert set(crowd.counts) == {"good", *bad}
    return crowd


def test_a_crowd(bundle: Bundle, tmp_path: Path) -> None:
    """64 clients, half of what they send is wrong: a few seconds here, five minutes by `make test-triton`."""
    assert _crowd(bundle, tmp_path, 10).counts["good"] > 100


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_crowd_for_five_minutes(bundle: Bundle, tmp_path: Path) -> None:
    crowd = _crowd(bundle, tmp_path, 300)
    assert crowd.counts["good"] > 5000
    assert crowd.growth() < 20e6, "memory grows"


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (["--form", "half"], errors.UsageError, "full, ensemble, stream"),
        (["--backend", "torch"], errors.UsageError, "ort"),
        (["--backend", "trt"], errors.EngineError, "no engine"),
        (["--name", "a/b"], errors.UsageError, "--name"),
        (["--stride", "3"], errors.UsageError, "stream"),
        (["FULL"], errors.OutputError, "empty"),
        (["FILE"], errors.OutputError, "empty"),
    ],
)
def test_bad_input_is_one_line(
    cli: Cli, bundle: Bundle, tmp_path: Path, arguments: list[str], kind: type[errors.VtnError], text: str
) -> None:
    out = tmp_path / "repository"
    if arguments == ["FULL"]:
        out.mkdir()
        (out / "holiday.jpg").write_text("")
    elif arguments == ["FILE"]:
        out.write_text("")
    before = sorted(tmp_path.rglob("*"))
    result = cli("triton", bundle.path, "--out", out, *[a for a in arguments if not a.isupper()])
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert result.code == kind.exit_code and len(lines) == 1 and text in lines[0], result.err
    assert sorted(tmp_path.rglob("*")) == before


def test_command_writes_what_the_server_loads(cli: Cli, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    result = cli("triton", bundle.path, "--out", out, "--form", "ensemble", "--name", "clips", "--json")
    assert result.json["models"] == ["clips", "clips_backbone", "clips_temporal"], result.err
    with TritonServer(out) as server:
        assert infer(client(server, "http"), clip(3), "clips").as_numpy(LOGITS).shape == (1, 5)
    broken = out / "clips_temporal" / "1" / "bundle" / "temporal.onnx"
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    with pytest.raises(errors.BackendError, match="SHA-256"):
        TritonServer(out).start()
