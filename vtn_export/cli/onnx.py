"""`vtn-export onnx`: checkpoint → bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from vtn_export.cli.console import Steps, note, print_json, print_table, reported
from vtn_export.cli.options import DEFAULT_BUNDLE, RARE, Json, one_of
from vtn_export.deps import require
from vtn_export.errors import CheckpointError, ConfigError
from vtn_export.spec import INPUT_TYPES, PARTS, TYPED_PRECISIONS, InputType, Part, Precision
from vtn_export.untrusted import check_regular, reason_of


@reported
def command(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            help="Published .pyth, a state dict, or safetensors. None: those that come with the preset "
            "(moving_shapes), else seeded random ones."
        ),
    ] = None,
    config: Annotated[
        str, typer.Option("--config", help="A preset's name, a TOML file, or PySlowFast's YAML.")
    ] = "vit_b_vtn",
    out: Annotated[Path, typer.Option("--out", help="The bundle to write; an older one is replaced.")] = DEFAULT_BUNDLE,
    part: Annotated[str, typer.Option("--part", help="all, full, backbone or temporal.")] = "all",
    precision: Annotated[str, typer.Option("--precision", help="fp32, fp16 or bf16.")] = "fp32",
    input_type: Annotated[
        str, typer.Option("--input", help="uint8 (normalised inside) or float32 (already normalised).")
    ] = "uint8",
    labels: Annotated[Path | None, typer.Option("--labels", help="A text file, one class a line.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Random weights of this seed (default: 0).", rich_help_panel=RARE)
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option("--clip", help="A video for the golden frames (default: a shipped one).", rich_help_panel=RARE),
    ] = None,
    keep_fp32: Annotated[
        Path | None,
        typer.Option("--keep-fp32", help="Node names that stay fp32, one a line.", rich_help_panel=RARE),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a VTN to a bundle of ONNX graphs, each checked against PyTorch at lengths it was not traced at."""
    from vtn_export.bundle import check_target
    from vtn_export.model.config import ModelConfig
    from vtn_export.model.shipped import shipped

    one_of(part, ("all", *PARTS), "--part")
    one_of(precision, TYPED_PRECISIONS, "--precision")
    one_of(input_type, INPUT_TYPES, "--input")
    names = _lines(labels, "labels") if labels else None
    keep = [line for line in _lines(keep_fp32, "keep-fp32") if line] if keep_fp32 else []
    if checkpoint is not None:
        check_regular(checkpoint, "checkpoint", CheckpointError)
    resolved = ModelConfig.from_any(config)  # this and the next before torch takes its seconds
    check_target(out)
    trained = shipped(config) if checkpoint is None and seed is None else None
    if trained is not None:
        checkpoint, names = trained.weights, names or list(trained.labels)
        note(f"no checkpoint given: exporting the trained weights that come with {trained.name}")
    elif checkpoint is None:
        note(f"no checkpoint given: exporting RANDOM weights (seed {seed or 0}); the labels mean nothing")
    steps = Steps()
    with steps("import torch"):
        for module in ("torch", "timm", "onnxscript"):
            require(module)
        from vtn_export.onnx.create import create_bundle
    exported = create_bundle(
        out,
        checkpoint=checkpoint,
        config=resolved,
        parts=PARTS if part == "all" else (cast(Part, part),),
        precision=cast(Precision, precision),
        input_type=cast(InputType, input_type),
        seed=seed or 0,
        labels=names,
        clip=clip,
        keep_fp32=keep,
        step=steps,
    )
    manifest = exported.bundle.manifest
    if as_json:
        print_json(
            {
                "bundle": str(out),
                "name": manifest.name,
                "precision": manifest.precision,
                "random_weights": manifest.random_weights,
                "checks": [check.to_json() for check in exported.checks],
                "kept_fp32": [{"node": kept.node, "reason": kept.reason} for kept in exported.kept_fp32],
                "seconds": steps.seconds,
            }
        )
        return
    rows = [
        [c.part, c.output, f"{c.measured:.2e}", f"{c.tolerance:.2e}", c.worst_sample, c.measure]
        for c in exported.checks
    ]
    print_table(
        f"{out}: {manifest.name}, {manifest.precision}, against PyTorch in float64",
        ["part", "output", "error", "tolerance", "worst sample", "measure"],
        rows,
    )
    typer.echo(f"next: vtn-export run {out} VIDEO")


def _lines(path: Path, what: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--{what} {path}: cannot be read ({reason_of(error)})") from None
