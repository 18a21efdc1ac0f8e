"""`stream`: one camera a sequence of Triton; every `stride` frames the last `window` of them are classified.

State is kept by correlation id, in this process: a camera's requests all come to the instance that saw its first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from vtn_export.backends import Sessions
from vtn_export.errors import ShapeError, VtnError
from vtn_export.serve.config import LAST_FRAME_INDEX
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, check_inputs

if TYPE_CHECKING:
    from vtn_export.serve.endpoint import Answer, Request


@dataclass
class _Camera:
    """features `[≤ window, E]` of the last frames; `seen`: frames since the start, the next one's index."""

    features: list[Array] = field(default_factory=list)
    seen: int = 0
    used: float = 0.0


class Cameras:
    """Any number of cameras on one pair of sessions. Frames of all cameras in a call share backbone batches.

    A request's frames `[1, n, …]` give 0 or more results: logits `[1, results, classes]` and the index of the last
    frame each of them saw `[1, results]`. END forgets the camera after its answer; so does `idle_seconds` without a
    request, as Triton then gives its slot to another and says nothing.
    """

    def __init__(
        self, sessions: Sessions, parameters: Mapping[str, str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        manifest = sessions.bundle.manifest
        self.sessions, self.backbone, self.temporal = sessions, sessions["backbone"], sessions["temporal"]
        self.window = int(parameters["window"]) or manifest.preprocessing.num_frames
        self.stride = int(parameters["stride"]) or 8
        self.chunk, self.max_frames = int(parameters["chunk"]), int(parameters["max_frames"])
        self.idle_seconds = float(parameters["idle_seconds"])
        self.classes = self.temporal.spec.outputs[0].shape[-1]
        self.cameras: dict[int, _Camera] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # memory is given back also where no camera asks any more
        threading.Thread(target=self._sweep_now_and_then, name="vtn-export-cameras", daemon=True).start()

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        with self._lock:
            self.sweep()
            return [self._answer(request, self._clock()) for request in requests]

    def sweep(self) -> None:
        """Forget the cameras that were silent for too long."""
        now = self._clock()
        for name in [name for name, camera in self.cameras.items() if now - camera.used > self.idle_seconds]:
            del self.cameras[name]

    def _sweep_now_and_then(self) -> None:
        while not self._closed.wait(min(self.idle_seconds, 10.0)):
            with self._lock:
                self.sweep()

    def _answer(self, request: Request, now: float) -> Answer:
        name, controls = request.controls["CORRID"], request.controls
        if controls["START"]:
            self.cameras[name] = _Camera()
        try:
            camera = self.cameras.get(name)
            if camera is None:
                raise ShapeError(
                    f"sequence {name}: not started, or idle for over {self.idle_seconds:.0f} s; start it again"
                )
            camera.used = now
            frames = request.tensors[FRAMES]
            self._check(frames)
            return self._push(camera, frames[0])
        except VtnError as error:
            return str(error)
        finally:
            if controls["END"]:
                self.cameras.pop(name, None)

    def _check(self, frames: Array) -> None:
        if frames.ndim < 3 or frames.shape[0] != 1 or frames.shape[1] < 1:
            raise ShapeError(f"frames: got shape {frames.shape}, expected (1, frames ≥ 1, …): one camera a sequence")
        if frames.shape[1] > self.max_frames:
            raise ShapeError(f"frames: got {frames.shape[1]}, expected at most {self.max_frames} a request")
        check_inputs(self.backbone.spec, {FRAMES: frames[0]})

    def _push(self, camera: _Camera, frames: Array) -> Answer:
        """Take the frames; none of them if the backbone fails."""
        found = [
            self.backbone.run({FRAMES: frames[at : at + self.chunk]})[FEATURES]
            for at in range(0, len(frames), self.chunk)
        ]
        logits, last = [], []
        for feature in np.concatenate(found):
            camera.features.append(feature)
            camera.seen += 1
            del camera.features[: -self.window]
            if camera.seen % self.stride == 0:
                logits.append(self._classify(camera))
                last.append(camera.seen - 1)
        rows = np.array(logits, np.float32).reshape(1, len(last), int(self.classes))
        return {LOGITS: rows, LAST_FRAME_INDEX: np.array([last], np.int32).reshape(1, len(last))}

    def _classify(self, camera: _Camera) -> Array:
        count = len(camera.features)
        index = np.arange(camera.seen - count, camera.seen, dtype=np.int32)
        inputs = {
            FEATURES: np.stack(camera.features)[None],
            FRAME_INDEX: index[None],
            LENGTHS: np.array([count], dtype=np.int32),
        }
        logits: Array = self.temporal.run(inputs)[LOGITS][0]
        return logits

    def close(self) -> None:
        self._closed.set()
        self.cameras.clear()
        self.sessions.close()
