"""Options that several commands share, each defined once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vtn_export.errors import UsageError

if TYPE_CHECKING:  # the command line's help must not pay for these
    from vtn_export.backends import Backend as BackendName
    from vtn_export.bundle import Bundle
    from vtn_export.spec import Part

DEFAULT_BUNDLE = Path("vtn-bundle")

RARE = "Rare options"

BundleArgument = Annotated[Path, typer.Argument(help="The folder that `vtn-export onnx` wrote.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of tables.")]
Backend = Annotated[
    str,
    typer.Option(
        "--backend",
        help="ort (ONNX Runtime), openvino, trt (an engine, on a GPU), torch (the reference), "
        "or auto: the fastest here, by a short race.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint", help="The weights the bundle was exported from, for --backend torch.", rich_help_panel=RARE
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads (default: every processor).", rich_help_panel=RARE),
]
Frames = Annotated[
    str | None,
    typer.Option("--frames", help="Frames spread evenly over the video, or `all` (default: the bundle's)."),
]
Chunk = Annotated[int, typer.Option("--chunk", min=1, help="Frames a call of the backbone.")]


def one_of(value: str, allowed: tuple[str, ...], option: str) -> str:
    """`value` if it is allowed. Raises UsageError."""
    if value not in allowed:
        raise UsageError(f"{option}: got {value!r}, expected one of {', '.join(allowed)}")
    return value


def check_backend(value: str) -> None:
    """Raises UsageError for a backend that does not exist; before anything is opened."""
    from vtn_export.backends import BACKENDS

    one_of(value, (*BACKENDS, "auto"), "--backend")


def backend_of(
    value: str, bundle: Bundle, *, threads: int | None = None, parts: Sequence[Part] | None = None
) -> BackendName:
    """The backend of `--backend`; for `auto` the winner of the race, which is said on stderr. Raises UsageError."""
    check_backend(value)
    if value != "auto":
        return cast("BackendName", value)
    from vtn_export.cli.console import note
    from vtn_export.evaluate.race import choose

    choice = choose(bundle, parts, threads=threads)
    note(choice.describe())
    return choice.backend


def seconds_of(text: str, option: str) -> float:
    """`10s`, `500ms`, `2m`, or a number of seconds. Raises UsageError, also for zero and less."""
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|)", text.strip())
    seconds = float(found[1]) * {"ms": 1e-3, "s": 1, "": 1, "m": 60}[found[2]] if found else 0.0
    if not 0 < seconds <= 86400:
        raise UsageError(f"{option}: got {text!r}, expected a time above 0 such as 10s, 500ms or 2m (at most a day)")
    return seconds


def frame_count(value: str | None, default: int) -> int | None:
    """--frames as a number, None for `all`. Raises UsageError."""
    if value is None:
        return default
    if value == "all":
        return None
    if not value.isdigit() or int(value) < 1:
        raise UsageError(f"--frames: got {value!r}, expected a number of at least 1 or `all`")
    return int(value)
