"""`vtn-export validate`: a bundle against PyTorch's numbers, or one of its forms against another."""

from __future__ import annotations

import math
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vtn_export.cli.console import Steps, note, print_json, print_table, progress_bar, reported
from vtn_export.cli.options import DEFAULT_BUNDLE, RARE, BundleArgument, Checkpoint, Json, Threads, backend_of, one_of
from vtn_export.errors import AccuracyError, UsageError, VideoError

if TYPE_CHECKING:
    from vtn_export.evaluate.forms import Form
    from vtn_export.evaluate.layers import LayerReport
    from vtn_export.evaluate.rule import Rule
    from vtn_export.evaluate.validate import Validation, Validator

_GOLDEN = "golden"
_MOST_FRAMES = 1 << 20
_WIDE = 110  # columns; narrower terminals get the table without cosine and KL


@reported
def command(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    video: Annotated[Path | None, typer.Option("--video", help="Also the three modes, and PyTorch, on this.")] = None,
    videos: Annotated[Path | None, typer.Option("--videos", help="The same on every video of a folder.")] = None,
    frames: Annotated[
        str | None,
        typer.Option("--frames", help="Frame counts, e.g. 1,32,300: of each video (or `all`), else seeded samples."),
    ] = None,
    backend: Annotated[
        str, typer.Option("--backend", help="ort, openvino, trt, torch, auto; rewrite; fp16, bf16 (of an fp32 bundle).")
    ] = "ort",
    against: Annotated[
        str | None, typer.Option("--against", help="Another of these, or golden: PyTorch's stored outputs.")
    ] = None,
    atol: Annotated[float | None, typer.Option("--atol", help="|a-b| <= atol + rtol |b|, in place of bounds.")] = None,
    rtol: Annotated[float | None, typer.Option("--rtol", help="See --atol; one left out is 0.")] = None,
    top1: Annotated[float | None, typer.Option("--top1", help="Least share of equal top classes, 0 to 1.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Where the error starts, by layer.")] = False,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Find the fewest nodes to keep in fp32 for fp16 or bf16 (--backend).")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Where --bisect writes its list.", rich_help_panel=RARE)] = Path(
        "keep-fp32.txt"
    ),
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check every file's hash, and every graph against the PyTorch outputs stored in the bundle.

    Needs no torch. Exit 1 when anything is beyond its tolerance, or NaN or Inf.
    """
    from vtn_export.bundle import Bundle
    from vtn_export.evaluate.forms import FORMS, Form
    from vtn_export.evaluate.rule import Rule
    from vtn_export.evaluate.validate import Validation, Validator, live_reference
    from vtn_export.evaluate.videos import videos_of

    one_of(backend, (*FORMS, "auto"), "--backend")
    one_of(against or _GOLDEN, (*FORMS, _GOLDEN), "--against")
    rule = Rule(_tolerance(atol, "--atol"), _tolerance(rtol, "--rtol"), _tolerance(top1, "--top1", 1.0))
    counts = _counts(frames, video=video is not None or videos is not None)
    paths = [video] if video is not None else []
    paths += videos_of(videos) if videos is not None else []
    opened = Bundle.open(bundle)
    steps = Steps()
    with steps("hashes"):
        opened.verify()
    manifest = opened.manifest
    if backend == "auto":
        backend = backend_of(backend, opened, threads=threads)
    with ExitStack() as stack:
        if bisect:
            backend = backend if backend != "ort" else "fp16"
        form = stack.enter_context(Form(opened, backend, checkpoint=checkpoint, threads=threads))
        reference = None
        if against not in (None, _GOLDEN):
            reference = stack.enter_context(Form(opened, str(against), checkpoint=checkpoint, threads=threads))
        found = Validation(str(bundle), manifest.name, manifest.precision, backend, against or _GOLDEN, form.emulated)
        if bisect:
            _bisect(found, form, rule, out, unused=bool(video or videos or frames or against or layers))
        else:
            validator = Validator(form, reference, rule, step=steps)
            for part in manifest.graphs:
                found.checks += validator.golden(part)
            live = reference
            if live is None and backend != "torch" and against != _GOLDEN and (counts or video or videos):
                live = live_reference(opened, checkpoint, threads)
                found.against = found.against if live is None else f"{_GOLDEN}, {live.name}"
                stack.callback(live.close if live is not None else lambda: None)
            more = Validator(form, live, rule, step=steps)
            if paths:
                _videos(found, more, paths, counts or [32], videos is not None, steps)
            elif counts:
                for part in manifest.graphs:
                    found.checks += more.frames(part, [count for count in counts if count is not None])
            if layers:
                _layers(found, form, video, steps)
            for one in (validator, more):
                found.not_finite += [entry for entry in one.not_finite if entry not in found.not_finite]
                found.skipped += one.skipped
    found.seconds = steps.seconds
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    _finish(found, as_json)


def _videos(
    found: Validation,
    validator: Validator,
    paths: list[Path],
    counts: list[int | None],
    skip_unreadable: bool,
    steps: Steps,
) -> None:
    from vtn_export.evaluate.videos import VideoValidator

    several = VideoValidator(validator, counts, skip_unreadable=skip_unreadable)
    for index, path in enumerate(paths, 1):
        # no spinner around it: two live displays would write over each other
        with progress_bar(f"{path.name} ({index}/{len(paths)}), frames", None) as progress:
            start = time.perf_counter()
            several.add(path, progress)
            steps.seconds[f"modes on {path.name}"] = round(time.perf_counter() - start, 3)
    found.checks += several.checks()
    found.unreadable += several.unreadable


def _layers(found: Validation, form: Form, video: Path | None, steps: Steps) -> None:
    from vtn_export.evaluate.layers import compare_layers
    from vtn_export.spec import Part
    from vtn_export.trt.typed import calibration_calls

    graphs = form.bundle.manifest.graphs
    halves: tuple[Part, ...] = ("backbone", "temporal")
    parts = halves if all(half in graphs for half in halves) else tuple(graphs)  # `full` has their nodes
    for part in parts:
        with steps(f"layers, {part}"):
            calls = list(calibration_calls(form.bundle, part, video)) if video is not None else []
            found.layers.append(report := compare_layers(form, part, calls))
            found.not_finite += report.not_finite


def _bisect(found: Validation, form: Form, rule: Rule, out: Path, *, unused: bool) -> None:
    from vtn_export.evaluate.bisect import keep_list
    from vtn_export.evaluate.forms import TYPED, Bound
    from vtn_export.spec import Part, Precision

    if form.name not in TYPED:
        raise UsageError(f"--bisect: got --backend {form.name}, expected fp16 or bf16")
    if unused or rule.rtol is not None or rule.top1 is not None:
        raise UsageError("--bisect: works on the golden samples with --atol alone; leave the other options out")

    def bound_of(part: Part) -> Bound:
        return form.bound(part) if rule.atol is None else Bound(False, rule.atol)

    precision: Precision = form.name
    parts: list[Part] = list(form.bundle.manifest.graphs)
    with progress_bar("lists tried", None) as progress:
        found.bisect = keep_list(form.bundle, parts, precision, bound_of, progress).write(out)


def _counts(frames: str | None, *, video: bool) -> list[int | None]:
    """--frames as numbers; None is every frame of a video. Raises UsageError."""
    counts: list[int | None] = []
    for word in frames.split(",") if frames is not None else []:
        if word == "all" and video:
            counts.append(None)
        elif word.isdecimal() and 1 <= int(word) <= _MOST_FRAMES:
            counts.append(int(word))
        else:
            expected = f"numbers from 1 to {_MOST_FRAMES}, comma between" + (", or `all`" if video else "")
            raise UsageError(f"--frames: got {frames!r}, expected {expected}")
    return counts


def _tolerance(value: float | None, option: str, most: float = math.inf) -> float | None:
    if value is not None and not (0 <= value <= most and math.isfinite(value)):
        raise UsageError(f"{option}: got {value}, expected a number from 0" + (f" to {most:g}" if most == 1 else ""))
    return value


def _print(found: Validation) -> None:
    how = f"{found.backend}, rounding copy" if found.emulated else found.backend
    title = f"{found.bundle}: {found.name}, {found.precision}, {how} against {found.against}"
    wide = not sys.stdout.isatty() or shutil.get_terminal_size().columns >= _WIDE
    rows = []
    for check in found.checks:
        name = f"{check.part}: {check.output}" + (", seeded" if check.source == "frames" else "")
        row = [name, f"{check.measured:.2e}", f"{check.tolerance:.2e}"]
        row.append("" if check.top1 is None or check.top5 is None else f"{check.top1:.0%} {check.top5:.0%}")
        if wide:
            row += [f"{check.cosine:.6f}", "" if check.kl is None else f"{check.kl:.1e}"]
        rows.append([*row, check.worst_sample, "ok" if check.passed else "FAIL"])
    more = ["cosine", "KL"] if wide else []
    columns = ["output", "error", "tolerance", "top-1 -5", *more, "worst sample", ""]
    if rows:
        print_table(title, columns, rows)
    for report in found.layers:
        _print_layers(report)
    if found.bisect is not None:
        print_table(
            f"{found.bundle}: nodes to keep in fp32 for {found.bisect.precision}",
            ["part", "without", "with", "tolerance", "nodes", "lists tried"],
            [
                [p.part, f"{p.error_without:.2e}", f"{p.error_with:.2e}", f"{p.tolerance:.2e}",
                 f"{len(p.nodes)} of {p.candidates}", str(p.tried)]
                for p in found.bisect.parts
            ],
        )  # fmt: skip
        note(f"{len(found.bisect.nodes)} nodes in {found.bisect.file}: vtn-export trt --keep-fp32 {found.bisect.file}")
    for entry in (*found.skipped, *found.unreadable):
        note(f"skipped {entry['what']}: {entry['why']}")


def _print_layers(report: LayerReport) -> None:
    first = report.first
    says = f"the first beyond its bound is {first.layer}" if first is not None else "none beyond its bound"
    print_table(
        f"{report.part}, {report.form}: {len(report.layers)} layers beside PyTorch's, {says}; nearest to their bounds:",
        ["layer", report.measure, "bound", "largest value", "of fp16's end", "below fp16", ""],
        [
            [
                layer.layer,
                f"{layer.error:.2e}",
                f"{layer.bound:.2e}",
                f"{layer.largest:.3g}",
                f"{layer.fp16_share:.2%}",
                f"{layer.below_fp16:.1%}",
                "BEYOND" if layer.beyond else "",
            ]
            for layer in report.ranked()
        ],
    )


def _finish(found: Validation, as_json: bool) -> None:
    failed = found.failures
    if found.unreadable and not failed:
        names = ", ".join(entry["what"] for entry in found.unreadable)
        message, code = f"videos that cannot be read: {names}", VideoError.exit_code
    elif failed:
        message, code = "; ".join(failed), AccuracyError.exit_code
    else:
        return
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
