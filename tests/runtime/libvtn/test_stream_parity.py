"""The same pushes into the Python stream and, through its C ABI, libvtn's: the same results, errors and sentences."""

from __future__ import annotations

import ctypes as c
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.libvtn.library import Result, StreamOptions, frame
from tests.runtime.streams import pictures
from tests.tolerances import tolerance
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import VtnError
from vtn_export.runtime.stream import Stream
from vtn_export.spec import Array

POLICIES = ("drop-oldest", "drop-newest", "block")  # VTN_DROP_OLDEST, VTN_DROP_NEWEST, VTN_BLOCK
CLASSES = 5
Told = tuple[int, str] | tuple[int, int, Array] | None


class Counters(c.Structure):
    _fields_ = [
        ("struct_size", c.c_size_t), ("frames", c.c_uint64), ("results", c.c_uint64), ("dropped", c.c_uint64),
        ("late", c.c_uint64),
    ]  # fmt: skip


class Libvtn:
    """vtn_stream of one bundle, with a Stream's methods; errors are (code, sentence)."""

    def __init__(self, library: Path, bundle: Path) -> None:
        self.vtn = c.CDLL(str(library))
        self.vtn.vtn_last_error.restype = c.c_char_p
        self.classifier, self.stream = c.c_void_p(), c.c_void_p()
        assert self.vtn.vtn_classifier_open(str(bundle).encode(), None, c.byref(self.classifier)) == 0, self.error()

    def error(self) -> str:
        return str(self.vtn.vtn_last_error().decode())

    def open(self, window: int, stride: int, queue: int, policy: str, deadline: float) -> Told:
        options = StreamOptions(c.sizeof(StreamOptions), window, stride, queue, POLICIES.index(policy), deadline)
        code = self.vtn.vtn_stream_open(self.classifier, c.byref(options), c.byref(self.stream))
        return (code, self.error()) if code else None

    def push(self, image: Array, index: int) -> Told:
        logits = np.zeros(CLASSES, np.float32)
        result = Result(struct_size=c.sizeof(Result), logits=logits.ctypes.data, num_logits=CLASSES)
        code = self.vtn.vtn_stream_push(self.stream, c.byref(frame(image)), c.c_int64(index), c.byref(result))
        if code:
            return code, self.error()
        return (result.frames, result.frame_index, logits) if result.ready else None

    def reset(self) -> None:
        assert self.vtn.vtn_stream_reset(self.stream) == 0

    def counters(self) -> tuple[int, ...]:
        counters = Counters(c.sizeof(Counters))
        assert self.vtn.vtn_stream_counters(self.stream, c.byref(counters)) == 0
        return counters.frames, counters.results, counters.dropped, counters.late

    def close(self) -> None:
        if self.stream:
            self.vtn.vtn_stream_close(self.stream)
        self.stream = c.c_void_p()


class Python:
    """The same of ours."""

    def __init__(self, parts: Sessions) -> None:
        self.parts = parts

    def open(self, window: int, stride: int, queue: int, policy: Any, deadline: float) -> Told:
        try:
            self.stream = Stream(self.parts, window, stride, queue=queue, policy=policy, deadline=deadline)
        except VtnError as error:
            return error.exit_code, str(error)
        return None

    def push(self, image: Array, index: int) -> Told:
        try:
            results = self.stream.push(image, index)
        except VtnError as error:
            return error.exit_code, str(error)
        return (results[0].frames, results[0].frame_index, results[0].logits) if results else None

    def reset(self) -> None:
        self.stream.reset()

    def counters(self) -> tuple[int, ...]:
        told = self.stream.counters()
        return told.frames, told.results, told.dropped, told.late


@pytest.fixture(scope="module")
def pair(library: Path, cpu_bundle: Path) -> Iterator[tuple[Libvtn, Python]]:
    with Sessions(Bundle.open(cpu_bundle), threads=1) as parts:
        theirs = Libvtn(library, cpu_bundle)
        yield theirs, Python(parts)
        theirs.close()
        theirs.vtn.vtn_classifier_close(theirs.classifier)


def agree(theirs: Told, ours: Told) -> None:
    if theirs is None or ours is None or len(theirs) == 2 or len(ours) == 2:
        assert theirs == ours
        return
    assert theirs[:2] == ours[:2]
    assert np.abs(theirs[2] - ours[2]).max() <= tolerance("modes")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("window", "stride", "seed"), [(1, 1, 0), (6, 1, 1), (9, 4, 2), (5, 12, 3), (0, 8, 4)])
def test_one_script_two_streams(pair: tuple[Libvtn, Python], window: int, stride: int, seed: int) -> None:
    """Indices that go on, jump, go back or come twice, pictures that are none, resets: all told alike."""
    for stream in pair:
        assert stream.open(window, stride, 0, "block", 1e-9) is None
    generator, at, told = random.Random(seed), 270, 0
    for step in range(60):
        image = pictures(1, step, generator.randrange(20, 60), generator.randrange(20, 60))[0]
        kind = generator.choice(["next"] * 6 + ["jump"] * 3 + ["same", "back", "negative", "thin", "reset"])
        index = {"next": -1, "jump": at + generator.randrange(1, 700), "same": at, "back": at - 3, "negative": -2}
        if kind == "reset" and generator.random() < 0.5:
            at = -1
            for stream in pair:
                stream.reset()
        elif kind == "thin":
            image = np.zeros((1, 300, 3), np.uint8)
        results = [stream.push(image, index.get(kind, -1)) for stream in pair]
        agree(*results)
        told += results[0] is not None
        if results[0] is None or len(results[0]) == 3:
            at = max(at + 1, index.get(kind, -1))
        assert pair[0].counters() == pair[1].counters()
    assert told > 3
    pair[0].close()


@pytest.mark.parametrize(
    "options",
    [
        (6, 0, 0, "block", 0.0), (6, -1, 0, "block", 0.0), (6, 1 << 17, 0, "block", 0.0), (-1, 1, 0, "block", 0.0),
        (1 << 17, 1, 0, "block", 0.0), (6, 1, -1, "block", 0.0), (6, 1, 5000, "drop-oldest", 0.0),
        (6, 1, 0, "drop-newest", -1.0),
    ],
)  # fmt: skip
def test_refused_alike(pair: tuple[Libvtn, Python], options: tuple[int, int, int, str, float]) -> None:
    theirs, ours = (stream.open(*options) for stream in pair)
    assert theirs == ours and theirs is not None


def test_the_ends_of_indices_alike(pair: tuple[Libvtn, Python]) -> None:
    for stream in pair:
        assert stream.open(3, 1, 0, "block", 0.0) is None
    image = pictures(1)[0]
    for index in (0, 1 << 40, (1 << 40) + 1, (1 << 63) - 2, -1, -1, (1 << 63) - 1):
        agree(*(stream.push(image, index) for stream in pair))
    pair[0].close()
