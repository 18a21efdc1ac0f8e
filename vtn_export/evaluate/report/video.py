"""Charts of the model itself and of the sample video."""

from __future__ import annotations

from collections.abc import Mapping

from vtn_export.bundle import Bundle
from vtn_export.deps import require
from vtn_export.evaluate.report.charts import COLORS, SYMBOLS, Chart, figure, shortened, text
from vtn_export.evaluate.report.strip import Strip
from vtn_export.onnx.cost import GraphCost, graph_cost
from vtn_export.spec import Part


def costs(bundle: Bundle) -> dict[Part, GraphCost]:
    """What each part costs for a video of the bundle's frames; the backbone one frame at a time.

    Raises ExportError where a shape cannot be told.
    """
    frames = bundle.manifest.preprocessing.num_frames
    found: dict[Part, GraphCost] = {}
    for part, entry in bundle.manifest.graphs.items():
        if part != "full" or len(bundle.manifest.graphs) == 1:
            sizes = {"chunk": 1} if part == "backbone" else {"batch": 1, "frames": frames}
            found[part] = graph_cost(bundle.graph_path(part), entry.spec, sizes)
    return found


def work(bundle: Bundle, found: Mapping[Part, GraphCost]) -> Chart:
    """FLOPs of a whole video by part and kind of node."""
    go = require("plotly.graph_objects")
    frames = bundle.manifest.preprocessing.num_frames
    scaled = {
        part: {op: flops * (frames if part == "backbone" else 1) for op, flops in cost.flops_by_op().items()}
        for part, cost in found.items()
    }
    kinds = list(dict.fromkeys(op for ops in scaled.values() for op in ops))
    traces = [
        go.Bar(
            y=list(scaled),
            x=[ops.get(kind, 0) / 1e9 for ops in scaled.values()],
            orientation="h",
            name=text(kind),
            marker={"color": COLORS[index % len(COLORS)]},
            hovertemplate="%{y}: %{x:.3g} GFLOP<extra>%{fullData.name}</extra>",
        )
        for index, kind in enumerate(kinds)
    ]
    made = figure(traces, f"GFLOP a video of {frames} frames", "", barmode="stack", bargap=0.35)
    made.update_yaxes(type="category", autorange="reversed")
    note = "Two FLOPs a multiply-add; products alone, counted from the graphs."
    return Chart("work", "Where the work is", made, height=160 + 50 * len(scaled), note=note)


def timeline(strip: Strip) -> Chart:
    """Probabilities against how much of the video was seen, thumbnails above."""
    go = require("plotly.graph_objects")
    end = max([strip.seconds[-1], *(second for second, _ in strip.thumbnails)])
    start = min(strip.seconds[0], 0.0)
    traces = [
        go.Scatter(
            x=strip.seconds,
            y=[100 * value for value in row],
            mode="lines+markers",
            line={"color": COLORS[index % len(COLORS)], "width": 2},
            marker={"symbol": SYMBOLS[index], "size": 7},
            name=text(shortened(label, 40)),
            hovertemplate="%{y:.3g} % after %{x:.2f} s<extra>%{fullData.name}</extra>",
        )
        for index, (label, row) in enumerate(zip(strip.labels, strip.probabilities, strict=True))
    ]
    made = figure(traces, "seconds of the video seen", "probability (%)")
    count = len(strip.thumbnails)
    made.update_layout(
        images=[
            {
                "source": picture,
                "xref": "x domain",
                "yref": "paper",
                "x": (index + 0.5) / count,
                "y": 1,
                "sizex": 0.98 / count,
                "sizey": 0.24,
                "xanchor": "center",
                "yanchor": "top",
                "sizing": "contain",
                "layer": "above",
            }
            for index, (_, picture) in enumerate(strip.thumbnails)
        ]
    )
    made.update_xaxes(range=[start, end + 0.01 * (end - start)])  # room for half a mark
    made.update_yaxes(domain=[0, 0.74], rangemode="tozero")
    note = (
        f"{strip.video}: the probabilities after the first n of {strip.frames} frames, n rising; the pictures are "
        "evenly spaced, as the model sees them."
    )
    if strip.random_weights:
        note += " The weights are random: the names mean nothing."
    return Chart("timeline", "The five likeliest classes of a sample video", made, height=430, note=note)
