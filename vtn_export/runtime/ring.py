"""The newest features of one camera, and the temporal graph run over them. All memory is taken at the start."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from vtn_export.errors import ShapeError, UsageError
from vtn_export.runtime.session import Session
from vtn_export.spec import FEATURES, FRAME_INDEX, LENGTHS, LOGITS, Array

_LARGEST_INDEX = (1 << 63) - 1


class Ring:
    """Up to `window` features float32 `[window, width]` with their source indices int64 `[window]`."""

    def __init__(self, window: int, width: int) -> None:
        self.window = window
        self._features = np.zeros((window, width), np.float32)
        self._index = np.zeros(window, np.int64)
        self._start = self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, features: Array, index: Array) -> None:
        """Add features `[n, width]` with indices `[n]`, over the oldest ones."""
        features, index = features[-self.window :], index[-self.window :]
        at = (self._start + self._count) % self.window
        head = min(len(index), self.window - at)
        self._features[at : at + head], self._index[at : at + head] = features[:head], index[:head]
        rest = len(index) - head
        self._features[:rest], self._index[:rest] = features[head:], index[head:]
        beyond = max(0, self._count + len(index) - self.window)
        self._start = (self._start + beyond) % self.window
        self._count += len(index) - beyond

    def copy(self, skip: int, features: Array, index: Array) -> int:
        """Write all but the `skip` oldest, in the order of time, to the front of both arrays. Returns how many."""
        count = max(0, self._count - skip)
        at = (self._start + self._count - count) % self.window
        head = min(count, self.window - at)
        features[:head], index[:head] = self._features[at : at + head], self._index[at : at + head]
        features[head:count], index[head:count] = self._features[: count - head], self._index[: count - head]
        return count

    def ordered(self) -> tuple[Array, Array]:
        """Copies of all features and indices, in the order of time."""
        features, index = np.empty((self._count, self._features.shape[1]), np.float32), np.empty(self._count, np.int64)
        self.copy(0, features, index)
        return features, index

    def clear(self) -> None:
        self._start = self._count = 0


class Track:
    """One camera: its ring, the frames since its last result, and the newest index that was seen (-1: none)."""

    def __init__(self, window: int, width: int) -> None:
        self.ring = Ring(window, width)
        self.since, self.newest = 0, -1

    def checked(self, count: int, index: int | Sequence[int] | Array | None) -> Array:
        """The source indices of `count` frames, int64 `[count]`; None, or -1 in its place: one after the one before.

        Raises UsageError for one that does not rise, ShapeError unless there is one a frame.
        """
        if index is None:
            index = [-1] * count
        given: Any = [index] if np.ndim(index) == 0 else index
        if len(given) != count:
            raise ShapeError(f"frame_index: got {len(given)}, expected {count}, one a frame")
        newest, found = self.newest, []
        for value in given:
            try:
                place = operator.index(value)
            except TypeError:
                raise UsageError(f"frame_index: got {value!r}, expected whole numbers") from None
            place = newest + 1 if place == -1 else place
            if place <= newest:
                raise UsageError(
                    f"frame_index: got {place}, expected more than {newest}, the newest frame's; "
                    "reset() starts a new video"
                )
            if place > _LARGEST_INDEX:
                raise UsageError(f"frame_index: got {place}, expected less than 2^63; reset() starts a new video")
            found.append(place)
            newest = place
        return np.array(found, np.int64)

    def reset(self) -> None:
        self.ring.clear()
        self.since, self.newest = 0, -1


class Steps:
    """The temporal graph over the ring of whichever track takes new features; what all tracks share.

    positions: rows of position embeddings for frames. The graph takes an index modulo that; done here, so that
    int32 holds the indices of a camera that runs for years.
    """

    def __init__(self, temporal: Session, window: int, stride: int, positions: int) -> None:
        self.temporal, self.window, self.stride, self.positions = temporal, window, stride, positions
        self.width = int(temporal.spec.inputs[0].shape[-1])
        self._features = np.zeros((1, window, self.width), np.float32)
        self._index = np.zeros(window, np.int64)

    def due(self, track: Track, count: int) -> list[int]:
        """How many of `count` new frames each result of theirs has seen."""
        return list(range(self.stride - track.since, count + 1, self.stride))

    def classify(self, track: Track, features: Array, index: Array) -> tuple[Array, int]:
        """Logits `[classes]` over the track's window once these new frames are in it, and the frames in it.

        The track is left as it is: `keep` is for when every result went well.
        """
        new = min(len(index), self.window)
        skip = max(0, len(track.ring) + new - self.window)
        old = track.ring.copy(skip, self._features[0], self._index)
        count = old + new
        self._features[0, old:count], self._index[old:count] = features[-new:], index[-new:]
        inputs = {
            FEATURES: self._features[:, :count],
            FRAME_INDEX: (self._index[None, :count] % self.positions).astype(np.int32),
            LENGTHS: np.array([count], np.int32),
        }
        logits: Array = self.temporal.run(inputs)[LOGITS][0]
        return logits, count

    def keep(self, track: Track, features: Array, index: Array) -> None:
        """Put new frames into the track's ring."""
        track.ring.put(features, index)
        track.since = (track.since + len(index)) % self.stride
