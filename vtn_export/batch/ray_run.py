"""The same stages on Ray Data: decode tasks, a pool of actors with one session each, rows back to the driver.

The driver alone writes partitions of rows, so no retry can write a row twice. Features are written where they
are computed; a file that no row names (its actor died) is swept by the next --resume.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.backends import Sessions
from vtn_export.batch.decode import DecodePool, Decoder, DecodeSettings, Died, Ended, Failed, Frames
from vtn_export.batch.features import FOLDER, read_features, write_features
from vtn_export.batch.inputs import Listing
from vtn_export.batch.ray_cluster import last_line
from vtn_export.batch.stage import Outcome, Stage, one_line
from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.errors import BackendError
from vtn_export.spec import Array

# names of one Ray dataset: what the driver and the object store hold of the list at a time
SEGMENT = 20_000
# frames of a video that travel through the object store as one row (154 MB at 224 x 224); a longer video is
# decoded by the actor that classifies it, chunk by chunk
MAX_ROW_FRAMES = 1024


_pools: list[tuple[DecodeSettings, Decoder, DecodePool]] = []  # of this Ray worker: one at most


def _pool(settings: DecodeSettings, decoder: Decoder) -> DecodePool:
    """A decode process of this Ray worker's own, kept from task to task.

    Ray Data runs a task whose worker died again for ever: a video that kills its decoder must not kill the worker.
    """
    if not _pools or _pools[0][:2] != (settings, decoder):
        for *_, old in _pools:
            old.close()
        _pools[:] = [(settings, decoder, DecodePool(1, settings, decoder))]
    return _pools[0][2]


class _Decode:
    """A task: names in, for each video one row with its frames, or with none and the error."""

    def __init__(self, decoder: Decoder, settings: DecodeSettings) -> None:
        self.decoder, self.settings = decoder, settings

    def __call__(self, batch: Any) -> Iterator[Any]:
        for name, path in zip(batch["name"].to_pylist(), batch["path"].to_pylist(), strict=True):
            yield _table([self._row(name, os.fsdecode(path))])

    def _row(self, name: str, path: str) -> dict[str, Any]:
        try:
            return self._decoded(name, path)
        except Exception as error:  # memory for a video's frames, say: its row, not its block's
            return {"name": name, "whole": True, "error": f"unexpected {type(error).__name__}: {one_line(error)}"}

    def _decoded(self, name: str, path: str) -> dict[str, Any]:
        row: dict[str, Any] = {"name": name, "path": os.fsencode(path)}
        if self.settings.frames is None or self.settings.frames > MAX_ROW_FRAMES:
            return row | {"whole": False}
        frames: list[Array] = []
        indices: list[Array] = []
        for event in _pool(self.settings, self.decoder).attempts(name, path):
            if isinstance(event, Died):
                frames, indices = [], []
            elif isinstance(event, Frames):
                frames.append(event.frames)
                indices.append(event.frame_index)
            elif isinstance(event, Failed):
                return row | {"whole": True, "error": event.error, "digest": event.content_sha256}
            elif isinstance(event, Ended):
                row |= {"digest": event.content_sha256, "seconds": event.seconds}
        pixels = np.concatenate(frames)
        return row | {
            "whole": True,
            "frames": pixels.tobytes(),
            "shape": list(pixels.shape),
            "frame_index": np.concatenate(indices).tolist(),
        }


class _Classify:
    """An actor: one session; rows of frames in, rows of outcomes out. Backbone batches run across its videos."""

    def __init__(self, bundle: str, options: Any, decoder: Decoder, out: str) -> None:
        self.options, self.decoder, self.out = options, decoder, Path(out)
        self.bundle = Bundle.open(bundle)
        self.settings = DecodeSettings(self.bundle.manifest.preprocessing, options.frames, options.chunk)
        sessions = Sessions(self.bundle, options.backend, checkpoint=options.checkpoint, threads=options.threads)
        self.stage = Stage(sessions, options.mode, options.chunk, options.features)

    def __call__(self, batch: Any) -> Any:
        try:
            return _results(self._classify(batch))
        except Exception as error:  # a full disk, a bug: Ray would drop the block and go on to the next
            return _results([], f"{type(error).__name__}: {one_line(error)}")

    def _classify(self, batch: Any) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for row in batch.to_pylist():
            outcomes += self._archive(row) if self.options.mode == "features" else self._video(row)
        outcomes += self.stage.flush()
        if self.options.features and any(outcome.features is not None for outcome in outcomes):
            fingerprint = self.bundle.manifest.backbone_fingerprint
            name = write_features(self.out, outcomes, fingerprint)
            outcomes = [
                replace(outcome, features=None, features_file=name) if outcome.features is not None else outcome
                for outcome in outcomes
            ]
        return outcomes

    def _video(self, row: dict[str, Any]) -> list[Outcome]:
        name = row["name"]
        if row["error"] is not None:
            return [Outcome(name, row["digest"], error=row["error"])]
        if not row["whole"]:
            return self._stream(name, os.fsdecode(row["path"]))
        frames = np.frombuffer(row["frames"], np.uint8).reshape(row["shape"])
        found = self.stage.feed(name, frames, np.array(row["frame_index"], np.int32))
        return found + self.stage.end(name, row["digest"], row["seconds"])

    def _stream(self, name: str, path: str) -> list[Outcome]:
        found: list[Outcome] = []
        for event in _pool(self.settings, self.decoder).attempts(name, path):
            if isinstance(event, Died):
                self.stage.drop(name)
            elif isinstance(event, Frames):
                found += self.stage.feed(name, event.frames, event.frame_index)
            elif isinstance(event, Ended):
                found += self.stage.end(name, event.content_sha256, event.seconds)
            elif isinstance(event, Failed):
                self.stage.drop(name)
                found.append(Outcome(name, event.content_sha256, error=event.error))
        return found

    def _archive(self, row: dict[str, Any]) -> list[Outcome]:
        wanted = set(row["names"])
        return [
            self.stage.classify(features, digest)
            for features, digest in read_features(Path(os.fsdecode(row["path"])))
            if features.source in wanted
        ]


def classify_on_ray(
    bundle: Bundle, listing: Listing, archive: Path, out: Path, options: Any, decoder: Decoder
) -> Iterator[Outcome]:
    """Outcomes of everything in the listing to do, after `ray_cluster.connect`. Every node has the same paths."""
    ray = require("ray")
    require("ray.data")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # what is lost is missing below, and tried again
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    settings = DecodeSettings(bundle.manifest.preprocessing, options.frames, options.chunk)
    arguments = (str(bundle.path.resolve()), replace(options, ray=None), decoder, str(out.resolve()))
    for segment in _segments(listing, archive, options.mode):
        left = {name for row in segment for name in (row.get("names") or [row["name"]])}
        # A video that kills its worker every time takes its block with it: the second pass gives each a block of its
        # own, so that only that video is lost.
        for blocks, alone in ((min(len(segment), 4 * options.workers), False), (len(segment), True)):
            todo = [row for row in segment if not left.isdisjoint(row.get("names") or [row["name"]])]
            if not todo:
                break
            data = ray.data.from_arrow(_table(todo)).repartition(min(blocks, len(todo)))
            try:
                for table in _stages(data, settings, arguments, alone).iter_batches(
                    batch_size=None, batch_format="pyarrow", prefetch_batches=1
                ):
                    for outcome in _outcomes(table):
                        if outcome.name in left:  # a retry may deliver again what has been delivered
                            left.remove(outcome.name)
                            yield outcome
            except ray.exceptions.RayError as error:
                raise BackendError(f"--ray: the cluster gave up ({last_line(error)}); go on with --resume") from None
        for name in sorted(left):
            text = f"video {' '.join(name.split())}: its worker died every time (killed, or out of memory)"
            yield Outcome(name, error=text)


def _stages(data: Any, settings: DecodeSettings, arguments: tuple[str, Any, Decoder, str], alone: bool) -> Any:
    """Decode tasks, then the actors; Ray holds a stage back while the next is behind.

    alone: no video waits in an actor behind another, whose death would count as its own.
    """
    ray = require("ray")
    options, decoder, videos = arguments[1], arguments[2], 1
    if options.mode != "features":
        # a row is a whole video: few at a time, so that back-pressure acts on megabytes
        videos = 8 if options.frames is not None and options.frames <= MAX_ROW_FRAMES // 8 else 1
        data = data.map_batches(
            _Decode(decoder, settings),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=options.workers),
        )
    return data.map_batches(
        _Classify,
        fn_constructor_args=arguments,
        batch_size=1 if alone else videos,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=options.actors, max_tasks_in_flight_per_actor=1 if alone else None),
        **({"num_gpus": 1} if options.backend == "trt" else {"num_cpus": 1}),
    )


def _segments(listing: Listing, archive: Path, mode: str) -> Iterator[list[dict[str, Any]]]:
    if mode == "features":
        yield from _archive_segments(listing, archive)
        return
    todo = listing.todo()
    while segment := list(islice(todo, SEGMENT)):
        # a decode task may run in another folder
        yield [{"name": name, "path": os.fsencode(Path(path).absolute())} for name, path in segment]


def _archive_segments(listing: Listing, archive: Path) -> Iterator[list[dict[str, Any]]]:
    from vtn_export.batch.results import feature_files

    for file in feature_files(archive):
        path = archive.absolute() / FOLDER / file
        names = [features.source for features, _ in read_features(path) if listing.is_todo(features.source)]
        if names:
            yield [{"path": os.fsencode(path), "names": names}]


def _table(rows: list[dict[str, Any]]) -> Any:
    """Rows of any stage's input as Arrow; what a row lacks is null."""
    arrow = require("pyarrow")
    fields = {
        "name": arrow.string(),
        "path": arrow.binary(),
        "names": arrow.list_(arrow.string()),
        "whole": arrow.bool_(),
        "error": arrow.string(),
        "digest": arrow.string(),
        "seconds": arrow.float64(),
        "frames": arrow.large_binary(),
        "shape": arrow.list_(arrow.int64()),
        "frame_index": arrow.list_(arrow.int32()),
    }
    return arrow.Table.from_pylist(rows, schema=arrow.schema(list(fields.items())))


