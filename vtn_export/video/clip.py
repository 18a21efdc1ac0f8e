"""A video as preprocessed chunks, decoded in a background thread while the model runs."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Literal

import numpy as np
import numpy.typing as npt

from vtn_export.errors import UsageError
from vtn_export.spec import Preprocessing
from vtn_export.video.decode import VideoInfo, count_frames, count_packets, decode, probe
from vtn_export.video.preprocess import Preprocessor
from vtn_export.video.sample import sample_indices

Chunk = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]
# what the thread hands over: a chunk, an error to raise, or None at the end
_Queue = queue.Queue[Chunk | BaseException | None]


class ClipReader:
    """Chunks of the frames that a model sees, in order, from a video file.

    Iterating yields `(frames uint8 [n, crop, crop, 3], frame_index int32 [n])` with n = `chunk`,
    except for the last, shorter chunk. Every iteration decodes anew, in a thread of its own that is
    at most `prefetch` chunks ahead and is gone when the iteration ends, however it ends: at the last
    chunk, by an error (raised here, not in the thread), `break`, Ctrl-C, or `close()`.

    `info`: what the file says. `num_video_frames`: frames in the video, None where only decoding can
    tell and every frame is read (known after the first full iteration). `num_frames`: frames that an
    iteration yields, or None likewise. `frame_index`: int32 `[num_frames]`, or None likewise.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        preprocessing: Preprocessing,
        num_frames: int | Literal["published"] | None = "published",
        *,
        chunk: int = 16,
        prefetch: int = 2,
        counting: Callable[[int], None] | None = None,
    ) -> None:
        """Open the video, count its frames, choose the ones to read.

        num_frames: how many, spread evenly over the video (repeated where it is shorter); None is
        every frame; "published" is `preprocessing.num_frames`. counting: called with the frames
        counted so far where they must be counted by decoding. Raises VideoError, UsageError.
        """
        if chunk < 1 or prefetch < 1:
            raise UsageError(f"chunk {chunk}, prefetch {prefetch}: expected at least 1")
        wanted = preprocessing.num_frames if num_frames == "published" else num_frames
        if wanted is not None and wanted < 1:
            raise UsageError(f"num_frames: got {wanted}, expected at least 1, or None for every frame")
        self.path, self.preprocessing, self.chunk, self.prefetch = path, preprocessing, chunk, prefetch
        self._preprocessor = Preprocessor(preprocessing)
        self._running: list[_Run] = []
        self.info: VideoInfo = probe(path)
        self.num_video_frames = count_packets(path) if wanted is None else count_frames(path, counting)
        self.frame_index: npt.NDArray[np.int32] | None = None
        self._all = wanted is None
        if self.num_video_frames is not None:
            number = self.num_video_frames
            self.frame_index = np.arange(number, dtype=np.int32) if wanted is None else sample_indices(number, wanted)

    @property
    def num_frames(self) -> int | None:
        return None if self.frame_index is None else len(self.frame_index)

    def __iter__(self) -> Iterator[Chunk]:
        run = _Run(self)
        self._running.append(run)  # before its thread starts, so that no `close` can miss it
        total = 0
        try:
            run.thread.start()
            while (chunk := run.next()) is not None:
                total += len(chunk[1])
                yield chunk
            if self._all and not run.stopped.is_set():
                self.num_video_frames = total
                self.frame_index = np.arange(total, dtype=np.int32)
        finally:
            run.stop()
            self._running.remove(run)

    def close(self) -> None:
        """Stop every iteration that is still open; it ends as if the video did."""
        for run in list(self._running):
            run.stop()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Run:
    """One pass over the video: the thread, its queue and the signal to stop."""

    def __init__(self, reader: ClipReader) -> None:
        self.reader = reader
        self.stopped = threading.Event()
        self.queue: _Queue = queue.Queue(reader.prefetch)
        # daemon: a main thread that dies without closing us must not hang at exit
        self.thread = threading.Thread(target=self._work, name="vtn-export-decode", daemon=True)

    def next(self) -> Chunk | None:
        """The next chunk, None at the end. Raises what the thread ran into."""
        item = None if self.stopped.is_set() else self.queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def stop(self) -> None:
        """Make the thread end, and wait for it: at most one packet's decoding or one frame's work."""
        self.stopped.set()
        self._drain()  # the thread puts at most one item more, and now finds room for it
        if self.thread.ident is not None:  # not started yet: it will see the signal
            self.thread.join()
        self._drain()
        with suppress(queue.Full):  # another thread's `stop` was faster
            self.queue.put_nowait(None)  # whoever still waits for a chunk gets the end

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self.queue.get_nowait()

    def _work(self) -> None:
        result: BaseException | None = None
        try:
            for chunk in self._chunks():
                if self.stopped.is_set():
                    return
                self.queue.put(chunk)
        except BaseException as error:  # not swallowed: `next` raises it in the consumer
            result = error
        if not self.stopped.is_set():
            self.queue.put(result)

    def _chunks(self) -> Iterator[Chunk]:
        reader, stopped = self.reader, self.stopped.is_set
        crop, preprocess = reader.preprocessing.crop_size, reader._preprocessor
        frames = np.empty((reader.chunk, crop, crop, 3), np.uint8)
        index = np.empty(reader.chunk, np.int32)
        filled, last = 0, None
        for number, image in decode(reader.path, reader.frame_index, cancelled=stopped):
            # a repeated frame is the same array again
            frames[filled] = frames[filled - 1] if image is last and filled else preprocess(image)
            index[filled], last, filled = number, image, filled + 1
            if filled == reader.chunk:
                yield frames, index
                frames, index, filled = np.empty_like(frames), np.empty_like(index), 0
        if filled and not stopped():
            yield frames[:filled], index[:filled]
