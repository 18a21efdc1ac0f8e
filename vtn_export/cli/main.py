"""The `vtn-export` command: one file a verb, no logic here. Heavy imports live inside the verbs."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vtn_export import __version__

# verb -> its line in the list of commands; the file of that name is read when the verb runs (all of them take longer
# than everything else that --help does)
VERBS = {
    "onnx": "Export a VTN to a bundle of ONNX graphs, each checked against PyTorch at lengths it was not traced at.",
    "trt": "Build TensorRT or TensorRT-RTX engines beside a bundle, typed and checked, in a process of their own.",
    "run": "Name what happens in a video: the whole of it in one look, or live with --stream.",
    "features": "Run the backbone over a video once and store its features, to be classified later without the video.",
    "validate": "Check every file's hash, and every graph against the PyTorch outputs stored in the bundle.",
    "quantize": "Quantize an fp32 bundle with calibrated Q/DQ; written only if it stays accurate enough.",
    "eval": "How often a bundle is right on labelled videos: top-1, top-5, confusion matrix, classes.",
    "bench": "Measure latency and throughput by a stated protocol, with percentiles, spread and context.",
    "compare": "Show what moved beyond noise between two results; exit 1 when something got slower.",
    "report": "Write one self-contained HTML file: accuracy, latency, memory, roofline, layers, engines, a video.",
    "batch": "Classify many videos into Parquet: nothing is lost, a killed run goes on with --resume.",
    "triton": "Write a repository that `tritonserver --model-repository` loads as it is.",
    "sdk": "Pack headers, library, plugin, bundle and examples for an application without Python.",
    "plugins": "Build and inspect the TensorRT plugin library.",
    "inspect": "Show a bundle's graphs, interfaces, accuracy, memory and weights; every file's hash is compared.",
    "doctor": "Say what works on this machine, and what to install for the rest.",
}


class Verbs(TyperGroup):
    """The verbs by name; a verb's file is imported when that verb runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        return name, verb(name) if name is not None and command is not None else None, rest


def verb(name: str) -> Any:
    """The command of `vtn_export/cli/NAME.py`: its function `command`, or its group `app`."""
    module = import_module(f"vtn_export.cli.{name}")
    group: typer.Typer | None = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        group.command(name)(module.command)
    found = typer.main.get_command(group)
    found.name = name
    return found


app = typer.Typer(
    name="vtn-export",
    cls=Verbs,
    help="Video Transformer Networks from a PyTorch checkpoint to ONNX and TensorRT, right at any length.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vtn-export {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Entry point of the installed command."""
    app()


if __name__ == "__main__":
    main()
