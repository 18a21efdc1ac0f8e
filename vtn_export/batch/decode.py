"""Decode processes: videos in, preprocessed frames out; a process that dies costs one video another try."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vtn_export.errors import BackendError, VtnError
from vtn_export.spec import Array, Preprocessing
from vtn_export.untrusted import sha256
from vtn_export.video import ClipReader

# enough that a bad hour of the machine loses nothing, few enough that a video that kills its reader ends
ATTEMPTS = 5
STARTS = 50  # of processes that died before they opened the video: nothing of the video's, but it must end too


@dataclass(frozen=True)
class DecodeSettings:
    """`frames`: how many of a video, None for all. `chunk`: frames a message."""

    preprocessing: Preprocessing
    frames: int | None
    chunk: int


@dataclass(frozen=True)
class Frames:
    """frames uint8 `[n, H, W, 3]`, frame_index int32 `[n]`."""

    frames: Array
    frame_index: Array


@dataclass(frozen=True)
class Ended:
    content_sha256: str | None
    seconds: float  # spent decoding, not waiting for the model


@dataclass(frozen=True)
class Failed:
    error: str
    content_sha256: str | None = None


@dataclass(frozen=True)
class Begun:
    """The process has taken the video up."""


@dataclass(frozen=True)
class Died:
    """The process went away, in the middle of the video or before it had begun."""

    begun: bool


def weight(death: Died) -> int:
    """In parts of ATTEMPTS · STARTS, the most there may be of one video."""
    return STARTS if death.begun else ATTEMPTS


def died_too_often(name: str) -> str:
    return f"video {' '.join(name.split())}: its decoder died {ATTEMPTS} times (killed, or out of memory)"


Event = Begun | Frames | Ended | Failed | Died
Decoder = Callable[[str, DecodeSettings], Iterator[Event]]


def decode_video(path: str, settings: DecodeSettings) -> Iterator[Event]:
    """The frames of one video, then `Ended`; or `Failed`, at any point."""
    digest, spent, mark = None, 0.0, time.perf_counter()
    try:
        with ClipReader(path, settings.preprocessing, settings.frames, chunk=settings.chunk) as reader:
            digest = sha256(Path(path))
            for frames, frame_index in reader:
                spent += time.perf_counter() - mark
                yield Frames(frames, frame_index)
                mark = time.perf_counter()
        yield Ended(digest, spent + time.perf_counter() - mark)
    except VtnError as error:
        yield Failed(" ".join(str(error).split()), digest or _digest(path))
    except Exception as error:  # a bug met by one video of a million: a row that says so, not the end of the run
        yield Failed(f"unexpected {type(error).__name__}: {' '.join(str(error).split())}", digest or _digest(path))


def _digest(path: str) -> str | None:
    try:
        return sha256(Path(path))
    except (OSError, ValueError):
        return None


def _work(pipe: Connection, decoder: Decoder, settings: DecodeSettings) -> None:
    """The life of a process. A pipe of its own: one that is killed cannot hold a lock others wait for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    try:
        while (path := pipe.recv()) is not None:
            pipe.send(Begun())
            for event in decoder(path, settings):
                pipe.send(event)  # blocks while the model is behind: that is what bounds memory
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has gone


class DecodePool:
    """Processes that decode one video each at a time.

    `give` a (name, path) while `idle`; `events` waits and returns what came, with the name it belongs to. A
    process that dies is replaced and its video reported as `Died`.
    """

    def __init__(self, workers: int, settings: DecodeSettings, decoder: Decoder = decode_video) -> None:
        self._context: Any = get_context("spawn")  # fork would copy the threads' locks of ONNX Runtime
        self._settings, self._decoder = settings, decoder
        self._stillborn = 0  # processes in a row that died before they began anything
        self._slots: list[_Slot] = [self._start() for _ in range(workers)]

    def _start(self) -> _Slot:
        ours, theirs = self._context.Pipe()
        arguments = (theirs, self._decoder, self._settings)
        process = self._context.Process(target=_work, args=arguments, daemon=True, name="vtn-export-decode")
        process.start()
        theirs.close()  # so that its end is seen when the process is gone
        return _Slot(process, ours)

    @property
    def idle(self) -> bool:
        return any(slot.name is None for slot in self._slots)

    @property
    def busy(self) -> bool:
        return any(slot.name is not None for slot in self._slots)

    @property
    def pids(self) -> list[int]:
        return [slot.process.pid for slot in self._slots]

    def give(self, name: str, path: str) -> None:
        for number, slot in enumerate(self._slots):
            if slot.name is None:
                try:
                    slot.pipe.send(path)
                except OSError:  # died while idle: nothing was lost
                    slot.close()
                    slot = self._slots[number] = self._start()
                    slot.pipe.send(path)
                slot.name = name
                return
        raise RuntimeError("no idle worker")

    def events(self) -> list[tuple[str, Event]]:
        """At least one event. Call only while `busy`."""
        waiting = {slot.pipe: number for number, slot in enumerate(self._slots) if slot.name is not None}
        found: list[tuple[str, Event]] = []
        for pipe in connection.wait(list(waiting)):
            number = waiting[pipe]  # type: ignore[index]
            slot = self._slots[number]
            assert slot.name is not None
            name = slot.name
            try:
                event = slot.pipe.recv()
            except Exception:  # the end of the pipe, or half a message: whatever it is, the process is no use
                slot.close()
                self._stillborn += not slot.begun
                if self._stillborn > STARTS:
                    raise BackendError(
                        f"decoding: {self._stillborn} processes in a row ended before they began; is the program that "
                        "calls run_batch guarded by `if __name__ == '__main__':`?"
                    ) from None
                self._slots[number], event = self._start(), Died(slot.begun)
            else:
                self._stillborn = 0
            slot.begun = isinstance(event, (Begun, Frames))
            if isinstance(event, (Ended, Failed)):
                slot.name = None
            found.append((name, event))
        return found

    def attempts(self, name: str, path: str) -> Iterator[Event]:
        """One video on an idle pool. After `Died` it comes anew; a video whose decoder died too often ends `Failed`."""
        deaths = 0
        self.give(name, path)
        while True:
            for _, event in self.events():
                if isinstance(event, Died):
                    deaths += weight(event)
                    if deaths >= ATTEMPTS * STARTS:
                        yield Failed(died_too_often(name))
                        return
                    self.give(name, path)
                yield event
                if isinstance(event, (Ended, Failed)):
                    return

    def close(self) -> None:
        for slot in self._slots:
            slot.close()

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Slot:
    process: Any
    pipe: Connection
    name: str | None = None
    begun: bool = False

    def close(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
