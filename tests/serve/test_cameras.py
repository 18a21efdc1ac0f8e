"""The endpoint of form `stream` by itself: requests of several cameras in one call share batches, not results."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.serve.clients import clip
from tests.serve.test_triton import _windows
from tests.tolerances import tolerance
from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import UsageError
from vtn_export.serve.cameras import Cameras
from vtn_export.serve.config import LAST_FRAME_INDEX
from vtn_export.serve.endpoint import Request
from vtn_export.spec import FRAMES, LOGITS, Array

PARAMETERS = {"window": "10", "stride": "3", "chunk": "4", "max_frames": "50", "idle_seconds": "60"}


def test_a_call_with_requests_of_several_cameras(bundle: Bundle) -> None:
    """Two requests of each of three cameras a call, ragged, and one bad request among them."""
    cameras = Cameras(Sessions(bundle), PARAMETERS)
    video = {name: clip(41, seed=name)[FRAMES][0] for name in (11, 12, 13)}
    got: dict[int, list[Array]] = {name: [] for name in video}
    at = dict.fromkeys(video, 0)
    generator = random.Random(1)
    bad = Request({FRAMES: clip(2)[FRAMES][..., :2]}, {"START": 1, "END": 1, "READY": 1, "CORRID": 99})
    while any(place < 41 for place in at.values()):
        requests, names, ends = [], [], []
        for name in [name for name in video for _ in range(2) if at[name] < 41]:
            count = min(generator.choice([1, 2, 5, 13]), 41 - at[name])
            if not count:
                continue
            controls = {"START": int(at[name] == 0), "END": int(at[name] + count == 41), "READY": 1, "CORRID": name}
            requests.append(Request({FRAMES: video[name][None, at[name] : at[name] + count]}, controls))
            names.append(name)
            ends.append(range(at[name], at[name] + count))
            at[name] += count
        *answers, refused = cameras.run([*requests, bad])
        assert isinstance(refused, str) and "frames: got uint8" in refused
        for name, places, answer in zip(names, ends, answers, strict=True):
            assert isinstance(answer, dict), answer
            assert list(answer[LAST_FRAME_INDEX][0]) == [place for place in places if place % 3 == 2]
            got[name] += list(answer[LOGITS][0])
    assert not cameras.cameras and not len(cameras.group)
    cameras.close()
    for name, results in got.items():
        want = _windows(bundle, video[name], 10, 3)
        assert len(results) == len(want) == 13
        assert np.abs(np.array(results) - np.array(want)).max() <= tolerance("modes")


def test_parameters_are_a_streams(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"stride: got 70000, expected 1\.\.65536"):
        Cameras(Sessions(bundle), {**PARAMETERS, "stride": "70000"})
    cameras = Cameras(Sessions(bundle), {**PARAMETERS, "window": "0", "stride": "0"})
    assert (cameras.group.options.window, cameras.group.options.stride) == (24, 8)
    cameras.close()
