"""Progress of a batch run on stderr: done, rate, remaining time; lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vtn_export.cli.console import note

if TYPE_CHECKING:
    from vtn_export.batch.run import Progress
    from vtn_export.batch.stage import Outcome

LINE_SECONDS = 30.0  # between lines in a log


@contextmanager
def watching() -> Iterator[tuple[Progress, Callable[[], float]]]:
    """(what to give to run_batch, seconds since the work began)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from vtn_export.batch.run import Progress

    console = Console(stderr=True)
    rate = TextColumn("{task.fields[rate]:.2f} videos/s, {task.fields[failed]} failed")
    bar = Bar(
        TextColumn("batch"),
        BarColumn(),
        MofNCompleteColumn(),
        rate,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    state = {"begun": time.monotonic(), "line": time.monotonic(), "done": 0, "failed": 0, "todo": 0}
    task = bar.add_task("batch", total=None, rate=0.0, failed=0)

    def start(total: int, done: int) -> None:
        state.update(begun=time.monotonic(), todo=total - done)
        bar.reset(task, total=total, completed=done)

    def advance(outcome: Outcome) -> None:
        state["done"] += 1
        state["failed"] += outcome.error is not None
        now = time.monotonic()
        speed = state["done"] / max(now - state["begun"], 1e-9)
        bar.update(task, advance=1, rate=speed, failed=state["failed"])
        if not console.is_terminal and now - state["line"] >= LINE_SECONDS:
            state["line"] = now
            left = (state["todo"] - state["done"]) / speed
            note(f"batch: {state['done']} of {state['todo']}, {speed:.2f} videos/s, {left:.0f} s left")

    with bar:
        yield Progress(start, advance), lambda: time.monotonic() - state["begun"]
