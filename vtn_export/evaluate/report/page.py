"""The HTML: one file, nothing loaded from anywhere. A policy in it forbids requests and scripts but its own two."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vtn_export.deps import require
from vtn_export.evaluate.documents import printable
from vtn_export.evaluate.report.charts import FONT, Chart

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass
class Section:
    """A heading with tables (columns may be empty: then the first cell of a row is its head) and charts."""

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; font: 15px/1.5 {FONT}; color: #222; background: #fff; overflow-wrap: anywhere; }}
main {{ max-width: 1080px; margin: 0 auto; padding: 12px 14px 48px; }}
h1 {{ font-size: 1.5rem; margin: .4em 0 .1em; }}
h2 {{ font-size: 1.2rem; margin: 1.8em 0 .4em; border-bottom: 1px solid #ddd; padding-bottom: .2em; }}
h3 {{ font-size: 1rem; margin: 1.4em 0 .2em; }}
p.lead, p.note {{ color: #555; margin: .3em 0 .8em; font-size: .9rem; }}
nav {{ font-size: .9rem; }} nav a {{ margin-right: .9em; white-space: nowrap; color: {"#0072B2"}; }}
.chart {{ width: 100%; }}
.wide {{ overflow-x: auto; margin: .5em 0; -webkit-overflow-scrolling: touch; }}
table {{ border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .25em .7em .25em 0; border-bottom: 1px solid #eee; vertical-align: top; }}
td {{ overflow-wrap: normal; white-space: pre; }}
thead th {{ color: #555; font-weight: 600; white-space: nowrap; }}
table.facts td {{ overflow-wrap: anywhere; white-space: normal; }}
table.facts th {{ white-space: nowrap; font-weight: 600; }}
td.bad {{ color: #a33a00; font-weight: 700; }}
"""

_DRAW = """
"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const coarse = window.matchMedia("(pointer: coarse)").matches;
const narrow = window.innerWidth < 600;

function halved(images) {  // a row of pictures too small to see: every other one, twice as wide
  const count = images.length;
  const kept = images.filter((_, index) => index % 2 === 0);
  return kept.map(image => ({ ...image, sizex: 2 * image.sizex, x: image.x + 0.5 / count }));
}

for (const [name, chart] of Object.entries(charts)) {
  if (coarse) { chart.layout.dragmode = false; }  // a finger scrolls the page
  if (narrow && chart.layout.images) { chart.layout.images = halved(chart.layout.images); }
  Plotly.newPlot(name, chart.data, chart.layout, { responsive: true, displayModeBar: false });
}
"""


def page(title: str, lead: Iterable[str], sections: Sequence[Section]) -> str:
    """The whole file. Every word that is not this module's own is escaped here."""
    plotly = require("plotly.offline").get_plotlyjs()
    charts = {chart.name: chart for section in sections for chart in section.charts}
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_digest(plotly)} {_digest(_DRAW)}",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    data = {name: json.loads(chart.figure.to_json(validate=False)) for name, chart in charts.items()}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f"<h1>{_escape(title)}</h1>",
        *(f'<p class="lead">{_escape(line)}</p>' for line in lead),
        "<nav>" + "".join(f'<a href="#s-{s.name}">{_escape(s.title)}</a>' for s in sections) + "</nav>",
        *(_section(section) for section in sections),
        "</main>",
        f'<script type="application/json" id="charts">{_json(data)}</script>',
        f"<script>{plotly}</script>",
        f"<script>{_DRAW}</script>",
        "</body></html>",
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    parts = [f'<section id="s-{section.name}"><h2>{_escape(section.title)}</h2>']
    parts += [_table(*table) for table in section.tables]
    parts += [f'<p class="note">{_escape(note)}</p>' for note in section.notes]
    for chart in section.charts:
        parts.append(f"<h3>{_escape(chart.title)}</h3>")
        parts.append(f'<div class="chart" id="{chart.name}" style="height:{chart.height}px"></div>')
        if chart.note:
            parts.append(f'<p class="note">{_escape(chart.note)}</p>')
        if chart.rows:
            parts.append(_table(chart.columns, chart.rows))
    return "\n".join([*parts, "</section>"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    if not columns:
        body = "".join(
            f"<tr><th>{_escape(row[0])}</th>" + "".join(_cell(cell) for cell in row[1:]) + "</tr>" for row in rows
        )
        return f'<div class="wide"><table class="facts"><tbody>{body}</tbody></table></div>'
    head = "".join(f"<th>{_escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: str) -> str:
    bad = ' class="bad"' if value == "FAILED" else ""
    return f"<td{bad}>{_escape(value)}</td>"


def _escape(value: Any) -> str:
    lines = str(value).split("\n")
    return "\n".join(html.escape(printable(line)) for line in lines)


def _json(data: Any) -> str:
    """JSON inside a script element: no `<` that could end it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _digest(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
