"""`vtn-export trt`: bundle → engine, with or without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from vtn_export.cli.console import note, print_json, print_table, reported
from vtn_export.cli.options import DEFAULT_BUNDLE, RARE, BundleArgument, Json
from vtn_export.errors import UsageError
from vtn_export.spec import PRECISIONS, Precision

_PROFILE = "MIN:OPT:MAX, several times for several profiles (default: from the bundle, or the target)."


@reported
def command(
    bundle: BundleArgument = DEFAULT_BUNDLE,
    part: Annotated[str, typer.Option("--part", help="all, full, backbone or temporal.")] = "all",
    fp16: Annotated[bool, typer.Option("--fp16", help="fp16 engine; an fp32 bundle is typed and checked.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bf16 engine; an fp32 bundle is typed and checked.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="fp32 engine, without TF32.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="int8 engine, of a bundle that `quantize` made.", rich_help_panel=RARE)
    ] = False,
    fp8: Annotated[
        bool, typer.Option("--fp8", help="fp8 engine (SM 8.9 and newer), likewise.", rich_help_panel=RARE)
    ] = False,
    frames: Annotated[list[str] | None, typer.Option("--frames", help=f"Frames a sample: {_PROFILE}")] = None,
    batch: Annotated[list[str] | None, typer.Option("--batch", help=f"Samples a call: {_PROFILE}")] = None,
    chunk: Annotated[
        list[str] | None, typer.Option("--chunk", help=f"Frames a call of the backbone: {_PROFILE}")
    ] = None,
    flavor: Annotated[str, typer.Option("--flavor", help="auto, tensorrt (needs the GPU) or rtx (does not).")] = "auto",
    attention: Annotated[
        str, typer.Option("--attention", help="auto, plugin (our kernel; TensorRT only) or portable (standard ops).")
    ] = "auto",
    target: Annotated[
        str | None, typer.Option("--target", help="A device's recipe, such as jetson-agx-orin, rtx, l4.")
    ] = None,
    compute_capability: Annotated[
        str | None,
        typer.Option("--compute-capability", help="RTX: GPUs to build for, such as 8.6,8.9 (default: 8.0 and newer)."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", help="A video whose values also decide what stays fp32.", show_default=False),
    ] = None,
    keep_fp32: Annotated[
        Path | None, typer.Option("--keep-fp32", help="Node names that stay fp32, one a line.", rich_help_panel=RARE)
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", help="Scratch memory limit, such as 2GiB.", rich_help_panel=RARE)
    ] = None,
    opt_level: Annotated[
        int | None, typer.Option("--opt-level", help="Builder effort, 0 to 5.", rich_help_panel=RARE)
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option("--timing-cache", help="TensorRT's measurements, read and written.", rich_help_panel=RARE),
    ] = None,
    plugin: Annotated[
        Path | None, typer.Option("--plugin", help="The plugin library, if not the built one.", rich_help_panel=RARE)
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Let fp32 products use TF32.", rich_help_panel=RARE)] = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if the same engine is there.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Parse, check, forecast, list layers; build nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build TensorRT or TensorRT-RTX engines beside a bundle, typed and checked, in a process of their own."""
    from vtn_export.bundle import Bundle
    from vtn_export.cli.build_progress import BuildProgress
    from vtn_export.trt.build import build
    from vtn_export.trt.options import BuildOptions, parse_bytes
    from vtn_export.trt.plan import plans
    from vtn_export.trt.ranges import read_keep_list
    from vtn_export.trt.sidecar import checked_part

    parts = checked_part(part)
    options = BuildOptions(
        precision=_precision(fp32=fp32, fp16=fp16, bf16=bf16, int8=int8, fp8=fp8),
        profiles={"frames": frames or (), "batch": batch or (), "chunk": chunk or ()},
        flavor=flavor,
        attention=cast(Any, attention),
        target=target,
        compute_capabilities=tuple(c.strip() for c in compute_capability.split(",")) if compute_capability else (),
        workspace=None if workspace is None else parse_bytes(workspace, "--workspace"),
        opt_level=opt_level,
        timing_cache=timing_cache,
        calibrate=_existing(calibrate),
        keep_fp32=read_keep_list(keep_fp32),
        tf32=tf32,
        force=force,
        dry_run=dry_run,
        plugin=plugin,
    )
    opened = Bundle.open(bundle)
    decided = plans(opened, parts, options)
    for warning in dict.fromkeys(w for plan in decided for w in plan.warnings):
        note(f"warning: {warning}")
    built = []
    for plan in decided:
        with BuildProgress(f"{plan.part} {plan.precision}") as progress:
            built.append(build(opened, plan, progress, progress.announce))
    if as_json:
        print_json({"bundle": str(bundle), "dry_run": dry_run, "parts": [one.to_json() for one in built]})
    elif dry_run:
        for one in built:
            rows = [[layer["name"], layer["type"], layer["dtype"]] for layer in one.result["layer_list"]]
            print_table(f"{one.plan.part}: {len(rows)} layers, nothing built", ["layer", "type", "dtype"], rows)
    else:
        rows = []
        for one in built:
            record = one.record
            if record is not None:
                seconds = "there already" if one.cached else f"{one.result['build_seconds']:.1f} s"
                size = f"{record.engine_bytes / 1e6:.1f} MB"
                rows.append([one.plan.part, record.precision, size, seconds, record.describe_target(), record.name])
        first = built[0].plan
        title = f"{bundle}/engines: {first.flavor} {first.version}"
        print_table(title, ["part", "precision", "size", "build", "runs on", "engine"], rows)


def _precision(**asked: bool) -> Precision | None:
    given = [precision for precision in PRECISIONS if asked[precision]]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]}: an engine has one precision; give one of them")
    return given[0] if given else None


def _existing(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise UsageError(f"--calibrate {path}: no such file; expected a video")
    return path
