"""`stream`: one camera a sequence of Triton; every `stride` frames the last `window` of them are classified.

State is kept by correlation id, in this process: a camera's requests all come to the instance that saw its first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vtn_export.backends import Sessions
from vtn_export.errors import ShapeError, VtnError
from vtn_export.runtime.stream import DEFAULT_STRIDE
from vtn_export.runtime.stream_group import Outcome, StreamGroup
from vtn_export.serve.config import LAST_FRAME_INDEX
from vtn_export.spec import FRAMES, LOGITS, Array, check_inputs

if TYPE_CHECKING:
    from vtn_export.serve.endpoint import Answer, Request


@dataclass
class _Camera:
    group: StreamGroup[int]
    name: int
    used: float

    @property
    def features(self) -> Array:
        """`[≤ window, E]` of the last frames."""
        return self.group.window(self.name)[0]


class Cameras:
    """Any number of cameras on one pair of sessions. Frames of all cameras in a call share backbone batches.

    A request's frames `[1, n, …]` give 0 or more results: logits `[1, results, classes]` and the index of the last
    frame each of them saw `[1, results]`. END forgets the camera after its answer; so does `idle_seconds` without a
    request, as Triton then gives its slot to another and says nothing.
    """

    def __init__(
        self, sessions: Sessions, parameters: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.sessions, self.backbone = sessions, sessions["backbone"]
        self.group: StreamGroup[int] = StreamGroup(
            sessions,
            int(parameters["window"]),
            int(parameters["stride"]) or DEFAULT_STRIDE,
            chunk=int(parameters["chunk"]),
            preprocessed=True,
        )
        self.max_frames = int(parameters["max_frames"])
        self.idle_seconds = float(parameters["idle_seconds"])
        self.classes = int(sessions["temporal"].spec.outputs[0].shape[-1])
        self.cameras: dict[int, _Camera] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # memory is given back also where no camera asks any more
        threading.Thread(target=self._sweep_now_and_then, name="vtn-export-cameras", daemon=True).start()

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        with self._lock:
            self.sweep()
            answers: list[Answer] = []
            together: list[Request] = []
            for request in requests:
                if any(request.controls["CORRID"] == other.controls["CORRID"] for other in together):
                    answers += self._answers(together)  # one camera's requests, one after the other
                    together = []
                together.append(request)
            return answers + self._answers(together)

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Of requests of different cameras."""
        now = self._clock()
        frames: dict[int, Array] = {}
        outcomes: dict[int, Outcome] = {}
        for request in requests:
            name = request.controls["CORRID"]
            try:
                frames[name] = self._frames(request, now)
            except VtnError as error:
                outcomes[name] = error
        outcomes |= self.group.push(frames)
        for request in requests:
            if request.controls["END"]:
                self._forget(request.controls["CORRID"])
        return [self._answer(outcomes[request.controls["CORRID"]]) for request in requests]

    def _frames(self, request: Request, now: float) -> Array:
        """A request's frames `[n, …]`; its camera joins, or is known. Raises ShapeError."""
        name, frames = request.controls["CORRID"], request.tensors[FRAMES]
        if request.controls["START"]:
            self._forget(name)
            self.group.add(name)
            self.cameras[name] = _Camera(self.group, name, now)
        if name not in self.cameras:
            raise ShapeError(
                f"sequence {name}: not started, or idle for over {self.idle_seconds:.0f} s; start it again"
            )
        self.cameras[name].used = now
        if frames.ndim < 3 or frames.shape[0] != 1 or frames.shape[1] < 1:
            raise ShapeError(f"frames: got shape {frames.shape}, expected (1, frames ≥ 1, …): one camera a sequence")
        if frames.shape[1] > self.max_frames:
            raise ShapeError(f"frames: got {frames.shape[1]}, expected at most {self.max_frames} a request")
        check_inputs(self.backbone.spec, {FRAMES: frames[0]})  # before the batch is made
        own: Array = frames[0]
        return own

    def _answer(self, outcome: Outcome) -> Answer:
        if isinstance(outcome, VtnError):
            return str(outcome)
        count = len(outcome)
        rows = np.array([result.logits for result in outcome], np.float32).reshape(1, count, self.classes)
        last = np.array([result.frame_index for result in outcome], np.int32).reshape(1, count)
        return {LOGITS: rows, LAST_FRAME_INDEX: last}

    def _forget(self, name: int) -> None:
        if self.cameras.pop(name, None) is not None:
            self.group.remove(name)

    def sweep(self) -> None:
        """Forget the cameras that were silent for too long."""
        now = self._clock()
        for name in [name for name, camera in self.cameras.items() if now - camera.used > self.idle_seconds]:
            self._forget(name)

    def _sweep_now_and_then(self) -> None:
        while not self._closed.wait(min(self.idle_seconds, 10.0)):
            with self._lock:
                self.sweep()

    def close(self) -> None:
        self._closed.set()
        self.cameras.clear()
        self.group.close()
        self.sessions.close()
