"""How the report's charts look: one palette, one layout for wide screens and phones, all text escaped."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vtn_export.deps import require
from vtn_export.evaluate.documents import printable

# Okabe and Ito's palette (2008), told apart by colour-blind readers, too; its yellow is too pale on white
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "pentagon")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Chart:
    """name: of its element and PNG. height: pixels. note: a sentence under it, may be empty. table: rows under it."""

    name: str
    title: str
    figure: Any
    height: int = 340
    note: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=tuple)


@dataclass(frozen=True)
class Fit:
    """time ≈ fixed + slope · frames; r2; largest: the largest residual over the value there.

    Least squares of the residuals over the values: the noise of a time grows with it, and a line that is right to the
    largest time's noise may be far from the smallest.
    """

    fixed: float
    slope: float
    r2: float
    largest: float


def fit_line(points: Mapping[float, float]) -> Fit | None:
    """None for fewer than three points: two are a line whatever they are."""
    if len(points) < 3:
        return None
    x, y = np.array(list(points), np.float64), np.array(list(points.values()), np.float64)
    slope, fixed = (float(value) for value in np.polyfit(x, y, 1, w=1 / np.maximum(np.abs(y), 1e-300)))
    residual = y - (fixed + slope * x)
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float((residual**2).sum()) / spread if spread else 1.0
    return Fit(fixed, slope, r2, float(np.max(np.abs(residual) / np.maximum(np.abs(y), 1e-300))))


def text(value: Any) -> str:
    """A word from a file for Plotly, which reads tags and entities in its texts."""
    return html.escape(printable(value), quote=False)


def shortened(word: Any, most: int) -> str:
    """A word that leaves room for the plot beside it; whole ones stand in what shows on hovering."""
    shown = printable(word)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def figure(traces: Sequence[Any], x: str, y: str, **layout: Any) -> Any:
    """A figure with axis titles (with their units), its legend above, nothing that needs a wide screen."""
    go = require("plotly.graph_objects")
    made = go.Figure(data=list(traces))
    axis = {
        "automargin": True,
        "gridcolor": "#e5e5e5",
        "linecolor": "#444",
        "ticks": "outside",
        "tickcolor": "#444",
        "ticklen": 4,
        "zeroline": False,
        "title": {"standoff": 8},
    }
    made.update_layout(
        template=None,
        font={"family": FONT, "size": 12, "color": "#222"},
        margin={"l": 8, "r": 14, "t": 8, "b": 8, "autoexpand": True},
        paper_bgcolor="#fff",
        plot_bgcolor="#fff",
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1.03,
            "yanchor": "bottom",
            "font": {"size": 11},
            "maxheight": 0.9,
        },
        hovermode="closest",
        hoverlabel={"font": {"family": FONT}},
    )
    made.update_xaxes(**axis, title_text=x)
    made.update_yaxes(**axis, title_text=y)
    made.update_layout(**layout)
    return made


def log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5, or at powers of ten, or at every other one, as its span asks for."""
    positive = [value for value in values if value > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 1.0
    return {"type": "log", "dtick": "D2" if decades < 2 else 1 if decades < 8 else 2}


def milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"
