"""What every command prints with: results on stdout, progress and errors on stderr, one line an error."""

from __future__ import annotations

import functools
import json
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer

from vtn_export.errors import INTERRUPTED_EXIT_CODE, MemoryForecastError, OutputError, VtnError

P = ParamSpec("P")
R = TypeVar("R")


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors a user can fix into one line and their exit code; with --json also into JSON."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except VtnError as error:
            fail(str(error), error.exit_code, as_json=bool(kwargs.get("as_json")))
        except KeyboardInterrupt:
            fail("interrupted; nothing was changed", INTERRUPTED_EXIT_CODE, as_json=bool(kwargs.get("as_json")))
        except MemoryError:
            fail(
                "out of memory; use --mode chunked, a smaller --chunk or --batch",
                MemoryForecastError.exit_code,
                as_json=bool(kwargs.get("as_json")),
            )
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has gone: nobody to tell
            raise typer.Exit(OutputError.exit_code) from None
        except OSError as error:  # a disk that is full, a path nobody may enter: no part of the work foresaw it
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}", OutputError.exit_code, as_json=bool(kwargs.get("as_json")))

    return run


def fail(message: str, code: int, *, as_json: bool = False) -> NoReturn:
    """Print the one line and exit with `code`."""
    line = " ".join(message.split())
    if as_json:
        print_json({"error": line, "exit_code": code})
    typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


def print_json(data: Any) -> None:
    """One JSON document on stdout; numbers that JSON lacks become strings."""
    typer.echo(json.dumps(_plain(data), indent=2, allow_nan=False))


def print_json_line(data: Any) -> None:
    """One line of JSON Lines on stdout, at once."""
    typer.echo(json.dumps(_plain(data), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return str(value)
    return value


def note(message: str) -> None:
    """A line for the person at the terminal, on stderr."""
    typer.echo(message, err=True)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table on stdout."""
    from rich.console import Console
    from rich.table import Table

    # markup off: "[batch, frames]" is a shape here; a pipe or file has no width of its own
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(header_style="bold", show_header=any(columns))
    for index, column in enumerate(columns):
        # where a screen is too narrow, names of layers are broken before numbers are
        cells = [row[index] for row in rows]
        whole = all(len(cell) <= 40 for cell in cells) if index == 0 else not any(" " in cell for cell in cells)
        most = max((len(cell) for cell in cells), default=0)
        title_lines = textwrap.wrap(column, max(most, 9), break_long_words=False) if index and whole else [column]
        table.add_column("\n".join(title_lines), overflow="fold", no_wrap=whole)
    for row in rows:
        table.add_row(*row)
    console.print(title, style="bold", soft_wrap=True)
    console.print(table)


class Steps:
    """Stages of a long command: a spinner with the stage's name, and its seconds when it is done."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        import time

        start = time.perf_counter()
        with self.console.status(name):
            yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
        self.console.print(f"[green]✓[/green] {name} [dim]{self.seconds[name]:.1f} s[/dim]")


@contextmanager
def progress_bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr; yields a function that takes how much was done since the last call."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # in a log file a bar that goes away would leave an empty line behind
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)
