"""What a served model does with requests: numpy in, numpy out, one line for a request that cannot be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from vtn_export.backends import Backend, Sessions
from vtn_export.bundle import Bundle
from vtn_export.errors import ShapeError, VtnError
from vtn_export.serve.config import WARMUP_FRAMES
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, Part, check_inputs

Answer = dict[str, Array] | str  # outputs by name, or the error


@dataclass(frozen=True)
class Request:
    """Tensors by name, with their batch axis; sequence controls by name, for streams."""

    tensors: Mapping[str, Array]
    controls: Mapping[str, int] = field(default_factory=dict)


class Endpoint(Protocol):
    """One served model."""

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer each, in order; one that cannot be answered spoils none of the others."""

    def close(self) -> None:
        """Free the sessions."""


def make_endpoint(folder: Path, parameters: Mapping[str, str]) -> Endpoint:
    """The endpoint that config.pbtxt's parameters describe. Raises VtnError."""
    bundle = Bundle.open(folder)
    sessions = Sessions(bundle, cast(Backend, parameters["backend"]), threads=int(parameters["threads"]) or None)
    role = parameters["role"]
    if role == "stream":
        from vtn_export.serve.cameras import Cameras

        _warm_up(sessions)
        return Cameras(sessions, parameters)
    if role == "backbone":
        return BackboneEndpoint(sessions, int(parameters["max_frames"]), int(parameters["chunk"]))
    return ClipEndpoint(sessions, cast(Part, role), int(parameters["max_frames"]))


def _warm_up(sessions: Sessions) -> None:
    """What config.pbtxt's model_warmup does for the other forms; its requests belong to no camera."""
    pixels = sessions["backbone"].spec.inputs[0]
    shape = [WARMUP_FRAMES, *(int(axis) for axis in pixels.shape[1:])]
    features = sessions["backbone"].run({FRAMES: np.zeros(shape, pixels.dtype)})[FEATURES]
    index = np.arange(WARMUP_FRAMES, dtype=np.int32)[None]
    sessions["temporal"].run(
        {FEATURES: features[None], FRAME_INDEX: index, LENGTHS: np.array([WARMUP_FRAMES], np.int32)}
    )


class ClipEndpoint:
    """`full` and `temporal`: clips of any length. Requests of one length run together."""

    def __init__(self, sessions: Sessions, part: Part, max_frames: int) -> None:
        self.sessions, self.session, self.max_frames = sessions, sessions[part], max_frames
        self.data = self.session.spec.inputs[0].name

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = [""] * len(requests)
        groups: dict[int, list[tuple[int, dict[str, Array]]]] = {}
        for number, request in enumerate(requests):
            try:
                inputs = self._inputs(request.tensors)
            except VtnError as error:
                answers[number] = str(error)
            else:
                groups.setdefault(inputs[self.data].shape[1], []).append((number, inputs))
        for frames, members in groups.items():
            for batch in _batches(members, self.data, max(1, self.max_frames // frames)):
                self._run(batch, answers)
        return answers

    def _inputs(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """A request's tensors in the graph's shapes; positions and lengths that were left out filled in."""
        data = tensors[self.data]
        if data.ndim < 2 or min(data.shape[:2]) < 1:
            raise ShapeError(f"{self.data}: got shape {data.shape}, expected at least one clip of one frame")
        clips, frames = data.shape[:2]
        if clips * frames > self.max_frames:
            raise ShapeError(f"{self.data}: got {clips * frames} frames, expected at most {self.max_frames} a request")
        positions = tensors.get(FRAME_INDEX)
        lengths = tensors.get(LENGTHS)
        inputs = {
            self.data: data,
            FRAME_INDEX: np.tile(np.arange(frames, dtype=np.int32), (clips, 1)) if positions is None else positions,
            LENGTHS: np.full(clips, frames, np.int32) if lengths is None else lengths.reshape(-1),
        }
        check_inputs(self.session.spec, inputs)
        return inputs

    def _run(self, members: list[tuple[int, dict[str, Array]]], answers: list[Answer]) -> None:
        names = members[0][1]
        try:
            logits = self.session.run({name: _joined([inputs[name] for _, inputs in members]) for name in names})[
                LOGITS
            ]
        except VtnError as error:
            for number, _ in members:
                answers[number] = str(error)
            return
        at = 0
        for number, inputs in members:
            clips = len(inputs[LENGTHS])
            answers[number] = {LOGITS: np.ascontiguousarray(logits[at : at + clips])}
            at += clips

    def close(self) -> None:
        self.sessions.close()


class BackboneEndpoint:
    """An ensemble's first half: frames `[B, T, …]` to features `[B, T, E]`, `chunk` frames a call, over requests."""

    def __init__(self, sessions: Sessions, max_frames: int, chunk: int) -> None:
        self.sessions, self.session, self.max_frames, self.chunk = sessions, sessions["backbone"], max_frames, chunk

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        answers: list[Answer] = [""] * len(requests)
        good: list[tuple[int, Array]] = []
        for number, request in enumerate(requests):
            frames = request.tensors[FRAMES]
            try:
                self._check(frames)
            except VtnError as error:
                answers[number] = str(error)
            else:
                good.append((number, frames))
        if not good:
            return answers
        try:
            features = self._features(_joined([frames.reshape(-1, *frames.shape[2:]) for _, frames in good]))
        except VtnError as error:
            for number, _ in good:
                answers[number] = str(error)
            return answers
        at = 0
        for number, frames in good:
            count = frames.shape[0] * frames.shape[1]
            answers[number] = {FEATURES: features[at : at + count].reshape(*frames.shape[:2], -1)}
            at += count
        return answers

    def _features(self, frames: Array) -> Array:
        starts = range(0, len(frames), self.chunk)
        return _joined([self.session.run({FRAMES: frames[at : at + self.chunk]})[FEATURES] for at in starts])

    def _check(self, frames: Array) -> None:
        if frames.ndim < 3 or min(frames.shape[:2]) < 1:
            raise ShapeError(f"frames: got shape {frames.shape}, expected at least one clip of one frame")
        count = frames.shape[0] * frames.shape[1]
        if count > self.max_frames:
            raise ShapeError(f"frames: got {count} frames, expected at most {self.max_frames} a request")
        check_inputs(self.session.spec, {FRAMES: frames.reshape(-1, *frames.shape[2:])})

    def close(self) -> None:
        self.sessions.close()


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _batches(members: list[tuple[int, dict[str, Array]]], data: str, clips: int) -> list[list[tuple[int, Any]]]:
    """Members in order, at most `clips` clips together (one member alone may have no more)."""
    batches: list[list[tuple[int, Any]]] = []
    room = 0
    for member in members:
        count = len(member[1][data])
        if not batches or count > room:
            batches.append([])
            room = clips
        batches[-1].append(member)
        room -= count
    return batches
