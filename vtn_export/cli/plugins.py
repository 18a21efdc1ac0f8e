"""`vtn-export plugins`: build the TensorRT plugin library, and look at one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import print_json, print_table, reported
from vtn_export.cli.options import RARE, Json

app = typer.Typer(help="Build and inspect the TensorRT plugin library.", no_args_is_help=True)

DEFAULT_OUT = Path("vtn-plugins")


@app.command("build")
@reported
def build(
    compute_capability: Annotated[
        list[str] | None,
        typer.Option("--compute-capability", help="GPU generation such as 8.7; repeatable (default: all)."),
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="A device of `engines/targets`, for its GPU.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the library and its sidecar.")] = DEFAULT_OUT,
    cross: Annotated[str | None, typer.Option("--cross", help="aarch64: build for a Jetson on this machine.")] = None,
    cuda: Annotated[Path | None, typer.Option("--cuda", help="Root of a CUDA toolkit (default: found).")] = None,
    tensorrt_include: Annotated[
        Path | None, typer.Option("--tensorrt-include", help="Folder of NvInferRuntime.h (default: found).")
    ] = None,
    target_libraries: Annotated[
        Path | None,
        typer.Option("--target-libraries", help="--cross: CUDA's lib folder for the target.", rich_help_panel=RARE),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compile the library; takes a given compiler, the system's, or the wheels of the `plugins` extra."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from vtn_export.trt import plugins

    capabilities = list(compute_capability or [])
    if target is not None:
        from vtn_export.trt import targets

        capabilities.extend(targets.load(target).compute_capabilities)
    request = plugins.BuildRequest(
        out, tuple(capabilities), cross=cross, cuda=cuda, tensorrt_include=tensorrt_include,
        target_libraries=target_libraries,
    )  # fmt: skip
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("configure", total=None)
        library = plugins.build(
            request,
            lambda done, total, what: bar.update(task, description=what, completed=done, total=total or None),
        )
    sidecar = plugins.read_sidecar(library)
    if as_json:
        print_json({"library": str(library), **asdict(sidecar)})
        return
    _table(str(library), sidecar)


@app.command("info")
@reported
def info(
    library: Annotated[Path, typer.Argument(help="A libvtn_plugins.so.")],
    as_json: Json = False,
) -> None:
    """Show what a library is, and whether this machine could load it (exit 14 if not)."""
    from vtn_export.errors import PluginError
    from vtn_export.trt import plugins

    found = plugins.inspect_library(library)
    if as_json:
        data = asdict(found)
        print_json({**data, "path": str(found.path), "problems": found.problems})
    else:
        rows = [
            ["version", f"{found.version or 'not stated'}, contract {found.contract_version or 'not stated'}"],
            ["machine", found.machine],
            ["kernels for", ", ".join(found.compute_capabilities)],
            ["exports", "\n".join(found.exports)],
            ["needs", ", ".join(found.needed) + (f"; glibc {found.glibc} or later" if found.glibc else "")],
        ]
        print_table(str(library), ["", ""], rows)
        if found.sidecar is not None:
            _table("sidecar", found.sidecar)
    if found.problems:
        raise PluginError(f"{library}: {'; '.join(found.problems)}")


def _table(title: str, sidecar: object) -> None:
    from vtn_export.trt.plugins import Sidecar

    assert isinstance(sidecar, Sidecar)
    print_table(
        title,
        ["", ""],
        [
            ["version", f"{sidecar.version}, contract {sidecar.contract_version}"],
            ["creators", ", ".join(sidecar.creators)],
            ["kernels for", ", ".join(sidecar.compute_capabilities)],
            ["machine", sidecar.machine],
            ["built with", f"CUDA {sidecar.cuda}, headers of TensorRT {sidecar.tensorrt_headers}"],
            ["SHA-256", sidecar.sha256],
        ],
    )
