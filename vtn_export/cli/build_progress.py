"""The builder's phases as one live line with a bar, on stderr."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class BuildProgress:
    """A listener of build events. TensorRT nests phases: the bar is the outermost one's, the text the innermost's."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._title = title
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[phase]}", style="dim", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, phase="")
        self._open: list[tuple[str, int]] = []

    def __enter__(self) -> BuildProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def announce(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "stage":
            self._show(description=f"{self._title}: {event['stage']}", phase="", total=None, completed=0)
        elif kind == "warning":
            self.announce(f"warning: {event['message']}")
        elif kind == "phase":
            self._open.append((event["name"], event["steps"]))
            outermost = len(self._open) == 1
            self._show(phase=event["name"], **({"total": event["steps"], "completed": 0} if outermost else {}))
        elif kind == "step":
            if self._open and event["name"] == self._open[0][0]:
                self._show(completed=event["step"] + 1)
            else:
                steps = dict(self._open).get(event["name"])
                of = f" {event['step'] + 1}/{steps}" if steps else ""
                self._show(phase=f"{event['name']}{of}")
        elif kind == "phase_done":
            self._open = [entry for entry in self._open if entry[0] != event["name"]]

    def _show(self, **changes: Any) -> None:
        self._progress.update(self._task, **changes)
