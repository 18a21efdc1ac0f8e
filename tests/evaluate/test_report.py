"""`report`: one file in a real browser at two widths, what it is made of, and what it says to bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clihelp import Cli, Result
from vtn_export import errors
from vtn_export.bundle import LABELS, MANIFEST
from vtn_export.evaluate.report.browser import DRAWN, FLAGS, PROGRAMS, find_chromium
from vtn_export.evaluate.report.charts import fit_line, text
from vtn_export.evaluate.report.page import Section, page
from vtn_export.evaluate.report.strip import likeliest as strip_classes
from vtn_export.untrusted import sha256
from vtn_export.video import shipped_clip

pytest.importorskip("plotly", reason="plotly is not installed: pip install 'vtn-export[report]'")
# a minute of work, of which the browser's start is most; a busy machine takes many for it
pytestmark = pytest.mark.timeout(1800)
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "a & b <b>bold</b>", "\x1b[2J", "é ”"]
# what a report of everything shows; sections without numbers have none
CHARTS = {
    "work", "timeline", "errors", "layers-backbone", "layers-temporal", "confusion", "percentiles", "ecdf", "time",
    "memory", "split", "roofline",
}  # fmt: skip


def labelled(bundle: Path, labels: list[str], to: Path) -> Path:
    """A copy of the bundle with these class names."""
    shutil.copytree(bundle, to)
    (to / LABELS).write_text("\n".join(labels) + "\n", encoding="utf-8")
    manifest = json.loads((to / MANIFEST).read_text())
    manifest["files"][LABELS] = sha256(to / LABELS)
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to


def evaluation(labels: list[str]) -> dict[str, Any]:
    counts = [
        [3 if i == j else int(j == (i + 1) % len(labels)) for j in range(len(labels))] for i in range(len(labels))
    ]
    return {
        "schema": "vtn-export/eval",
        "schema_version": 1,
        "labels": labels,
        "videos": 20,
        "top1": 0.75,
        "top1_interval": [0.53, 0.89],
        "top5": 1.0,
        "confusion": counts,
    }


@pytest.fixture(scope="module")
def bundle(small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labelled(small_bundle, HOSTILE, tmp_path_factory.mktemp("report") / "bundle")


@pytest.fixture(scope="module")
def validated(cli: Cli, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = cli("validate", bundle, "--layers", "--json")
    assert found.code == 0, found.err
    path = tmp_path_factory.mktemp("validated") / "validate.json"
    path.write_text(found.out)
    return path


@pytest.fixture(scope="module")
def report(cli: Cli, bundle: Path, validated: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Everything there is: layers and an evaluation given, the rest measured by the command itself."""
    folder = tmp_path_factory.mktemp("html")
    (folder / "eval.json").write_text(json.dumps(evaluation(HOSTILE)))
    given = ("--validate", validated, "--eval", folder / "eval.json")
    done = cli("report", bundle, "-o", folder / "report.html", *given, "--quick", "--frames", "12", "--json")
    assert done.code == 0, done.err
    return folder / "report.html", done


def test_everything_is_on_the_page(report: tuple[Path, Result]) -> None:
    path, done = report
    assert set(done.json["charts"]) == CHARTS and done.json["missing"] == {}
    html = path.read_text(encoding="utf-8")
    for heading in ("Model and graphs", "A sample video", "Accuracy", "Labelled videos", "Speed and memory", "Engines"):
        assert f"<h2>{heading}</h2>" in html
    for words in ("None built.", "R²", "largest residual", "p99", "fingerprint", "SHA-256", "top-1", "75.0% (95 %"):
        assert words in html, words
    assert html.count("plotly.js v") <= 2 and len(html) < 6 << 20  # the library is in it once
    assert "mode chunked" in done.err and "hashes" in done.err  # progress


def test_words_of_files_stay_words(report: tuple[Path, Result]) -> None:
    html = report[0].read_text(encoding="utf-8")
    assert "<img src=x" not in html and "<script>alert" not in html and "\x1b" not in html
    assert html.count("<script") == 3 and html.count("</script>") == 3
    assert "script-src 'sha256-" in html and "unsafe-inline'; img-src data:" in html


class Watched:
    """A page that keeps what the console said, what was asked for, and what failed."""

    def __init__(self, browser: Any, path: Path, width: int) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, has_touch=width < 600)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.goto(path.as_uri(), timeout=0)
        self.page.wait_for_function(DRAWN, timeout=0)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    try:
        program = find_chromium()
    except errors.MissingDependencyError:
        pytest.skip("no Chromium here: bash .ci/system.sh browser")
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, headless=True, args=list(FLAGS), timeout=0)
        yield made
        made.close()


