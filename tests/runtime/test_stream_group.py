"""Cameras in a group say what streams of their own would say, whoever comes, goes or fails beside them."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.streams import CROP, StubBackbone, StubParts, StubTemporal, pictures
from tests.tolerances import tolerance
from vtn_export import errors
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.runtime.stream import Result, Stream
from vtn_export.runtime.stream_group import StreamGroup
from vtn_export.spec import Array


@pytest.fixture(scope="module")
def parts(small_bundle: Path) -> Iterator[Sessions]:
    with Sessions(Bundle.open(small_bundle), threads=1) as sessions:
        yield sessions


def same(got: list[Result], want: list[Result]) -> None:
    assert [(r.frames, r.frame_index) for r in got] == [(r.frames, r.frame_index) for r in want]
    for mine, theirs in zip(got, want, strict=True):
        assert np.abs(mine.logits - theirs.logits).max() <= tolerance("modes")


def test_ragged_arrival_cameras_coming_and_going(parts: Sessions) -> None:
    """Real graphs: six cameras over 40 calls, up to five frames each, indices that jump; two leave and come back."""
    generator = random.Random(4)
    group: StreamGroup[str] = StreamGroup(parts, 10, 3, chunk=7, preprocessed=True)
    alone: dict[str, Stream] = {}
    seen = 0
    for call in range(40):
        for name in "abcdef":
            if name not in group and generator.random() < 0.3:
                group.add(name)
                alone[name] = Stream(parts, 10, 3, preprocessed=True)
            elif call in (15, 25) and name in group and name in "bd":
                group.remove(name)
            elif call == 20 and name == "a" and name in group:
                group.reset(name)
                alone[name].reset()
        frames = {
            name: pictures(generator.randrange(6), 1000 * call + ord(name), 32, 32)
            for name in group
            if generator.random() < 0.7
        }
        index = {
            name: [10_000 * call + 3 * i for i in range(len(own))] if name in "ace" else None
            for name, own in frames.items()
        }
        outcomes = group.push(frames, index)
        assert set(outcomes) == set(frames)
        for name, outcome in outcomes.items():
            assert isinstance(outcome, list)
            same(outcome, alone[name].push(frames[name], index[name]))
            seen += len(outcome)
    assert seen > 80 and len(group) >= 4
    for name in group:
        assert group.counters(name) == alone[name].counters()


def test_frames_of_all_cameras_share_the_backbones_batches() -> None:
    parts = StubParts()
    group: StreamGroup[int] = StreamGroup(parts, 6, 2, chunk=8)
    for name in range(5):
        group.add(name)
    group.push({name: pictures(1 + name, name) for name in range(5)})
    assert parts["backbone"].calls == [8, 7]


@pytest.mark.parametrize("fault", ["shape", "index", "unknown", "pixels", "temporal"])
def test_one_failing_camera_spoils_no_other(fault: str) -> None:
    bad = np.full((1, CROP, CROP, 3), 255, np.uint8)

    def refuse(frames: Array) -> None:
        if (frames == 255).all((1, 2, 3)).any():
            raise errors.BackendError("stub: a frame it cannot take")

    turns = [0]

    def sometimes() -> None:
        turns[0] += 1
        if turns[0] == 2:
            raise errors.BackendError("stub: broken")

    parts = StubParts(StubBackbone(refuse), StubTemporal(sometimes if fault == "temporal" else lambda: None))
    group: StreamGroup[str] = StreamGroup(parts, 6, 1, preprocessed=True)
    names = ["a", "b", "c"]
    for name in names:
        group.add(name)
    frames: dict[str, Any] = {name: pictures(1, ord(name), CROP, CROP) for name in names}
    index: dict[str, Any] = {}
    wrong = "b"
    if fault == "shape":
        frames["b"] = np.zeros((9, CROP, 3), np.uint8)
    elif fault == "index":
        index["b"] = -5
    elif fault == "unknown":
        frames["z"] = frames["b"]
        wrong = "z"
    elif fault == "pixels":
        frames["b"] = bad
    outcomes = group.push(frames, index)
    kinds = {"shape": errors.ShapeError, "pixels": errors.BackendError, "temporal": errors.BackendError}
    assert isinstance(outcomes.pop(wrong), kinds.get(fault, errors.UsageError))
    for name, outcome in outcomes.items():
        assert isinstance(outcome, list)
        same(outcome, Stream(StubParts(), 6, 1, preprocessed=True).push(frames[name]))
    good = pictures(1, 5, CROP, CROP)
    after = group.push({"b": good})["b"]  # it goes on, with none of what failed in its ring
    assert isinstance(after, list) and after[0].frames == (2 if fault == "unknown" else 1)


def test_offered_frames_wait_in_a_queue_of_each_camera() -> None:
    parts = StubParts()
    group: StreamGroup[str] = StreamGroup(parts, 6, 1, queue=2, chunk=4, policy="drop-oldest")
    assert group.step() == {}
    for name in "abc":
        group.add(name)
    images = {name: pictures(5, ord(name)) for name in "abc"}
    for number in range(5):
        assert group.offer("a", images["a"][number], 10 * number)
    group.offer("b", images["b"][0])
    group.offer("c", images["c"][0])
    outcomes = group.step()
    want = Stream(StubParts(), 6, 1)
    assert set(outcomes) == {"a", "b", "c"} and parts["backbone"].calls == [4]
    assert isinstance(outcomes["a"], list)
    same(outcomes["a"], want.push(images["a"][3:], [30, 40]))
    assert group.counters("a").dropped == 3 and group.counters("b").dropped == 0
    outcome = group.push({"a": images["a"][0], "zz": images["a"][0]})
    assert "has a queue in use" in str(outcome["a"]) and "was not added" in str(outcome["zz"])


def test_a_full_batch_leaves_nobody_behind() -> None:
    group: StreamGroup[int] = StreamGroup(StubParts(), 6, 1, queue=8, chunk=3, policy="block")
    for name in range(7):
        group.add(name)
        for image in pictures(4, name):
            group.offer(name, image)
    turns = [list(group.step()) for _ in range(10)]
    assert (turns[:3] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]] and turns[-1] == [4, 5, 6][:1]) or len(turns[-1]) == 1
    assert all(group.counters(name).frames == 4 for name in range(7))


def test_cameras_in_threads_of_their_own() -> None:
    group: StreamGroup[int] = StreamGroup(StubParts(), 6, 2, queue=2, policy="block")
    images = {name: pictures(60, name) for name in range(4)}
    for name in images:
        group.add(name)
    threads = [
        threading.Thread(target=lambda name=name: [group.offer(name, image) for image in images[name]])
        for name in images
    ]
    for thread in threads:
        thread.start()
    told: dict[int, list[Result]] = {name: [] for name in images}
    while sum(map(len, told.values())) < 120:
        for name, outcome in group.step(60).items():
            assert isinstance(outcome, list)
            told[name] += outcome
    for thread in threads:
        thread.join()
    for name, results in told.items():
        same(results, Stream(StubParts(), 6, 2).push(images[name]))


def test_names_threads_and_the_end() -> None:
    entered, gate = threading.Event(), threading.Event()

    def wait(_: Array) -> None:
        entered.set()
        assert gate.wait(60)

    group: StreamGroup[str] = StreamGroup(StubParts(StubBackbone(wait)), 6, 1)
    group.add("a")
    for call in (
        lambda: group.add("a"),
        lambda: group.remove("b"),
        lambda: group.counters("b"),
        lambda: group.step(-1),
    ):
        with pytest.raises(errors.UsageError):
            call()
    with pytest.raises(errors.UsageError, match="'b'"):
        group.offer("b", pictures(1))
    thread = threading.Thread(target=group.push, args=({"a": pictures(1)},))
    thread.start()
    assert entered.wait(60)
    for call in (lambda: group.push({}), group.step, lambda: group.reset("a")):
        with pytest.raises(errors.UsageError, match="in use by another thread"):
            call()
    gate.set()
    thread.join()
    group.close()
    assert len(group) == 0
    for call in (lambda: group.push({}), group.step, lambda: group.add("a")):
        with pytest.raises(errors.UsageError, match="stream group: it is closed"):
            call()
