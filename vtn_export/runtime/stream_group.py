"""Several cameras on one pair of sessions: their frames share the backbone's batches, each keeps a ring of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeAlias, TypeVar

import numpy as np

from vtn_export.errors import ShapeError, UsageError, VtnError
from vtn_export.runtime.frame_queue import FrameQueue, Policy
from vtn_export.runtime.frames import Frames
from vtn_export.runtime.one_user import OneUser
from vtn_export.runtime.ring import Track
from vtn_export.runtime.stream import DEFAULT_STRIDE, Core, Counters, Index, Parts, Result, StreamOptions
from vtn_export.spec import Array

Outcome: TypeAlias = list[Result] | VtnError
Name = TypeVar("Name", bound=Hashable)


@dataclass
class _Camera:
    track: Track
    queue: FrameQueue[tuple[Array, Array, float]]
    offered: bool = False
    counters: Counters = field(default_factory=Counters)


@dataclass(frozen=True)
class _Work(Generic[Name]):
    """What one camera brings into a batch: frames of the graph `[n, …]`, indices and arrival of each."""

    name: Name
    camera: _Camera
    frames: Array
    index: Array
    arrived: Sequence[float]


class StreamGroup(OneUser, Generic[Name]):
    """Cameras by name, which come and go. Each gets what a Stream of its own would give it.

    `push` for frames that are there, `offer` from the cameras' threads and `step` from the one that runs the model.
    What goes wrong with one camera is its own outcome: nobody else's result changes or is lost.
    """

    def __init__(
        self,
        parts: Parts,
        window: int = 0,
        stride: int = DEFAULT_STRIDE,
        *,
        queue: int = 0,
        policy: Policy = "drop-oldest",
        deadline: float = 0.0,
        chunk: int = 16,
        preprocessed: bool = False,
    ) -> None:
        """See StreamOptions; `chunk` is the largest batch of the backbone. Raises UsageError."""
        super().__init__(
            busy="stream group: in use by another thread; offer and counters alone may be called meanwhile",
            closed="stream group: it is closed; open another",
        )
        self._core = Core(parts, StreamOptions(window, stride, queue, policy, deadline, chunk, preprocessed))
        self.options = self._core.options
        self._cameras: dict[Name, _Camera] = {}
        self._changed = threading.Condition()

    def __contains__(self, name: object) -> bool:
        return name in self._cameras

    def __len__(self) -> int:
        return len(self._cameras)

    def __iter__(self) -> Iterator[Name]:
        return iter(list(self._cameras))

    def add(self, name: Name) -> None:
        """A camera joins, with an empty ring. Raises UsageError for a name that is there."""
        with self._changed:
            self._require_open()
            if name in self._cameras:
                raise UsageError(f"camera {name!r}: got a name that is there already; remove it first, or reset it")
            queue: FrameQueue[tuple[Array, Array, float]] = FrameQueue(
                self.options.queue, self.options.policy, self._changed
            )
            self._cameras[name] = _Camera(self._core.track(), queue)

    def remove(self, name: Name) -> None:
        """A camera leaves; what waits of it is forgotten. Raises UsageError for an unknown one."""
        with self._changed:
            self._camera(name).queue.end()
            del self._cameras[name]

    def reset(self, name: Name) -> None:
        """A camera starts a new video; its counters go on. Raises UsageError."""
        with self._use(), self._changed:
            camera = self._camera(name)
            camera.queue.clear()
            camera.track.reset()

    def counters(self, name: Name) -> Counters:
        with self._changed:
            camera = self._camera(name)
            return replace(camera.counters, dropped=camera.queue.dropped)

    def window(self, name: Name) -> tuple[Array, Array]:
        """The features float32 `[≤ window, E]` that a camera's ring holds, and their indices. Raises UsageError."""
        with self._use(), self._changed:
            return self._camera(name).track.ring.ordered()

    def push(
        self,
        frames: Mapping[Name, Frames],
        index: Mapping[Name, Index] | None = None,
        *,
        arrived: float | None = None,
    ) -> dict[Name, Outcome]:
        """Take frames of any cameras, any number of each, and return every camera's results, or its error.

        frames, index by camera: as Stream.push takes them. Raises UsageError only for a group that is closed or in use.
        """
        came = time.perf_counter() if arrived is None else arrived
        outcomes: dict[Name, Outcome] = {}
        work: list[_Work[Name]] = []
        with self._use():
            for name, given in frames.items():
                try:
                    camera = self._camera(name)
                    if camera.offered:
                        raise UsageError("push: this camera has a queue in use; offer its frames, or remove it first")
                    checked = self._core.frames.checked(given)
                    places = camera.track.checked(len(checked), (index or {}).get(name))
                    outcomes[name] = []
                    if len(checked):
                        ready = self._core.frames.ready(checked)
                        camera.track.newest = int(places[-1])
                        work.append(_Work(name, camera, ready, places, [came] * len(places)))
                except VtnError as error:
                    outcomes[name] = error
            self._run(work, outcomes)
        return outcomes

    def offer(self, name: Name, frame: Frames, index: int | None = None) -> bool:
        """Put one frame of a camera into its queue; for the camera's own thread.

        False: this frame was dropped, or the camera is gone. Its index counts as seen. Raises UsageError, ShapeError.
        """
        came = time.perf_counter()
        checked = self._core.frames.checked(frame)
        if len(checked) != 1:
            raise ShapeError(f"offer: got {len(checked)} frames, expected one")
        with self._changed:
            camera = self._camera(name)
            place = camera.track.checked(1, index)
            camera.track.newest, camera.offered = int(place[0]), True
        if camera.queue.refuses():
            return False
        ready = self._core.frames.ready(checked)
        return camera.queue.put((ready.copy() if self.options.preprocessed else ready, place, came))

    def step(self, timeout: float = 0.0) -> dict[Name, Outcome]:
        """Take up to `chunk` of the frames that wait, one of each camera in turn, and return what came of them.

        Waits up to `timeout` seconds for a first one; an empty dictionary: none came. Raises UsageError.
        """
        if not timeout >= 0:
            raise UsageError("timeout: expected seconds, 0 or more")
        with self._use():
            with self._changed:
                self._changed.wait_for(lambda: self._closed or any(map(_waits, self._cameras.values())), timeout)
                taken = self._waiting()
            outcomes: dict[Name, Outcome] = {name: [] for name in taken}
            work = [
                _Work(
                    name,
                    camera,
                    np.concatenate([frame for frame, _, _ in items]),
                    np.concatenate([place for _, place, _ in items]),
                    [came for _, _, came in items],
                )
                for name, (camera, items) in taken.items()
            ]
            self._run(work, outcomes)
        return outcomes

    def _waiting(self) -> dict[Name, tuple[_Camera, list[tuple[Array, Array, float]]]]:
        """One frame of each camera in turn until a batch is full; whoever was left out comes first the next time."""
        taken: dict[Name, tuple[_Camera, list[tuple[Array, Array, float]]]] = {}
        room = self.options.chunk
        while room and (names := [name for name, camera in self._cameras.items() if _waits(camera)]):
            for name in names[:room]:
                camera = self._cameras[name]
                item = camera.queue.get(0)
                if item is not None:
                    taken.setdefault(name, (camera, []))[1].append(item)
                    self._cameras[name] = self._cameras.pop(name)  # to the end of the line
                    room -= 1
        return taken

    def _run(self, work: Sequence[_Work[Name]], outcomes: dict[Name, Outcome]) -> None:
        if not work:
            return
        parts: list[Array | None]
        try:
            features = self._core.features(np.concatenate([item.frames for item in work]))
            parts = list(np.split(features, np.cumsum([len(item.frames) for item in work])[:-1]))
        except VtnError:
            parts = [None] * len(work)  # whose fault it was shows when each runs alone
        for item, part in zip(work, parts, strict=True):
            try:
                own = self._core.features(item.frames) if part is None else part
                results = self._core.take(item.camera.track, own, item.index, item.arrived)
            except VtnError as error:
                outcomes[item.name] = error
                continue
            with self._changed:
                item.camera.counters = self._core.counted(item.camera.counters, len(item.index), results)
            outcomes[item.name] = results

    def _camera(self, name: Name) -> _Camera:
        if name not in self._cameras:
            raise UsageError(f"camera {name!r}: got a name that was not added, expected one of {list(self)}")
        return self._cameras[name]

    def close(self) -> None:
        """Let every camera go; the group cannot be used afterwards."""
        with self._changed:
            self._closed = True
            for name in self:
                self.remove(name)
            self._changed.notify_all()


def _waits(camera: _Camera) -> bool:
    return len(camera.queue) > 0