_SHAPES = """
(name) => {
  const chart = document.getElementById(name);
  const box = chart.getBoundingClientRect();
  const marks = chart.querySelectorAll(".trace path, .points path, .heatmaplayer image");
  const sizes = [...marks].map(mark => mark.getBoundingClientRect()).filter(b => b.width + b.height > 0);
  const outside = [...chart.querySelectorAll("text, .legend, image")].filter(mark => {
    const b = mark.getBoundingClientRect();
    const [left, right] = [b.left < box.left - 1, b.right > box.right + 1];
    return b.width > 0 && (left || right || b.top < box.top - 1 || b.bottom > box.bottom + 1);
  });
  const plot = chart.querySelector(".nsewdrag").getBoundingClientRect();
  return { box: [box.width, box.height], marks: sizes.length, plot: [plot.width, plot.height],
           outside: outside.map(mark => mark.textContent || mark.tagName) };
}
"""


_PICTURES = "[...document.querySelectorAll('#timeline .layer-above image')].map(i => i.getBoundingClientRect().width)"


@pytest.mark.parametrize("width", [390, 1280])
def test_every_chart_draws_in_a_browser(report: tuple[Path, Result], browser: Any, width: int) -> None:
    """Marks with sizes, text inside its chart, a clean console, no request, nothing wider than the screen."""
    path, _ = report
    watched = Watched(browser, path, width)
    for name in sorted(CHARTS):
        found = watched.page.evaluate(_SHAPES, name)
        assert found["marks"] > 0 and min(found["box"]) > 100, (name, found)
        assert found["plot"][0] > 0.45 * found["box"][0] and found["plot"][1] > 90, (name, found)
        assert not found["outside"], (name, found)
    page_width = watched.page.evaluate("document.documentElement.scrollWidth")
    assert page_width <= width
    pictures = watched.page.evaluate(_PICTURES)
    assert len(pictures) == (4 if width < 600 else 8) and min(pictures) > 25
    names = watched.page.evaluate("document.getElementById('timeline').textContent")
    assert HOSTILE[0] in names and HOSTILE[1] in names and "a & b <b>bold</b>" in names
    assert watched.said == []
    assert watched.asked == [path.as_uri()]
    watched.page.close()


def test_nothing_can_load_even_if_it_is_asked(browser: Any, tmp_path: Path) -> None:
    """The page's own policy: an injected script or picture is refused by the browser."""
    path = tmp_path / "page.html"
    html = page("a title", ["a lead"], [Section("s", "S")])
    injected = "<script>window.bad = 1</script><img src='https://example.invalid/x.png'>"
    path.write_text(html.replace("</main>", f"{injected}</main>"), encoding="utf-8")
    watched = Watched(browser, path, 800)
    assert watched.page.evaluate("window.bad") is None
    assert all("Content Security Policy" in line for line in watched.said) and len(watched.said) >= 2
    watched.page.close()


def test_charts_as_png(cli: Cli, bundle: Path, validated: Path, browser: Any, tmp_path: Path) -> None:
    """Through the command line, from given results alone; the browser fixture says whether there is one."""
    bench = cli("bench", bundle, "--part", "temporal", "--mode", "none", "--frames", "2,9,20", "--duration", "10ms",
                "--min-runs", 3, "--json", tmp_path / "bench.json")  # fmt: skip
    assert bench.code == 0, bench.err
    given = ("--validate", validated, "--bench", tmp_path / "bench.json", "--frames", "4")
    command = [str(value) for value in ("report", bundle, "-o", tmp_path / "r.html", "--png", tmp_path / "png", *given)]
    # a process of its own: playwright's synchronous interface runs once a thread
    done = subprocess.run([sys.executable, "-m", "vtn_export", *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in (tmp_path / "png").iterdir()}
    assert names == CHARTS - {"confusion", "split"}
    for path in (tmp_path / "png").iterdir():
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) > 5000, path
        assert int.from_bytes(data[16:20], "big") > 1500  # twice the page's pixels


def test_a_line_through_points() -> None:
    fit = fit_line({n: 3 + 0.5 * n for n in (16, 64, 250)})
    assert fit is not None and fit.r2 == pytest.approx(1) and fit.largest < 1e-9
    assert (fit.fixed, fit.slope) == (pytest.approx(3), pytest.approx(0.5))
    bent = fit_line({n: n**2 for n in (1, 2, 3, 4, 10)})
    assert bent is not None and bent.r2 < 0.97 and bent.largest > 0.2
    assert fit_line({1: 1, 2: 2}) is None


def test_a_line_is_right_to_the_smallest_time_too() -> None:
    """A tenth more at the largest of three decades must not take the line away from the others."""
    times = {n: 1 + 0.5 * n for n in (1, 4, 16, 64, 250, 1000)}
    times[1000] *= 1.1
    fit = fit_line(times)
    assert fit is not None and fit.fixed > 0 and fit.largest < 0.12


