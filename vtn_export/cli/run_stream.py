"""`vtn-export run --stream`: what it prints, live at a terminal, a line a result elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import typer

from vtn_export.cli.console import note, print_json_line
from vtn_export.cli.options import backend_of, check_backend, one_of
from vtn_export.errors import OutputError, UsageError, VtnError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vtn_export.runtime.live import Live
    from vtn_export.runtime.stream import Result


@dataclass(frozen=True)
class StreamRequest:
    """The options of `--stream`; None: the default."""

    source: str
    window: int | None
    stride: int | None
    policy: str | None
    queue: int | None
    deadline: float | None
    every: int
    index_by: str
    size: str | None
    pixel_format: str | None
    source_format: str | None
    source_options: list[str]


def run_stream(
    bundle: Path,
    request: StreamRequest,
    *,
    backend: str,
    top: int,
    checkpoint: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Follow the source to its end, to Ctrl-C or SIGTERM; exit with what that means."""
    out: _Lines | _Table = _Lines() if as_json else _Table()
    try:
        with _live(bundle, request, backend, checkpoint, threads) as (live, told, labels):
            code = _follow(live, told, labels, out, top)
    except VtnError as error:
        if as_json:  # one line, as everything else here
            print_json_line({"error": " ".join(str(error).split()), "exit_code": error.exit_code})
            note(f"error: {' '.join(str(error).split())}")
            raise typer.Exit(error.exit_code) from None
        raise
    if code:
        raise typer.Exit(code)


@contextmanager
def _written() -> Iterator[None]:
    """Raises OutputError, and BrokenPipeError where whoever read our output has gone."""
    try:
        yield
    except OSError as error:
        # what is still buffered must not fail again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"standard output: cannot be written ({error.strerror or error})") from None


@contextmanager
def _live(
    bundle: Path, request: StreamRequest, backend: str, checkpoint: Path | None, threads: int | None
) -> Iterator[tuple[Live, dict[str, Any], list[str]]]:
    """The stream, what a summary says of it besides its counters, and the classes."""
    from vtn_export.backends import Sessions
    from vtn_export.bundle import Bundle
    from vtn_export.runtime.frame_queue import POLICIES
    from vtn_export.runtime.live import Live
    from vtn_export.runtime.stream import DEFAULT_STRIDE
    from vtn_export.video.live import INDEX_BY, LiveSource

    check_backend(backend)
    if request.policy is not None:
        one_of(request.policy, POLICIES, "--policy")
    one_of(request.index_by, INDEX_BY, "--index")
    options = {}
    for option in request.source_options:
        name, equals, value = option.partition("=")
        if not name or not equals:
            raise UsageError(f"--source-option: got {option!r}, expected NAME=VALUE")
        options[name] = value
    source = LiveSource(
        request.source,
        size=request.size,
        pixel_format=request.pixel_format,
        container=request.source_format,
        options=options,
        every=request.every,
        index_by=cast(Any, request.index_by),
    )
    opened = Bundle.open(bundle)
    labels = opened.labels()
    chosen = backend_of(backend, opened, threads=threads, parts=("backbone", "temporal"))
    with Sessions(opened, chosen, checkpoint=checkpoint, threads=threads) as sessions:
        live = Live(
            sessions,
            source,
            request.window or 0,
            request.stride or DEFAULT_STRIDE,
            policy=cast(Any, request.policy),
            queue=request.queue or 0,
            deadline=request.deadline or 0.0,
        )
        told = {
            "bundle": str(bundle),
            "source": request.source,
            "backend": chosen,
            "emulated": sessions.emulated,
            "random_weights": opened.manifest.random_weights,
            "window": live.options.window,
            "stride": live.options.stride,
            "policy": live.options.policy,
        }
        yield live, told, labels


def _follow(live: Live, told: dict[str, Any], labels: list[str], out: _Lines | _Table, top: int) -> int:
    """Print results and a summary. Returns the exit code."""
    from vtn_export.runtime.live import stop_signals

    with out, stop_signals() as stop, contextlib.closing(live.results(stop)) as results:
        for result in results:
            with _written():
                out.result(live, told, result, result.top(min(top, len(labels)), labels))
    code = live.error.exit_code if live.error else stop.exit_code or 0
    with _written():
        out.summary(live, {**told, **live.summary(), "exit_code": code})
    if live.error is not None:
        note(f"error: {' '.join(str(live.error).split())}")
    return code


class _Lines:
    """JSON Lines: one a result, the last one a summary."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def result(self, live: Live, told: dict[str, Any], result: Result, ranking: list[tuple[str, float]]) -> None:
        print_json_line(
            {
                "type": "result",
                "frame_index": result.frame_index,
                "frames": result.frames,
                "latency_seconds": round(result.latency, 6),
                "top": [{"label": label, "probability": probability} for label, probability in ranking],
                "logits": [float(value) for value in result.logits],
            }
        )

    def summary(self, live: Live, summary: dict[str, Any]) -> None:
        error = None if live.error is None else " ".join(str(live.error).split())
        print_json_line({"type": "summary", **summary, "error": error})


class _Table:
    """A table that follows the source at a terminal; in a pipe or file a line a result."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live as Screen

        self._console = Console(markup=False, highlight=False)
        self._screen = Screen(console=self._console, auto_refresh=False) if self._console.is_terminal else None

    def __enter__(self) -> None:
        if self._screen is not None:
            self._screen.start()

    def __exit__(self, *_: object) -> None:
        if self._screen is not None:
            self._screen.stop()

    def result(self, live: Live, told: dict[str, Any], result: Result, ranking: list[tuple[str, float]]) -> None:
        if self._screen is None:
            names = "  ".join(f"{label} {probability:.4f}" for label, probability in ranking)
            typer.echo(f"frame {result.frame_index}: {names}")
        else:
            self._screen.update(_table(live, told, result, ranking), refresh=True)

    def summary(self, live: Live, summary: dict[str, Any]) -> None:
        ended = {"source": "the source ended", "stopped": "stopped", "error": "the source failed"}[live.ended]
        text = f"{ended} after {summary['frames']} frames, {summary['results']} results"
        for name in ("dropped", "late", "damaged"):
            if summary[name]:
                text += f", {summary[name]} {name}"
        if summary["frames_per_second"]:
            text += f"; {summary['frames_per_second']:.1f} frames/s"
        if summary["latency_seconds"]:
            text += f", latency {1000 * summary['latency_seconds']['p50']:.0f} ms in the middle"
        typer.echo(text)
        if summary["random_weights"]:
            note("the bundle has random weights: the numbers are right, the names mean nothing")


def _table(live: Live, told: dict[str, Any], result: Result, ranking: list[tuple[str, float]]) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    now = live.summary()
    table = Table(header_style="bold")
    for column in ("class", "probability", ""):
        table.add_column(column, no_wrap=True)
    for label, probability in ranking:
        table.add_row(Text(label), f"{probability:.4f}", ProgressBar(1.0, probability, width=30))
    speed = f"{now['frames_per_second']:.1f} frames/s" if now["frames_per_second"] else ""
    status = [
        f"frame {result.frame_index}",
        f"{result.frames} of {told['window']} in the window",
        speed,
        f"latency {1000 * result.latency:.0f} ms",
        f"{now['dropped']} dropped",
        f"{now['late']} late",
    ]
    title = Text(f"{told['source']}  ({told['backend']}, every {told['stride']} frames)", style="bold")
    return Group(title, table, Text(" · ".join(part for part in status if part), style="dim"))
