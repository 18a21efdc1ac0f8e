"""Which frames `decode` yields, decodes and converts; and file names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video import make
from vtn_export.errors import UsageError, VideoError
from vtn_export.video import count_frames, decode

# the package's attribute of that name is the function
ROOM = sys.modules["vtn_export.video.decode"]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make.write(tmp_path_factory.mktemp("numbered") / "a.mp4", make.textured_frames(20, 24, 32))


@pytest.fixture(scope="module")
def whole(numbered: Path) -> list[npt.NDArray[np.uint8]]:
    return [frame for _, frame in decode(numbered)]


@settings(max_examples=25, deadline=None)
@given(wanted=st.lists(st.integers(0, 19), max_size=40).map(sorted))
def test_indices_pick_from_the_whole(numbered: Path, whole: list[npt.NDArray[np.uint8]], wanted: list[int]) -> None:
    picked = list(decode(numbered, wanted))
    assert [number for number, _ in picked] == wanted
    assert all((frame == whole[number]).all() for number, frame in picked)


class Spy:
    """Counts the frames that are decoded and those converted to RGB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.decoded = self.converted = 0
        frames, to_rgb = ROOM._frames, ROOM.to_rgb

        def spy_frames(*args: Any) -> Iterator[Any]:
            for frame in frames(*args):
                self.decoded += 1
                yield frame

        def spy_to_rgb(*args: Any) -> Any:
            self.converted += 1
            return to_rgb(*args)

        monkeypatch.setattr(ROOM, "_frames", spy_frames)
        monkeypatch.setattr(ROOM, "to_rgb", spy_to_rgb)


def test_only_what_is_wanted_is_converted(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    picked = [frame for _, frame in decode(numbered, [2, 2, 2, 7])]
    assert (spy.decoded, spy.converted) == (8, 2)  # and nothing after the last
    assert picked[0] is picked[1] is picked[2]


def test_counting_packets_decodes_nothing(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(monkeypatch)
    assert count_frames(numbered) == 20 and spy.decoded == 0


def test_nothing_is_wanted(numbered: Path) -> None:
    assert list(decode(numbered, [])) == []


def test_stops_when_cancelled(numbered: Path) -> None:
    seen: list[int] = []
    for number, _ in decode(numbered, cancelled=lambda: len(seen) >= 3):
        seen.append(number)
    assert 3 <= len(seen) < 20
    assert list(decode(numbered, [19], cancelled=lambda: True)) == []


@pytest.mark.parametrize("wanted", [[3, 2], [-1, 2]])
def test_refuses_unsorted_indices(numbered: Path, wanted: list[int]) -> None:
    with pytest.raises(UsageError, match="sorted"):
        decode(numbered, wanted)  # at the call, not at the first frame


def test_refuses_frames_that_do_not_exist(numbered: Path) -> None:
    with pytest.raises(VideoError, match="got 20 frames, expected frame 25 too"):
        list(decode(numbered, [1, 25]))


def test_accepts_names_that_look_like_protocols(numbered: Path, tmp_path: Path) -> None:
    for name in ("concat:a.mp4", "http:a", "ä ö%d.mp4", "-i.mp4"):
        path = tmp_path / name
        path.write_bytes(numbered.read_bytes())
        assert count_frames(path) == 20
        assert count_frames(str(path)) == 20
