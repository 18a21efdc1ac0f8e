"""The `vtn-export` command: one file a verb, no logic here. Heavy imports live inside the verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from vtn_export import __version__
from vtn_export.cli import (
    batch,
    bench,
    compare,
    doctor,
    eval,
    features,
    inspect,
    onnx,
    plugins,
    quantize,
    report,
    run,
    sdk,
    triton,
    trt,
    validate,
)

app = typer.Typer(
    name="vtn-export",
    help="Video Transformer Networks from a PyTorch checkpoint to ONNX and TensorRT, right at any length.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("onnx")(onnx.command)
app.command("trt")(trt.command)
app.command("run")(run.command)
app.command("features")(features.command)
app.command("validate")(validate.command)
app.add_typer(plugins.app, name="plugins")
app.command("quantize")(quantize.command)
app.command("eval")(eval.command)
app.command("bench")(bench.command)
app.command("batch")(batch.command)
app.command("triton")(triton.command)
app.command("sdk")(sdk.command)
app.command("compare")(compare.command)
app.command("report")(report.command)
app.command("inspect")(inspect.command)
app.command("doctor")(doctor.command)


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
