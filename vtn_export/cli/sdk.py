"""`vtn-export sdk`: the C++ library with a bundle, for a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import Steps, print_json, reported
from vtn_export.cli.options import RARE, BundleArgument, Json


@reported
def command(
    bundle: BundleArgument,
    target: Annotated[
        str | None, typer.Option("--target", help="`cpu` (default), or a device of `engines/targets`.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The tarball to write (default: vtn-sdk.tar.gz).")
    ] = None,
    inline: Annotated[
        bool,
        typer.Option(
            "--inline", help="Only write the graphs of libvtn's CPU executor beside the bundle.", rich_help_panel=RARE
        ),
    ] = False,
    plugin: Annotated[
        bool, typer.Option("--plugin/--no-plugin", help="Build the TensorRT plugin too.", rich_help_panel=RARE)
    ] = True,
    as_json: Json = False,
) -> None:
    """Pack headers, library, plugin, bundle and examples for an application without Python."""
    from vtn_export.bundle import Bundle
    from vtn_export.errors import UsageError
    from vtn_export.runtime.cpu_form import write_cpu_form
    from vtn_export.trt.sdk import write_sdk

    if inline and (target is not None or out is not None):
        raise UsageError("--inline writes beside the bundle and packs nothing: give it without --target and --out")
    opened = Bundle.open(bundle)
    if inline:
        with Steps()("inline graphs"):
            written = write_cpu_form(opened)
    else:
        packed = Path("vtn-sdk.tar.gz") if out is None else out
        written = [write_sdk(opened, target or "cpu", packed, with_plugin=plugin, step=Steps())]
    if as_json:
        print_json({"written": [str(path) for path in written]})
        return
    for path in written:
        typer.echo(str(path))
