"""Charts of validate and eval results: how errors are distributed, where they start, what is confused with what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vtn_export.deps import require
from vtn_export.evaluate.report.charts import COLORS, SYMBOLS, Chart, figure, log_axis, shortened, text

_MOST_CLASSES = 60  # a larger confusion matrix shows those that are confused most


def number(value: Any) -> float:
    """A number of a document, where NaN and the infinities are words."""
    return float(value)


def charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Histograms of every compared output; the layers' errors where they were looked at."""
    checks = [check for check in document["checks"] if sum(check["errors"]["histogram"])]
    if checks:
        yield _histogram(checks, document["histogram_log10_edges"])
    reports = [report for report in document["layers"] if report["layers"]]
    for report in reports:
        yield _layers(report)


def table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the accuracy table."""
    columns = ["part", "output", "measured", "tolerance", "max abs", "mean abs", "max rel", "cosine", "top-1", "top-5"]
    columns += ["KL", "worst sample", ""]
    rows = []
    for check in document["checks"]:
        errors = check["errors"]
        of = "" if check["source"] == "golden" else f" ({check['source']})"
        rows.append(
            [
                check["part"] + of,
                check["output"],
                *(f"{number(value):.2e}" for value in (check["measured"], check["tolerance"])),
                *(f"{number(errors[key]):.1e}" for key in ("max_abs", "mean_abs", "max_rel")),
                f"{number(check['cosine']):.7f}",
                *("" if check[key] is None else f"{number(check[key]):.1%}" for key in ("top1", "top5")),
                "" if check["kl"] is None else f"{number(check['kl']):.1e}",
                check["worst_sample"],
                "passed" if check["passed"] else "FAILED",
            ]
        )
    return columns, rows


def _histogram(checks: Sequence[Mapping[str, Any]], edges: Sequence[float]) -> Chart:
    go = require("plotly.graph_objects")
    used = [i for check in checks for i, count in enumerate(check["errors"]["histogram"]) if count]
    first, last = min(used), max(used) + 1
    traces = []
    for index, check in enumerate(checks):
        counts, total = check["errors"]["histogram"], max(check["errors"]["count"], 1)
        color = COLORS[index % len(COLORS)]
        traces.append(
            go.Scatter(
                x=[10 ** edges[i] for i in range(first, min(last, len(edges) - 1) + 1)],
                y=[100 * counts[i] / total for i in range(first, min(last, len(counts)))] + [0],
                mode="lines",
                line={"shape": "hv", "color": color, "width": 2},
                fill="tozeroy",
                fillcolor=f"{color}22",
                name=text(f"{check['part']}: {check['output']} ({check['source']})"),
                hovertemplate="%{y:.2g} % of elements from %{x:.1e}<extra>%{fullData.name}</extra>",
            )
        )
    exact = sum(check["errors"]["exact"] for check in checks)
    made = figure(traces, "absolute error of an element", "share of elements (%)")
    made.update_xaxes(type="log", exponentformat="power", dtick=1)
    made.update_yaxes(rangemode="tozero")
    note = f"Four bins a decade. {exact} elements are equal and in no bin." if exact else "Four bins a decade."
    return Chart("errors", "Error histograms", made, height=340 + 11 * len(checks), note=note)


def _layers(report: Mapping[str, Any]) -> Chart:
    go = require("plotly.graph_objects")
    layers = report["layers"]
    names = [text(layer["layer"]) for layer in layers]
    values = [number(layer["error"]) for layer in layers]
    shown = [value if math.isfinite(value) and value > 0 else None for value in values]
    beyond = [index for index, layer in enumerate(layers) if layer["beyond"]]
    at = list(range(1, len(layers) + 1))
    bounds = [number(layer["bound"]) for layer in layers]
    hover = "%{text}<br>%{y:.2e}<extra></extra>"
    traces = [
        go.Scatter(
            x=at,
            y=bounds,
            mode="lines",
            line={"color": COLORS[7], "dash": "dash", "shape": "hvh"},
            name="bound",
            text=names,
            hovertemplate=hover,
        ),
        go.Scatter(
            x=at,
            y=shown,
            mode="lines+markers",
            line={"color": COLORS[0]},
            marker={"size": 6},
            name=text(report["measure"]),
            text=names,
            hovertemplate=hover,
        ),
    ]
    if beyond:
        traces.append(
            go.Scatter(
                x=[at[i] for i in beyond],
                y=[shown[i] for i in beyond],
                mode="markers",
                marker={"color": COLORS[1], "size": 11, "symbol": SYMBOLS[5]},
                name="beyond its bound",
                text=[names[i] for i in beyond],
                hovertemplate=hover,
            )
        )
    made = figure(traces, "layer, in the order of the graph", text(report["measure"]))
    made.update_yaxes(**log_axis([value for value in [*bounds, *values] if math.isfinite(value)]))
    made.update_yaxes(exponentformat="power")
    worst = sorted(layers, key=lambda layer: -_ratio(layer))[:5]
    rows = []
    for layer in worst:
        errors = [f"{number(layer[key]):.2e}" for key in ("error", "bound")]
        rows.append([layer["layer"], *errors, f"{number(layer['largest']):.3g}", f"{number(layer['fp16_share']):.2%}"])
    first = report["first_beyond"]
    note = f"The first beyond its bound: {first}. " if first is not None else "None is beyond its bound. "
    part = report["part"]
    return Chart(
        f"layers-{part if part.isidentifier() else 'part'}",
        f"Error by layer: {part} ({report['form']}, {report['precision']})",
        made,
        note=f"{note}Nearest to their bounds:",
        columns=("layer", "error", "bound", "largest value", "of fp16's end"),
        rows=rows,
    )


def _ratio(layer: Mapping[str, Any]) -> float:
    error, bound = number(layer["error"]), number(layer["bound"])
    return error / bound if math.isfinite(error) and bound else math.inf


def confusion(document: Mapping[str, Any]) -> Chart:
    """Videos by label and prediction, as shares of a label's videos."""
    go = require("plotly.graph_objects")
    matrix, labels = document["confusion"], document["labels"]
    wrong = [sum(row) + sum(r[i] for r in matrix) - 2 * row[i] for i, row in enumerate(matrix)]
    support = [sum(row) for row in matrix]
    chosen = sorted(range(len(labels)), key=lambda i: (-wrong[i], -support[i], i))[:_MOST_CLASSES]
    chosen = sorted(chosen)
    names, places = [text(shortened(labels[i], 20)) for i in chosen], list(range(len(chosen)))
    shares = [[100 * matrix[i][j] / support[i] if support[i] else 0 for j in chosen] for i in chosen]
    trace = go.Heatmap(
        z=shares,
        x=places,
        y=places,
        customdata=[[[matrix[i][j], text(labels[i]), text(labels[j])] for j in chosen] for i in chosen],
        colorscale=[[0, "#ffffff"], [1, COLORS[0]]],
        zmin=0,
        zmax=100,
        showscale=False,  # a phone has no room for it, and hovering says the number
        hovertemplate="%{customdata[1]} → %{customdata[2]}: %{z:.0f} % (%{customdata[0]} videos)<extra></extra>",
    )
    made = figure([trace], "predicted", "label")
    ticks = {"tickmode": "array", "tickvals": places, "ticktext": names, "tickfont": {"size": 10}}
    made.update_xaxes(**ticks, tickangle=-60)
    made.update_yaxes(**ticks, autorange="reversed")
    left_out = len(labels) - len(chosen)
    note = "Shares of a label's videos: white is none, full blue is all of them."
    note += f" The {len(chosen)} classes that are confused most, of {len(labels)}." if left_out else ""
    return Chart("confusion", "Confusion matrix", made, height=min(900, 240 + 16 * len(chosen)), note=note)
