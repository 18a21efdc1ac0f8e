"""`vtn-export run --stream` as a process: real files, pipes, signals, a terminal, and whoever closes our output."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_commands import expect_error
from tests.clihelp import Cli
from tests.tolerances import tolerance
from tests.video.make import cut, textured_frames, write
from vtn_export import errors
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.runtime.inference import classify_features, extract_features
from vtn_export.video import ClipReader, decode, shipped_clip

CLIP = shipped_clip()
ENDLESS = ("testsrc2=size=64x48:rate=25", "--source-format", "lavfi")


def start(bundle: Path, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vtn_export", "run", bundle, "--threads", 1, "--stream", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([str(part) for part in command], **options)


def lines(out: bytes) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results and the summary of JSON Lines."""
    read = [json.loads(line) for line in out.splitlines()]
    assert [line["type"] for line in read] == ["result"] * (len(read) - 1) + ["summary"]
    return read[:-1], read[-1]


def check_results(bundle: Path, video: Path, results: list[dict[str, Any]], window: int = 24, stride: int = 8) -> None:
    """Nothing was dropped: every line is what mode `chunked` says of the last `window` frames, those of the file."""
    opened = Bundle.open(bundle)
    count = results[-1]["frame_index"] + 1
    with Sessions(opened, threads=1) as sessions:
        with ClipReader(video, opened.manifest.preprocessing, None) as reader:
            features, _ = extract_features(sessions["backbone"], reader)
        assert [result["frame_index"] for result in results] == list(range(stride - 1, count, stride))
        for result in results:
            end = result["frame_index"] + 1
            first = max(0, end - window)
            seen = type(features)(features.features[first:end], features.frame_index[first:end], "", "")
            want = classify_features(sessions["temporal"], seen)
            assert result["frames"] == end - first and result["latency_seconds"] > 0
            assert np.abs(np.array(result["logits"]) - want.logits).max() <= tolerance("modes")
            top = want.top(5, opened.labels())
            assert [entry["label"] for entry in result["top"]] == [label for label, _ in top]


def test_a_file_in_json_lines(cli: Cli, small_bundle: Path) -> None:
    done = cli("run", small_bundle, "--stream", CLIP, "--json", "--stride", 5, "--window", 17)
    assert done.code == 0, done.err
    results, summary = lines(done.out.encode())
    assert len(results) == 15
    check_results(small_bundle, CLIP, results, 17, 5)
    told = {"ended": "source", "frames": 75, "results": 15, "dropped": 0, "late": 0, "exit_code": 0, "error": None}
    assert summary | told == summary and summary["policy"] == "block" and summary["last_frame_index"] == 74
    assert 0 < summary["latency_seconds"]["p50"] <= summary["latency_seconds"]["max"]


def test_late_results_are_counted_and_frames_left_out(cli: Cli, small_bundle: Path) -> None:
    options = ("--deadline", 1e-9, "--every", 3, "--index", "time", "--top", 2, "--json", "--queue", 2)
    results, summary = lines(cli("run", small_bundle, "--stream", CLIP, *options).out.encode())
    assert [result["frame_index"] for result in results] == [21, 45, 69] and summary["late"] == 3
    assert len(results[0]["top"]) == 2 and summary["frames"] == 25


def test_raw_frames_by_pipe(small_bundle: Path) -> None:
    frames = [image for _, image in decode(CLIP, list(range(40)))]
    height, width = frames[0].shape[:2]
    process = start(small_bundle, "-", "--size", f"{width}x{height}", "--json", stdin=subprocess.PIPE)
    out, err = process.communicate(b"".join(frame.tobytes() for frame in frames) + b"half a frame")
    results, summary = lines(out)
    assert len(results) == 5
    check_results(small_bundle, CLIP, results)
    assert process.returncode == errors.SourceError.exit_code == summary["exit_code"]
    assert summary["ended"] == "error" and "broke off after 40 frames" in summary["error"]
    assert err.decode().splitlines() == [f"error: {summary['error']}"]


