"""Runs whose workers, nodes and drivers are killed at random points give the rows of an uninterrupted one."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.batch.clips import Rows, make_archive, read, same
from vtn_export import errors
from vtn_export.batch.decode import DecodeSettings, Ended, Event, Frames, decode_video
from vtn_export.batch.results import PARTS, load_record
from vtn_export.batch.run import BatchOptions, Progress, run_batch
from vtn_export.batch.stage import Outcome
from vtn_export.bundle import Bundle


@pytest.fixture
def chance() -> random.Random:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    return random.Random(seed)


def kill_workers(bundle: Bundle, archive: Path, out: Path, chance: random.Random, rate: float) -> int:
    """Kill a decode process after an outcome with probability `rate`; returns how many were killed."""
    killed = 0

    def advance(outcome: Outcome) -> None:
        nonlocal killed
        workers = [child for child in multiprocessing.active_children() if child.name == "vtn-export-decode"]
        if workers and chance.random() < rate:
            os.kill(chance.choice(workers).pid or 0, signal.SIGKILL)
            killed += 1

    options = BatchOptions(frames=24, workers=3, part_rows=7)
    run_batch(bundle, str(archive), out, options, Progress(advance=advance))
    return killed


def kill_driver(bundle: Bundle, archive: Path, out: Path, chance: random.Random, times: int, *extra: str) -> int:
    """Kill the command `times` times, each at a random moment after it has begun to write; then let it end."""
    killed = 0
    command = [sys.executable, "-m", "vtn_export", "batch", str(bundle.path), str(archive), "--out", str(out)]
    command += ["--resume", "--part-rows", "3", "--workers", "2", *extra]
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list(out.glob(PARTS)))
        while process.poll() is None and len(list(out.glob(PARTS))) == before:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        killed += process.poll() is None
        process.kill()
        process.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return killed


def test_killed_workers(
    bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path, chance: random.Random
) -> None:
    assert kill_workers(bundle, archive, tmp_path / "out", chance, 0.15) > 0
    same(read(tmp_path / "out"), uninterrupted)
    assert not multiprocessing.active_children()


def test_killed_driver(
    bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path, chance: random.Random
) -> None:
    assert kill_driver(bundle, archive, tmp_path / "out", chance, 2) > 0
    same(read(tmp_path / "out"), uninterrupted)


def test_ctrl_c_keeps_what_was_finished(bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "vtn_export", "batch", str(bundle.path), str(archive), "--out", str(out)]
    command += ["--part-rows", "5"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list(out.glob(PARTS)):
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == errors.INTERRUPTED_EXIT_CODE and "--resume" in err and "Traceback" not in err, err
    kept = read(out)
    assert 5 <= len(kept) < 31
    run_batch(bundle, str(archive), out, BatchOptions(frames=24, resume=True))
    same(read(out), uninterrupted)


def poisonous(path: str, settings: DecodeSettings) -> Iterator[Event]:
    """A decoder that a certain video kills, after some frames."""
    for event in decode_video(path, settings):
        yield event
        if "0003" in path:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_video_that_kills_its_decoder_is_a_row(
    bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path
) -> None:
    run_batch(bundle, str(archive), tmp_path / "out", BatchOptions(frames=24, workers=2, chunk=5), decoder=poisonous)
    rows = read(tmp_path / "out")
    (name,) = [name for name in rows if "0003" in name]
    assert "died 5 times" in rows.pop(name)["error"]
    same(rows, {other: row for other, row in uninterrupted.items() if other != name})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_three_hundred_clips(bundle: Bundle, tmp_path: Path, chance: random.Random) -> None:
    archive = make_archive(tmp_path / "videos", 300)
    run_batch(bundle, str(archive), tmp_path / "whole", BatchOptions(frames=24, workers=2))
    whole = read(tmp_path / "whole")
    assert len(whole) == 300 and sum(row["error"] is not None for row in whole.values()) == 30
    print("workers killed:", kill_workers(bundle, archive, tmp_path / "workers", chance, 0.05))
    same(read(tmp_path / "workers"), whole)
    print("drivers killed:", kill_driver(bundle, archive, tmp_path / "driver", chance, 10))
    same(read(tmp_path / "driver"), whole)


def stub(path: str, settings: DecodeSettings) -> Iterator[Event]:
    """Frames out of nothing, for lists longer than any disk of ours."""
    crop = settings.preprocessing.crop_size
    yield Frames(np.zeros((1, crop, crop, 3), np.uint8), np.zeros(1, np.int32))
    yield Ended("0" * 64, 0.0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_is_flat_over_a_hundred_thousand_inputs(bundle: Bundle, tmp_path: Path) -> None:
    source = tmp_path / "list.txt"
    names = (f"/archive/{number % 97}/a clip with a longer name {number}.mp4\n" for number in range(100_000))
    source.write_text("".join(names))
    sizes: list[int] = []

    def advance(outcome: Outcome) -> None:
        assert outcome.error is None
        if next(count) % 1000 == 0:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    count = itertools.count(1)
    options = BatchOptions(frames=1, workers=2, chunk=64)
    summary = run_batch(bundle, str(source), tmp_path / "out", options, Progress(advance=advance), decoder=stub)
    assert (summary.written, summary.failed) == (100_000, 0)
    early, late = max(sizes[5:15]), max(sizes[-10:])
    print(f"resident: {early / 1e6:.0f} MB after 15,000 inputs, {late / 1e6:.0f} MB after 100,000")
    assert late - early < 20e6
    assert load_record(tmp_path / "out").classes == 5
