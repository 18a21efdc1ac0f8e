"""Batch classification on one machine: the numbers of `run`, whatever the order, the list and the batch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.batch.clips import Rows, other_bundle, read, same
from tests.clihelp import Cli
from vtn_export import errors
from vtn_export.batch.features import FOLDER, read_features
from vtn_export.batch.inputs import list_inputs
from vtn_export.batch.results import PARTS, RECORD, Record
from vtn_export.batch.run import BatchOptions, Progress, run_batch
from vtn_export.batch.stage import Outcome
from vtn_export.bundle import Bundle
from vtn_export.untrusted import sha256


def test_rows_are_those_of_run(cli: Cli, bundle: Bundle, uninterrupted: Rows) -> None:
    good = [name for name, row in uninterrupted.items() if row["error"] is None]
    assert len(good) >= 25
    for name in good[::6]:
        single = cli("run", bundle.path, name, "--json").json
        row = uninterrupted[name]
        assert np.abs(np.array(single["logits"]) - row["logits"]).max() <= 1e-5
        assert [entry["label"] for entry in single["top"]] == row["top_label"]
        assert np.allclose([e["probability"] for e in single["top"]], row["top_probability"], atol=1e-6)
        assert (single["frames"], single["frame_index"]["last"]) == (row["frames"], row["last_frame_index"])
        assert row["content_sha256"] == sha256(Path(name))


def test_damaged_videos_are_rows_with_their_error(cli: Cli, bundle: Bundle, uninterrupted: Rows) -> None:
    damaged = {name: row for name, row in uninterrupted.items() if row["error"]}
    assert len(damaged) == 3
    for name, row in damaged.items():
        assert row["error"] in cli("run", bundle.path, name).err.replace("\n", " ")
        assert row["logits"] is None and row["top_label"] is None and len(row["content_sha256"]) == 64


@pytest.mark.parametrize(("mode", "chunk", "workers"), [("chunked", 1, 3), ("chunked", 53, 2), ("full", 7, 2)])
def test_any_batch_and_mode(
    bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path, mode: str, chunk: int, workers: int
) -> None:
    options = BatchOptions(mode=mode, frames=24, chunk=chunk, workers=workers, part_rows=5)  # type: ignore[arg-type]
    summary = run_batch(bundle, str(archive), tmp_path / "out", options)
    assert (summary.total, summary.written, summary.failed, summary.frames) == (31, 31, 3, 28 * 24)
    assert len(list((tmp_path / "out").glob(PARTS))) == 7
    same(read(tmp_path / "out"), uninterrupted)


def test_every_frame(cli: Cli, bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    result = cli("batch", bundle.path, archive / "0", "--out", tmp_path / "out", "--frames", "all", "--json")
    assert result.code == 0 and result.json["failed"] == 3
    rows = read(tmp_path / "out")
    assert {row["frames"] for row in rows.values()} > {1, 3, 7, 23, None}
    name = next(name for name, row in rows.items() if row["frames"] == 23)
    single = cli("run", bundle.path, name, "--frames", "all", "--json").json
    assert np.abs(np.array(single["logits"]) - rows[name]["logits"]).max() <= 1e-5


def test_features_of_an_archive_are_classified_again(
    cli: Cli, bundle: Bundle, uninterrupted: Rows, batch_folder: Path, tmp_path: Path
) -> None:
    source = batch_folder / "uninterrupted"
    (path,) = (source / FOLDER).glob(PARTS)
    field = pq.ParquetFile(path).schema_arrow.field("features")
    assert pa.types.is_fixed_size_list(field.type.value_type) and field.type.value_type.list_size == 64
    for features, _ in read_features(path):
        assert features.features.shape == (24, 64) and features.frame_index.dtype == np.int32
    result = cli("batch", bundle.path, source, "--mode", "features", "--out", tmp_path / "out", "--json")
    assert result.code == 0 and result.json["written"] == 28, result.err
    same(read(tmp_path / "out"), {name: row for name, row in uninterrupted.items() if row["error"] is None})


def test_features_of_another_backbone_are_refused(cli: Cli, bundle: Bundle, batch_folder: Path, tmp_path: Path) -> None:
    other = other_bundle(bundle, tmp_path)
    source = batch_folder / "uninterrupted"
    refused = cli("batch", other.path, source, "--mode", "features", "--out", tmp_path / "out")
    assert refused.code == errors.BundleError.exit_code and "backbone" in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["glob", "txt", "csv", "csv without header", "parquet"])
def test_lists(cli: Cli, bundle: Bundle, archive: Path, tmp_path: Path, kind: str) -> None:
    names = sorted(str(path) for path in (archive / "1").glob("*000*.mp4"))
    assert len(names) == 5
    source = tmp_path / f"list.{kind.split()[0]}"
    if kind == "glob":
        argument: object = f"{archive}/**/*000[13579].mp4"
    else:
        argument = source
    if kind == "txt":
        source.write_text("\n".join([*names, "", names[0]]) + "\n")
    elif kind == "csv":
        source.write_text("label,path\n" + "".join(f'3,"{name}"\n' for name in names))
    elif kind == "csv without header":
        source.write_text("".join(f"{name},3\n" for name in names))
    elif kind == "parquet":
        pq.write_table(pa.table({"label": [3] * 5, "video": names}), source)
    result = cli("batch", bundle.path, argument, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert sorted(read(tmp_path / "out")) == names


NAMES = (
    " lead.mp4",
    "trail .mp4",
    "new\nline.mp4",
    "日本 ünï.mp4",
    "quote'\".mp4",
    "[x]*.mp4",
    "-dash.mp4",
    "concat:a.mp4",
)


def test_any_name_is_found_once(bundle: Bundle, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces, newlines, other scripts, what FFmpeg would read as a protocol; a folder that is called like a video."""
    folder = tmp_path / "videos"
    (folder / "folder.mp4").mkdir(parents=True)
    for name in (*NAMES, "folder.mp4/inside.mp4"):
        shutil.copy(archive / "1" / "clip 0001.mp4", folder / name)
    run_batch(bundle, str(folder), tmp_path / "all", BatchOptions(frames=4))
    rows = read(tmp_path / "all")
    assert {Path(name).relative_to(folder).as_posix() for name in rows} == {*NAMES, "folder.mp4/inside.mp4"}
    assert all(row["error"] is None for row in rows.values())
    monkeypatch.chdir(folder)
    lines = [*(name for name in NAMES if "\n" not in name), "folder.mp4", "missing.mp4", "  trail .mp4  ", "-dash.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    run_batch(bundle, str(tmp_path / "list.txt"), tmp_path / "listed", BatchOptions(frames=4))
    listed = read(tmp_path / "listed")
    assert listed.keys() == {*NAMES, "folder.mp4", "missing.mp4"} - {"new\nline.mp4"}
    failed = {name: row["error"] for name, row in listed.items() if row["error"]}
    assert failed.keys() == {"folder.mp4", "missing.mp4"} and "got a folder" in failed["folder.mp4"]


def test_one_run_a_folder(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    """A second run into the same results would do the same videos: it is refused while the first one writes."""
    source, refused = tmp_path / "list.txt", []
    source.write_text(f"{archive}/1/clip 0001.mp4\n")
    options = BatchOptions(frames=4, resume=True)

    def advance(outcome: Outcome) -> None:
        with pytest.raises(errors.OutputError, match="another run is writing there") as caught:
            run_batch(bundle, str(source), tmp_path / "out", options)
        refused.append(caught)

    run_batch(bundle, str(source), tmp_path / "out", options, Progress(advance=advance))
    assert len(refused) == 1 and len(read(tmp_path / "out")) == 1
    assert run_batch(bundle, str(source), tmp_path / "out", options).skipped == 1


def test_a_full_disk_keeps_what_was_written(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    """A limit on file sizes is the disk that fills: for the list first, then for a partition."""
    out, command = tmp_path / "out", [sys.executable, "-m", "vtn_export", "batch", str(bundle.path)]
    (tmp_path / "list.txt").write_text("".join(f"/archive/{number} a clip.mp4\n" for number in range(50_000)))

    def limited(*arguments: str, size: int) -> str:
        limit = [sys.executable, "-c", _LIMITED, str(size), *command, *arguments]
        done = subprocess.run(limit, capture_output=True, text=True, check=False)
        assert done.returncode == errors.OutputError.exit_code and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("error: ") == 1
        return done.stderr

    assert "TMPDIR" in limited(str(tmp_path / "list.txt"), "--out", str(out), size=300_000)
    assert not out.exists()
    text = limited(str(archive / "1"), "--out", str(out), "--part-rows", "1", "--features", size=9000)
    assert "--resume" in text and not list(out.rglob(".*"))
    kept = {path: path.stat().st_mtime_ns for path in out.glob(PARTS)}
    run_batch(bundle, str(archive / "1"), out, BatchOptions(frames=24, features=True, resume=True))
    assert all(path.stat().st_mtime_ns == moment for path, moment in kept.items())
    assert len(read(out)) == 15


_LIMITED = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_an_unreadable_folder_is_one_line() -> None:
    user = os.geteuid()
    # not tmp_path, whose parents are closed to the user that root becomes here
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "closed"
        folder.mkdir(0)
        Path(name).chmod(0o755)
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(errors.UsageError, match="closed: Permission denied"):
                list(list_inputs(name))
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


def test_mode_full_refuses_a_video_before_it_is_held(
    bundle: Bundle, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forecast(bundle: Bundle, frames: int) -> int:
        if frames > 8:
            raise errors.MemoryForecastError(f"{frames} frames are too many")
        return 0

    monkeypatch.setattr("vtn_export.batch.stage.require_memory_for_full", forecast)
    run_batch(bundle, str(archive / "1"), tmp_path / "out", BatchOptions(mode="full", frames=None, chunk=4))
    rows = read(tmp_path / "out").values()
    refused = [int(row["error"].split()[0]) for row in rows if row["error"] and "too many" in row["error"]]
    assert len(refused) > 5 and max(refused) == 12, "refused at the first chunk beyond, not at a video's end"
    assert {row["frames"] for row in rows} - {None} and max(row["frames"] or 0 for row in rows) <= 8


def test_a_name_that_is_no_utf8_is_found(bundle: Bundle, archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(archive / "1" / "clip 0001.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    summary = run_batch(bundle, str(folder), tmp_path / "out", BatchOptions(frames=8))
    assert (summary.written, summary.failed) == (1, 0)
    (name,) = read(tmp_path / "out")
    assert name.endswith("caf\\xe9.mp4")
    again = run_batch(bundle, str(folder), tmp_path / "out", BatchOptions(frames=8, resume=True))
    assert (again.skipped, again.written) == (1, 0)


def test_resume_does_what_is_missing_and_nothing_else(
    bundle: Bundle, archive: Path, uninterrupted: Rows, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = BatchOptions(frames=24, workers=2, features=True)
    first = run_batch(bundle, str(archive / "0"), out, options)
    kept = {path: path.stat().st_mtime_ns for path in out.glob(PARTS)}
    orphan = next((out / FOLDER).glob(PARTS)).with_name("part-orphan.parquet")
    orphan.write_bytes(b"left by a killed run")
    (out / ".part-x.parquet.17.tmp").write_bytes(b"half a file")
    second = run_batch(bundle, str(archive), out, BatchOptions(frames=24, workers=2, features=True, resume=True))
    assert (first.written, second.skipped, second.written) == (16, 16, 15)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    same(read(out), uninterrupted)
    named = {row["features_file"] for row in read(out).values()} - {None}
    assert {path.name for path in (out / FOLDER).iterdir()} == named and len(named) == 2
    assert not list(out.glob(".*"))


def test_batch_needs_its_extra(cli: Cli, bundle: Bundle, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    refused = cli("batch", bundle.path, archive, "--out", "nowhere")
    assert refused.code == errors.MissingDependencyError.exit_code and "vtn-export[batch]" in refused.err


def _bad(case: str, folder: Path, archive: Path) -> tuple[list[object], type[errors.VtnError], str]:
    out = folder / "out"
    if case == "empty folder":
        (folder / "empty").mkdir()
        return [folder / "empty", "--out", out], errors.UsageError, "got nothing"
    if case == "empty list":
        (folder / "list.txt").write_text("\n\n")
        return [folder / "list.txt", "--out", out], errors.UsageError, "got nothing"
    if case == "binary list":
        (folder / "list.txt").write_bytes(bytes(range(256)))
        return [folder / "list.txt", "--out", out], errors.UsageError, "not text"
    if case == "list without paths":
        pq.write_table(pa.table({"label": [1]}), folder / "list.parquet")
        return [folder / "list.parquet", "--out", out], errors.UsageError, "label"
    if case == "damaged parquet":
        (folder / "list.parquet").write_bytes(b"PAR1 no")
        return [folder / "list.parquet", "--out", out], errors.UsageError, "not a Parquet file"
    if case == "no such folder":
        return [folder / "missing", "--out", out], errors.UsageError, "no such file or folder"
    if case == "glob without files":
        return [f"{folder}/*.mp4", "--out", out], errors.UsageError, "got nothing"
    if case == "out is a file":
        out.write_text("")
        return [archive, "--out", out], errors.OutputError, "a file is in the way"
    if case == "out is full":
        out.mkdir()
        (out / "holiday.jpg").write_text("")
        return [archive, "--out", out], errors.OutputError, "--resume"
    if case == "resume into something else":
        out.mkdir()
        (out / "holiday.jpg").write_text("")
        return [archive, "--out", out, "--resume"], errors.OutputError, RECORD
    if case == "no engine":
        return [archive, "--out", out, "--backend", "trt"], errors.EngineError, "no engine"
    if case == "ray unreachable":
        return [archive, "--out", out, "--ray", "127.0.0.1:1"], errors.BackendError, "127.0.0.1:1"
    if case == "features of videos":
        return [archive, "--out", out, "--mode", "features"], errors.OutputError, RECORD
    if case == "numbers as paths":
        pq.write_table(pa.table({"path": [1]}), folder / "list.parquet")
        return [folder / "list.parquet", "--out", out], errors.UsageError, "expected paths"
    if case == "frames of stored features":
        return [archive, "--out", out, "--mode", "features", "--frames", 5], errors.UsageError, "--frames"
    if case == "features in mode full":
        return [archive, "--out", out, "--mode", "full", "--features"], errors.UsageError, "chunked"
    raise AssertionError(case)


@pytest.mark.parametrize(
    "case",
    ["empty folder", "empty list", "binary list", "list without paths", "damaged parquet", "no such folder",
     "glob without files", "out is a file", "out is full", "resume into something else", "no engine",
     "features of videos", "features in mode full", "numbers as paths", "frames of stored features"],
)  # fmt: skip
def test_bad_input_is_one_line(cli: Cli, bundle: Bundle, archive: Path, tmp_path: Path, case: str) -> None:
    arguments, kind, text = _bad(case, tmp_path, archive)
    result = cli("batch", bundle.path, *arguments)
    assert result.code == kind.exit_code, result.err
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and text in lines[0] and "Traceback" not in result.err, result.err
    assert not (tmp_path / "out" / RECORD).exists()


@pytest.mark.parametrize(
    ("change", "kind"),
    [("bundle", errors.BundleError), ("frames", errors.OutputError), ("version", errors.OutputError),
     ("record", errors.OutputError), ("partition", errors.OutputError)],
)  # fmt: skip
def test_resume_refuses_other_results(
    cli: Cli, bundle: Bundle, archive: Path, tmp_path: Path, change: str, kind: type[errors.VtnError]
) -> None:
    out, source = tmp_path / "out", tmp_path / "list.txt"
    source.write_text(f"{archive}/1/clip 0001.mp4\n")
    assert cli("batch", bundle.path, source, "--out", out).code == 0
    arguments: list[object] = [source, "--out", out, "--resume"]
    used = bundle.path
    if change == "bundle":
        used = other_bundle(bundle, tmp_path).path
    elif change == "frames":
        arguments += ["--frames", 5]
    elif change == "version":
        (out / RECORD).write_text(json.dumps(json.loads((out / RECORD).read_text()) | {"schema_version": 2}))
    elif change == "record":
        (out / RECORD).write_text("{")
    else:
        next(out.glob(PARTS)).write_bytes(b"PAR1")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    refused = cli("batch", used, *arguments)
    assert refused.code == kind.exit_code and refused.err.count("error: ") == 1, refused.err
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    if change == "bundle":
        assert Record.of(bundle, "chunked", 24, False).bundle_sha256[:12] in refused.err