def _results(outcomes: list[Outcome], fatal: str | None = None) -> Any:
    """Outcomes as Arrow; `fatal`: what no video is to blame for, and the run has to end with."""
    arrow = require("pyarrow")
    stages = ("decode", "backbone", "temporal", "full")
    fields = {
        "name": arrow.string(),
        "digest": arrow.string(),
        "logits": arrow.list_(arrow.float32()),
        "frame_index": arrow.list_(arrow.int32()),
        "features_file": arrow.string(),
        "seconds": arrow.struct([(stage, arrow.float64()) for stage in stages]),
        "error": arrow.string(),
    }
    rows = [
        {
            "name": outcome.name,
            "digest": outcome.content_sha256,
            "logits": None if outcome.logits is None else outcome.logits.tolist(),
            "frame_index": None if outcome.frame_index is None else outcome.frame_index.tolist(),
            "features_file": outcome.features_file,
            "seconds": {stage: outcome.seconds.get(stage) for stage in stages},
            "error": outcome.error,
        }
        for outcome in outcomes
    ]
    if fatal is not None:
        rows.append({"fatal": fatal})
    return arrow.Table.from_pylist(rows, schema=arrow.schema([*fields.items(), ("fatal", arrow.string())]))


def _outcomes(table: Any) -> Iterator[Outcome]:
    """Raises BackendError for a fatal row."""
    for row in table.to_pylist():
        if row["fatal"] is not None:
            raise BackendError(f"--ray: a worker failed ({row['fatal']}); go on with --resume")
        yield Outcome(
            row["name"],
            row["digest"],
            None if row["logits"] is None else np.array(row["logits"], np.float32),
            None if row["frame_index"] is None else np.array(row["frame_index"], np.int32),
            features_file=row["features_file"],
            seconds={stage: value for stage, value in row["seconds"].items() if value is not None},
            error=row["error"],
        )