def test_classes_that_led_for_a_time_are_shown() -> None:
    shown = np.zeros((4, 9))
    shown[:, 7] = (0.1, 0.1, 0.1, 0.4)  # the likeliest at the end, never of all
    shown[:, 1:6] = (0.3, 0.2, 0.1, 0.02, 0.01)
    shown[1, 8] = 0.9  # for a moment
    assert strip_classes(shown) == [7, 1, 2, 3, 8]


def test_words_for_plotly() -> None:
    assert text("<b>x</b> & \x00y") == "&lt;b&gt;x&lt;/b&gt; &amp; �y"


@pytest.mark.parametrize("target", ["folder", "under a file", "png"])
def test_a_report_that_cannot_be_written_is_said_before_any_work(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr("vtn_export.bundle.Bundle.open", lambda *_: pytest.fail("worked"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    options = {
        "folder": ("-o", tmp_path / "folder"),
        "under a file": ("-o", tmp_path / "file" / "report.html"),
        "png": ("-o", tmp_path / "report.html", "--png", tmp_path / "file"),
    }[target]
    done = cli("report", bundle, *options)
    assert done.code == errors.OutputError.exit_code and len(done.err.strip().splitlines()) == 1, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("option", "content", "words"),
    [
        ("--bench", '{"schema": "vtn-export/validate", "schema_version": 1}', "not a result of `vtn-export bench"),
        ("--validate", '{"schema": "vtn-export/validate", "schema_version": 2}', "got schema version 2, expected 1"),
        ("--validate", '{"schema": "vtn-export/validate", "schema_version": 1, "checks": 3}', "malformed"),
        ("--eval", "{", "cannot be read"),
        ("--eval", json.dumps({**evaluation(["a", "b"]), "confusion": [[1]]}), "confusion is not 2 × 2"),
        ("--eval", json.dumps({**evaluation(["a", "b"]), "labels": ["a", 3]}), "labels[1]: got 3, expected text"),
    ],
)
def test_results_that_are_none(cli: Cli, bundle: Path, tmp_path: Path, option: str, content: str, words: str) -> None:
    (tmp_path / "given.json").write_text(content)
    done = cli("report", bundle, "-o", tmp_path / "report.html", option, tmp_path / "given.json")
    assert done.code == errors.ShapeError.exit_code and words in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("--backend", "abacus"), errors.UsageError, "--backend"),
        (("--video", "no.mp4"), errors.VideoError, "no.mp4"),
        (("--validate", "no.json"), errors.ShapeError, "No such file"),
    ],
)
def test_bad_options_are_one_line(
    cli: Cli, bundle: Path, tmp_path: Path, arguments: tuple[str, ...], kind: type[errors.VtnError], words: str
) -> None:
    done = cli("report", bundle, "-o", tmp_path / "report.html", *arguments)
    assert done.code == kind.exit_code and words in done.err and done.err.count("error: ") == 1, done.err
    assert not list(tmp_path.iterdir())


def test_without_a_browser_png_names_what_to_install(
    cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtn_export.evaluate.report.browser.shutil.which", lambda _: None)
    done = cli("report", bundle, "-o", tmp_path / "report.html", "--png", tmp_path / "png")
    assert done.code == errors.MissingDependencyError.exit_code and "apt-get install chromium" in done.err
    assert PROGRAMS and not list(tmp_path.iterdir())


def test_results_of_another_bundle_are_taken_and_said(
    cli: Cli, bundle: Path, report: tuple[Path, Result], validated: Path, tmp_path: Path
) -> None:
    document = json.loads(validated.read_text())
    document["precision"] = "fp16"
    (tmp_path / "other.json").write_text(json.dumps(document))
    bench = cli("bench", bundle, "--part", "temporal", "--mode", "none", "--frames", "2", "--duration", "10ms",
                "--min-runs", 2, "--json", tmp_path / "bench.json")  # fmt: skip
    assert bench.code == 0, bench.err
    document = json.loads((tmp_path / "bench.json").read_text())
    document["bundle"]["files"]["temporal.onnx"] = "0" * 64
    (tmp_path / "bench.json").write_text(json.dumps(document))
    given = ("--validate", tmp_path / "other.json", "--bench", tmp_path / "bench.json", "--frames", "2")
    done = cli("report", bundle, "-o", tmp_path / "r.html", *given, "--video", shipped_clip())
    assert done.code == 0, done.err
    assert (
        "another precision: fp16, not fp32" in done.err and "other files than the bundle's: temporal.onnx" in done.err
    )
