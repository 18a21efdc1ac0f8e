"""`vtn-export quantize`: an fp32 bundle to INT8 or FP8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vtn_export.cli.console import Steps, note, print_json, print_table, progress_bar, reported
from vtn_export.cli.options import RARE, BundleArgument, Json, one_of
from vtn_export.errors import UsageError

if TYPE_CHECKING:
    from vtn_export.quantize.create import Quantized

_MOST_ROWS = 20


@reported
def command(
    bundle: BundleArgument,
    out: Annotated[Path, typer.Option("--out", help="The bundle to write; an older one is replaced.")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers: every GPU that engines are built for.")] = False,
    fp8: Annotated[bool, typer.Option("--fp8", help="8-bit floats (E4M3): GPUs from SM 8.9 on.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option("--calibrate", help="Real videos like those it will see: a folder, or one.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", help="Labelled videos to judge by, as for `eval` (default: agreement with fp32)."),
    ] = None,
    method: Annotated[str, typer.Option("--method", help="How ranges are found: max, entropy or percentile.")] = "max",
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", help="A layer or module that stays fp16 (shell patterns); several times."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0.0, max=100.0, help="Points of top-1 that may be lost.")
    ] = 1.0,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Calibration clips at most.", rich_help_panel=RARE)
    ] = 512,
    clip_frames: Annotated[
        int, typer.Option("--clip-frames", min=1, help="Frames looked at in a clip.", rich_help_panel=RARE)
    ] = 16,
    random_noise: Annotated[
        bool,
        typer.Option("--random-noise", help="Calibrate on random pixels: for trials alone.", rich_help_panel=RARE),
    ] = False,
    as_json: Json = False,
) -> None:
    """Quantize an fp32 bundle with calibrated Q/DQ; written only if it stays accurate enough."""
    from vtn_export.bundle import Bundle
    from vtn_export.evaluate.labelled import read_labelled
    from vtn_export.quantize.calibrate import METHODS, Method
    from vtn_export.quantize.create import Options, quantize

    if int8 == fp8:
        raise UsageError("quantize: expected one of --int8 and --fp8" + (", got both" if int8 else ""))
    if (calibrate is None) != random_noise:
        got = "got both" if random_noise else "got neither"
        raise UsageError(f"quantize: expected --calibrate VIDEOS or --random-noise, {got}")
    one_of(method, METHODS, "--method")
    opened = Bundle.open(bundle)
    labelled = None if labels is None else read_labelled(labels, opened.labels())
    if labelled is not None and labelled.missing:
        note(f"no video of {len(labelled.missing)} classes: {', '.join(labelled.missing[:10])}")
    options = Options(
        precision="int8" if int8 else "fp8",
        calibrate=calibrate,
        method=cast(Method, method),
        exclude=exclude or (),
        max_drop=max_drop,
        labelled=labelled,
        most_clips=clips,
        frames=clip_frames,
    )
    steps = Steps()
    found = quantize(opened, out, options, step=steps, bar=progress_bar, announce=note)
    if as_json:
        manifest = found.bundle.manifest
        print_json(
            {
                "bundle": str(out),
                "source": str(bundle),
                "precision": options.precision,
                "quantization": dict(manifest.quantization or {}),
                "checks": [check.to_json() for check in found.checks],
                "seconds": steps.seconds,
            }
        )
        return
    _print(found, out, options.precision)


def _print(found: Quantized, out: Path, precision: str) -> None:
    verdict = found.verdict
    sizes = [(found.bundle.path / entry.file).stat().st_size for entry in found.bundle.manifest.graphs.values()]
    print_table(
        f"{out}: {precision}, {len(found.layers)} layers quantized, calibrated on {len(found.clips)} clips "
        f"({found.clips.source})",
        ["measured by", "clips", "fp32", precision, "points lost", "logits off by", "graphs"],
        [
            [
                verdict.measure,
                str(verdict.clips),
                f"{verdict.reference:.1%}",
                f"{verdict.top1:.1%}",
                f"{verdict.drop:.2f}",
                f"{verdict.logits_max_abs:.3g}",
                f"{sum(sizes) / 1e6:.1f} MB",
            ]
        ],
    )
    kept = [[one.node, one.reason] for one in found.kept]
    if len(kept) > _MOST_ROWS:
        note(f"the first {_MOST_ROWS} of {len(kept)} products and convolutions that stay fp16; the manifest has all")
    if kept:
        print_table("stay fp16", ["layer", "why"], kept[:_MOST_ROWS])
    if found.sensitivity:
        worst = [[layer, f"{error:.2e}"] for layer, error in list(found.sensitivity.items())[:10]]
        print_table("most sensitive", ["layer", "relative error of the logits, alone"], worst)
    typer.echo(f"next: vtn-export eval {out} DATASET, vtn-export trt {out}")