def test_a_truncated_file_ends_with_what_was_seen(small_bundle: Path, tmp_path: Path) -> None:
    video = write(tmp_path / "v.mkv", textured_frames(60))
    whole = tmp_path / "whole.mkv"
    whole.write_bytes(video.read_bytes())
    process = start(small_bundle, cut(video, 0.6), "--json")
    out, err = process.communicate()
    results, summary = lines(out)
    assert process.returncode == 16 and 8 < summary["frames"] < 60 and len(results) == summary["frames"] // 8
    check_results(small_bundle, whole, results)
    assert "cut short" in summary["error"] and b"Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_it_with_a_summary(small_bundle: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C on a camera that sends frames, SIGTERM on one that sends none."""
    source: tuple[str, ...] = ENDLESS if number == signal.SIGINT else ("-", "--size", "64x48")
    process = start(small_bundle, *source, "--json", stdin=subprocess.PIPE)
    assert process.stdout is not None and process.stdin is not None
    if number == signal.SIGTERM:
        process.stdin.write(bytes(8 * 64 * 48 * 3))
        process.stdin.flush()
    before = process.stdout.readline()
    process.send_signal(number)
    out = before + process.stdout.read()
    err = process.communicate()[1]
    assert process.returncode == code, err
    results, summary = lines(out)
    assert summary["ended"] == "stopped" and summary["exit_code"] == code and err == b""
    assert len(results) == summary["results"] >= 1
    assert (np.diff([result["frame_index"] for result in results]) > 0).all()


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_output_that_nobody_reads_any_more(small_bundle: Path, options: tuple[str, ...]) -> None:
    process = start(small_bundle, *ENDLESS, *options)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()  # what `| head -1` does
    assert process.wait(120) == errors.OutputError.exit_code
    assert process.stderr.read() == b""
    process.stderr.close()


def test_a_full_disk_is_one_line(small_bundle: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(small_bundle, CLIP, "--json", stdout=full)
        _, err = process.communicate()
    assert process.returncode == errors.OutputError.exit_code
    assert err.decode() == "error: standard output: cannot be written (No space left on device)\n"


def test_a_terminal_sees_a_table(small_bundle: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = start(small_bundle, CLIP, stdout=theirs, env=environment)
    os.close(theirs)
    seen = b""
    try:
        while data := os.read(ours, 4096):
            seen += data
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    process.communicate()
    text = seen.decode()
    assert process.returncode == 0
    for part in ("class_3", "probability", "frame 71", "24 of 24 in the window", "0 dropped"):
        assert part in text, part
    assert "the source ended after 75 frames, 9 results" in text


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        (["--stream", CLIP, CLIP], errors.UsageError, "--stream: got VIDEO"),
        (["--stream", CLIP, "--mode", "full"], errors.UsageError, "--stream: got --mode full"),
        ([], errors.UsageError, "VIDEO: got none"),
        ([CLIP, "--window", 3], errors.UsageError, "--window: got 3 without --stream"),
        (["--stream", CLIP, "--policy", "keep"], errors.UsageError, "drop-oldest, drop-newest, block"),
        (["--stream", CLIP, "--window", 1 << 17], errors.UsageError, "window: got 131072, expected 1..65536"),
        (["--stream", CLIP, "--index", "day"], errors.UsageError, "frames, time"),
        (["--stream", CLIP, "--source-option", "tcp"], errors.UsageError, "NAME=VALUE"),
        (["--stream", "-", "--size", "9"], errors.UsageError, "WIDTHxHEIGHT"),
        (["--stream", "nowhere"], errors.VideoError, "no such file"),
        (["--stream", CLIP, "--backend", "torch", "--threads", 0], None, ""),
    ],
)
def test_bad_input_is_one_line(
    cli: Cli, small_bundle: Path, arguments: list[object], kind: type[errors.VtnError] | None, text: str
) -> None:
    for as_json in ([], ["--json"]):
        result = cli("run", small_bundle, *arguments, *as_json)
        if kind is None:
            assert result.code == 2
            continue
        expect_error(result, kind, text)
        if as_json and "--stream" in arguments and kind is errors.VideoError:
            assert json.loads(result.out)["exit_code"] == kind.exit_code and len(result.out.splitlines()) == 1
