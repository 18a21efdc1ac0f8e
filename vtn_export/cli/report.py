"""`vtn-export report`: everything about a bundle on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import Steps, note, print_json, progress_bar, reported
from vtn_export.cli.options import (
    DEFAULT_BUNDLE,
    RARE,
    Backend,
    BundleArgument,
    Checkpoint,
    Json,
    Threads,
    backend_of,
    check_backend,
)


@reported
def command(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file.")] = Path("report.html"),
    png: Annotated[Path | None, typer.Option("--png", help="Also every chart as PNG, into this folder.")] = None,
    bench: Annotated[
        Path | None, typer.Option("--bench", help="A result of `bench --json FILE` (else measured now, shortly).")
    ] = None,
    validate: Annotated[
        Path | None, typer.Option("--validate", help="A result of `validate --json` (else measured now).")
    ] = None,
    evaluation: Annotated[
        Path | None, typer.Option("--eval", help="A result of `eval --json`: adds its confusion matrix.")
    ] = None,
    video: Annotated[Path | None, typer.Option("--video", help="The sample video (default: a shipped clip).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure less: seconds for a small model.")] = False,
    backend: Backend = "ort",
    threads: Threads = None,
    checkpoint: Checkpoint = None,
    frames: Annotated[
        int, typer.Option("--frames", min=1, max=4096, help="Frames of the sample video.", rich_help_panel=RARE)
    ] = 32,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML file: accuracy, latency, memory, roofline, layers, engines, a video.

    It loads nothing from anywhere and opens on a phone.
    """
    from vtn_export.bundle import Bundle, check_file, writing_file
    from vtn_export.deps import require
    from vtn_export.errors import UsageError
    from vtn_export.evaluate.bench_schema import read_bench
    from vtn_export.evaluate.report import browser, sources
    from vtn_export.evaluate.report.page import page
    from vtn_export.evaluate.report.sections import sections
    from vtn_export.evaluate.report.strip import sample_strip
    from vtn_export.video import probe, shipped_clip

    check_backend(backend)
    check_file(out, "--out")
    if png is not None:
        check_file(png / "x.png", "--png")
        browser.find_chromium()
        require("playwright")
    require("plotly")
    opened = Bundle.open(bundle)
    found = sources.Sources(
        opened,
        bench=None if bench is None else read_bench(bench),
        validate=None if validate is None else sources.read_validate(validate),
        evaluation=None if evaluation is None else sources.read_eval(evaluation),
    )
    clip = video or shipped_clip()
    probe(clip)
    steps = Steps()
    with steps("hashes"):
        opened.verify()
    chosen = backend_of(backend, opened, threads=threads)
    for remark in found.remarks():
        note(remark)
    protocol = sources.QUICK if quick else sources.SHORT
    if found.validate is None:
        found.validate, why = sources.measure_validation(
            opened, chosen, layers=protocol.layers, checkpoint=checkpoint, threads=threads, step=steps
        )
        if why is not None:
            found.missing["accuracy"] = f"No errors by layer: {why}"
    elif not found.validate["layers"]:
        found.missing["accuracy"] = "No errors by layer: run `vtn-export validate --layers --json`."
    if found.bench is None:
        found.bench = sources.measure_bench(
            opened, chosen, protocol, video=clip, threads=threads, checkpoint=checkpoint, notify=note
        )
    strip = None
    try:
        with steps(f"{clip.name}, {frames} frames"):
            strip = sample_strip(opened, chosen, clip, frames, threads=threads, checkpoint=checkpoint)
    except UsageError as error:
        found.missing["video"] = str(error)
    made = sections(found, strip)
    title = f"{opened.manifest.name}, {opened.manifest.precision}"
    with writing_file(out) as temporary:
        temporary.write_text(page(title, [f"Bundle {bundle}, {chosen}."], made), encoding="utf-8")
    names = [chart.name for section in made for chart in section.charts]
    pictures: list[Path] = []
    if png is not None:
        with progress_bar("charts", len(names)) as progress:
            pictures = browser.write_pngs(out, names, png, progress)
    if as_json:
        print_json(
            {
                "report": str(out),
                "bytes": out.stat().st_size,
                "backend": chosen,
                "charts": names,
                "png": [str(path) for path in pictures],
                "missing": found.missing,
            }
        )
        return
    typer.echo(f"{out}: {len(names)} charts, {out.stat().st_size / 1e6:.1f} MB")
    if pictures:
        typer.echo(f"{png}: {len(pictures)} PNG")
