"""A batch run on one machine: decode processes feed one session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vtn_export.backends import Backend, Sessions, require_artefacts
from vtn_export.batch.decode import (
    ATTEMPTS,
    STARTS,
    Begun,
    DecodePool,
    Decoder,
    DecodeSettings,
    Died,
    Ended,
    Failed,
    Frames,
    decode_video,
    died_too_often,
    weight,
)
from vtn_export.batch.features import FOLDER, read_features
from vtn_export.batch.inputs import Listing, list_inputs
from vtn_export.batch.results import Record, Writer, feature_files, load_record, open_results, read_column
from vtn_export.batch.stage import PARTS_OF, Mode, Outcome, Stage
from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.errors import OutputError, UsageError


@dataclass(frozen=True)
class BatchOptions:
    """`frames`: of a video, None for all. `chunk`: frames a call of the backbone, over videos. `workers`: decode
    processes (Ray: decode tasks at a time). `ray`: None for this machine alone, `auto`, or a cluster's address."""

    mode: Mode = "chunked"
    backend: Backend = "ort"
    frames: int | None = None
    chunk: int = 16
    workers: int = 1
    threads: int | None = None
    checkpoint: Path | None = None
    features: bool = False
    resume: bool = False
    top: int = 5
    ray: str | None = None
    actors: int = 1
    part_rows: int = 1000
    part_seconds: float = 60.0


@dataclass(frozen=True)
class Summary:
    """`skipped`: rows that were there before. `failed`: rows with an error, of `written`."""

    total: int
    skipped: int
    written: int
    failed: int
    frames: int


@dataclass
class Progress:
    """What a caller may watch: called after every video, and once at the start with the numbers there are."""

    start: Callable[[int, int], None] = lambda total, done: None
    advance: Callable[[Outcome], None] = lambda outcome: None


def run_batch(
    bundle: Bundle,
    inputs: str,
    out: Path,
    options: BatchOptions,
    progress: Progress | None = None,
    decoder: Decoder = decode_video,
) -> Summary:
    """Classify every video of INPUTS into RESULTS. Raises VtnError; a damaged video is a row, not an error."""
    require("pyarrow")
    progress = progress or Progress()
    if options.features and options.mode != "chunked":
        raise UsageError(f"--features: got --mode {options.mode}, expected chunked, which computes them")
    archive, frames = Path(inputs), options.frames
    if options.mode == "features":
        frames = load_record(archive).frames if archive.is_dir() else None  # what its rows looked at
    record = Record.of(bundle, options.mode, frames, options.features)
    require_artefacts(bundle, options.backend, PARTS_OF[options.mode])
    sessions = Sessions(bundle, options.backend, checkpoint=options.checkpoint, threads=options.threads)
    with sessions, Listing() as listing:
        # opened before anything is written; on Ray an engine is the nodes' affair, this machine may have no GPU
        remote = options.ray is not None and options.backend == "trt"
        stage = None if remote else Stage(sessions, options.mode, options.chunk, options.features)
        listing.add(_archived(archive, bundle) if options.mode == "features" else list_inputs(inputs))
        if options.ray is not None:
            from vtn_export.batch.ray_cluster import connect

            connect(options.ray, options.actors)  # before anything is written
        with open_results(out, record, options.resume):
            if options.ray is not None:
                from vtn_export.batch.ray_cluster import require_nodes

                require_nodes(bundle, decoder, out)
            listing.mark_done(read_column(out, "input"))
            writer = Writer(
                out,
                record,
                bundle.labels(),
                options.backend,
                top=options.top,
                rows=options.part_rows,
                seconds=options.part_seconds,
            )
            return _write(_outcomes(bundle, listing, archive, out, stage, options, decoder), writer, listing, progress)


def _write(outcomes: Iterator[Outcome], writer: Writer, listing: Listing, progress: Progress) -> Summary:
    total, done = listing.count()
    progress.start(total, done)
    frames = 0
    try:
        for outcome in outcomes:
            writer.add(outcome)
            frames += 0 if outcome.frame_index is None else len(outcome.frame_index)
            progress.advance(outcome)
        writer.close()
    except KeyboardInterrupt:
        writer.flush()  # finished rows are kept, --resume goes on from them
        raise
    except OutputError as error:
        raise OutputError(f"{error}; finished partitions are kept, go on with --resume") from None
    return Summary(total, done, writer.written, writer.failed, frames)


def _outcomes(
    bundle: Bundle,
    listing: Listing,
    archive: Path,
    out: Path,
    stage: Stage | None,
    options: BatchOptions,
    decoder: Decoder,
) -> Iterator[Outcome]:
    if options.ray is not None:
        from vtn_export.batch.ray_run import classify_on_ray

        yield from classify_on_ray(bundle, listing, archive, out, options, decoder)
        return
    assert stage is not None
    if options.mode == "features":
        yield from _classify_archive(archive, listing, stage)
    else:
        settings = DecodeSettings(bundle.manifest.preprocessing, options.frames, options.chunk)
        with DecodePool(options.workers, settings, decoder) as pool:
            yield from classify_videos(listing.todo(), pool, stage)


def classify_videos(todo: Iterator[tuple[str, str]], pool: DecodePool, stage: Stage) -> Iterator[Outcome]:
    """Outcomes of (name, path) pairs, as they complete."""
    paths: dict[str, str] = {}  # of the videos under way
    deaths: dict[str, int] = {}
    again: list[str] = []
    todo = iter(todo)
    while True:
        while pool.idle:
            if again:
                name = again.pop()
            else:
                item = next(todo, None)
                if item is None:
                    break
                name, paths[item[0]] = item
            pool.give(name, paths[name])
        if not pool.busy:
            break
        for name, event in pool.events():
            if isinstance(event, Frames):
                yield from stage.feed(name, event.frames, event.frame_index)
                continue
            if isinstance(event, Begun):
                continue
            if isinstance(event, Ended):
                yield from stage.end(name, event.content_sha256, event.seconds)
            elif isinstance(event, Failed):
                stage.drop(name)
                yield Outcome(name, event.content_sha256, error=event.error)
            elif isinstance(event, Died):
                stage.drop(name)
                deaths[name] = deaths.get(name, 0) + weight(event)
                if deaths[name] < ATTEMPTS * STARTS:
                    again.append(name)
                    continue
                yield Outcome(name, error=died_too_often(name))
            del paths[name]
            deaths.pop(name, None)
    yield from stage.flush()


def _archived(archive: Path, bundle: Bundle) -> Iterator[str]:
    """Names of the videos whose features an earlier run stored. Raises OutputError, BundleError, UsageError."""
    if not archive.is_dir():
        raise UsageError(f"inputs {archive}: expected the folder of a `vtn-export batch --features` run")
    load_record(archive)
    found = False
    for name in feature_files(archive):
        for features, _ in read_features(archive / FOLDER / name):
            features.require_backbone_of(bundle)
            found = True
            yield features.source
    if not found:
        raise UsageError(f"inputs {archive}: no features in it; make them with `vtn-export batch … --features`")


def _classify_archive(archive: Path, listing: Listing, stage: Stage) -> Iterator[Outcome]:
    for name in feature_files(archive):
        for features, digest in read_features(archive / FOLDER / name):
            if listing.is_todo(features.source):
                yield stage.classify(features, digest)
                listing.mark_done([features.source])  # once, also where two files of the archive have it
