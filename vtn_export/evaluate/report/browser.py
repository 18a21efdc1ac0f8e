"""The report in headless Chromium, for its charts as PNG: the system's browser, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vtn_export.bundle import writing_file
from vtn_export.deps import require
from vtn_export.errors import MissingDependencyError

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# as root, in a container, without a GPU; and none of the browser's own requests
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PATIENCE = 300_000  # milliseconds: small boards and busy machines take minutes to start a browser
DRAWN = "() => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('.main-svg'))"
WIDTH, SCALE = 900, 2  # CSS pixels of the page, and pixels for each


def find_chromium() -> str:
    """Raises MissingDependencyError."""
    for program in PROGRAMS:
        found = shutil.which(program)
        if found is not None:
            return found
    raise MissingDependencyError(f"no Chromium for --png (looked for {', '.join(PROGRAMS)}); apt-get install chromium")


@contextmanager
def opened(report: Path, *, width: int = WIDTH, height: int = 1000, scale: float = SCALE) -> Iterator[Any]:
    """A playwright page that shows the report, all charts drawn. Raises MissingDependencyError."""
    program = find_chromium()
    api = require("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS), timeout=PATIENCE)
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=scale)
            page.goto(report.absolute().as_uri(), timeout=PATIENCE)
            page.wait_for_function(DRAWN, timeout=PATIENCE)
            yield page
        finally:
            browser.close()


def write_pngs(
    report: Path, names: Sequence[str], folder: Path, progress: Callable[[int], None] = lambda _: None
) -> list[Path]:
    """FOLDER/NAME.png for every chart of the report. Raises OutputError, MissingDependencyError."""
    written = []
    with opened(report) as page:
        for name in names:
            picture = page.locator(f"[id='{name}']").screenshot(type="png", timeout=PATIENCE)
            target = folder / f"{name}.png"
            with writing_file(target) as temporary:
                temporary.write_bytes(picture)
            written.append(target)
            progress(1)
    return written
