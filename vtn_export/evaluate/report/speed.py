"""Charts of a bench result: percentiles, every run, growth with the frames, a video's time, the roofline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vtn_export.deps import require
from vtn_export.evaluate.bench_schema import timed
from vtn_export.evaluate.report.charts import (
    COLORS,
    SYMBOLS,
    Chart,
    Fit,
    figure,
    fit_line,
    log_axis,
    milliseconds,
    text,
)

_STAGES = {
    "decode": COLORS[1],
    "preprocess": COLORS[4],
    "transfer": COLORS[3],
    "backbone": COLORS[0],
    "temporal": COLORS[2],
    "full": COLORS[5],
}


def charts(document: Mapping[str, Any]) -> Iterator[Chart]:
    """Every chart that the result has numbers for."""
    entries = timed(document)
    if not entries:
        return
    yield _percentiles(entries)
    yield _ecdf(entries)
    times = growth(entries, lambda entry: entry["p50_seconds"])
    if times:
        yield _growth("time", "Time against frames", times, "ms", 1e3, "fixed", "a frame")
    memory = growth(entries, lambda entry: entry.get("added_host_bytes"))
    if memory:
        yield _growth("memory", "Memory against frames", memory, "MB", 1e-6, "fixed", "a frame")
    modes = [entry for entry in entries if "split_seconds" in entry]
    if modes:
        yield _split(modes)
    parts = [entry for entry in entries if "work" in entry]
    if parts:
        yield _roofline(parts, document["ceilings"])


def short(entry: Mapping[str, Any]) -> str:
    """`temporal, 250 fr.`: a case for a narrow axis."""
    case = entry["case"]
    name = case.get("part") or case.get("mode") or ""
    words = [f"{case[key]} {unit}" for key, unit in (("chunk", "fr."), ("frames", "fr.")) if key in case]
    if case.get("batch", 1) != 1:
        words.insert(0, f"{case['batch']} ×")
    return f"{name if 'part' in case else f'video, {name}'}, {' '.join(words)}"


def growth(
    entries: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[str, dict[float, float]]:
    """Series by part and mode of one video: frames → value; those with two lengths at least."""
    series: dict[str, dict[float, float]] = {}
    for entry in entries:
        case, found = entry["case"], value(entry)
        frames = case.get("frames", case.get("chunk"))
        if found is None or not isinstance(frames, int) or case.get("batch", 1) != 1:
            continue
        name = str(case["part"]) if "part" in case else f"video, {case.get('mode')}"
        series.setdefault(name, {})[frames] = float(found)
    return {name: dict(sorted(points.items())) for name, points in series.items() if len(points) > 1}


def _percentiles(entries: Sequence[Mapping[str, Any]]) -> Chart:
    go = require("plotly.graph_objects")
    names = [text(short(entry)) for entry in entries]
    traces = [
        go.Scatter(
            x=[v for e in entries for v in (e["min_seconds"] * 1e3, e["max_seconds"] * 1e3, None)],
            y=[v for name in names for v in (name, name, None)],
            mode="lines",
            line={"color": "#bbb", "width": 3},
            name="fastest to slowest",
            hoverinfo="skip",
        )
    ]
    for index, percent in enumerate((50, 90, 95, 99)):
        traces.append(
            go.Scatter(
                x=[entry[f"p{percent}_seconds"] * 1e3 for entry in entries],
                y=names,
                mode="markers",
                name=f"p{percent}",
                marker={"color": COLORS[index], "symbol": SYMBOLS[index], "size": 9},
                hovertemplate=f"%{{y}}<br>p{percent} %{{x:.3g}} ms<extra></extra>",
            )
        )
    made = figure(traces, "milliseconds a call", "")
    made.update_xaxes(**log_axis([e[k] for e in entries for k in ("min_seconds", "max_seconds")]))
    made.update_yaxes(autorange="reversed", tickfont={"size": 11}, type="category")
    noisy = [short(entry) for entry in entries if entry["noisy"]]
    note = f"NOISY (over 5 % of variation): {len(noisy)} of {len(entries)} cases." if noisy else ""
    columns = ("case", "first", "p50", "p90", "p95", "p99", "mean (95 %)", "runs", "variation")
    return Chart(
        "percentiles",
        "Latency percentiles",
        made,
        height=110 + 26 * len(names),
        note=note,
        columns=columns,
        rows=[_row(entry) for entry in entries],
    )


def _row(entry: Mapping[str, Any]) -> list[str]:
    low, high = (milliseconds(value) for value in entry["mean_ci95_seconds"][:2])
    times = [milliseconds(entry[f"{key}_seconds"]) for key in ("first", "p50", "p90", "p95", "p99")]
    mean = f"{milliseconds(entry['mean_seconds'])} ({low}–{high})"
    return [short(entry), *times, mean, str(entry["runs"]), f"{entry['coefficient_of_variation']:.1%}"]


def _ecdf(entries: Sequence[Mapping[str, Any]]) -> Chart:
    go = require("plotly.graph_objects")
    traces = []
    for index, entry in enumerate(entries):
        ordered = sorted(value * 1e3 for value in entry["seconds"])
        share = [100 * (at + 1) / len(ordered) for at in range(len(ordered))]
        traces.append(
            go.Scatter(
                x=ordered,
                y=share,
                mode="lines",
                line={
                    "shape": "hv",
                    "width": 2,
                    "color": COLORS[index % len(COLORS)],
                    "dash": ("solid", "dash", "dot")[index // len(COLORS) % 3],
                },
                name=text(short(entry)),
                hovertemplate="%{y:.0f} % within %{x:.3g} ms<extra>%{fullData.name}</extra>",
            )
        )
    made = figure(traces, "milliseconds a call", "share of runs (%)")
    made.update_xaxes(**log_axis([value for entry in entries for value in entry["seconds"]]))
    made.update_yaxes(range=[0, 101])
    return Chart("ecdf", "Every run (ECDF)", made, height=310 + 16 * len(entries))


def _growth(
    name: str, title: str, series: Mapping[str, Mapping[float, float]], unit: str, scale: float, fixed: str, each: str
) -> Chart:
    go = require("plotly.graph_objects")
    traces, rows = [], []
    for index, (label, points) in enumerate(series.items()):
        color, fit = COLORS[index % len(COLORS)], fit_line(points)
        shown = {"color": color, "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 9}
        x, y = list(points), [value * scale for value in points.values()]
        hover = f"%{{x}} frames: %{{y:.3g}} {unit}<extra>{text(label)}</extra>"
        traces.append(go.Scatter(x=x, y=y, mode="markers", name=text(label), marker=shown, hovertemplate=hover))
        if fit is not None:
            line = np.geomspace(min(x), max(x), 60)
            values = [(fit.fixed + fit.slope * at) * scale for at in line]
            style = {"color": color, "width": 1.6}
            traces.append(
                go.Scatter(x=line.tolist(), y=values, mode="lines", line=style, showlegend=False, hoverinfo="skip")
            )
        rows.append(_fit_row(label, fit, unit, scale))
    made = figure(traces, "frames", unit)
    x, y = ([v for points in series.values() for v in side(points)] for side in (list, lambda p: list(p.values())))
    if name == "time" and min(y) > 0:  # parts and videos are decades apart
        made.update_xaxes(**log_axis(x))
        made.update_yaxes(**log_axis(y))
        note = "Lines are straight fits (time = fixed + slope · frames); on these axes a fixed cost bends them."
    else:
        note = "Beyond what the process held with the part loaded, inputs counted; by the largest of a case's runs."
        made.update_yaxes(rangemode="tozero")
    columns = ("", fixed, each, "R²", "largest residual")
    return Chart(name, title, made, height=380, note=note, columns=columns, rows=rows)


def _fit_row(label: str, fit: Fit | None, unit: str, scale: float) -> list[str]:
    if fit is None:
        return [label, "", "", "", "two lengths: no fit"]
    slope = f"{fit.slope * scale:.3g} {unit}"
    return [label, f"{fit.fixed * scale:.3g} {unit}", slope, f"{fit.r2:.4f}", f"{fit.largest:.1%}"]


def _split(modes: Sequence[Mapping[str, Any]]) -> Chart:
    go = require("plotly.graph_objects")
    bars: dict[str, dict[str, float]] = {}
    for entry in modes:
        case = entry["case"]
        name = text(f"{case.get('mode')}, {case.get('frames')} fr.")
        bars[name] = dict(entry["split_seconds"])
        alone = entry.get("stage_seconds") or {}
        bars[f"{name} (alone)"] = {stage: value for stage, value in alone.items() if value is not None}
    stages = [stage for stage in _STAGES if any(stage in bar for bar in bars.values())]
    stages += sorted({stage for bar in bars.values() for stage in bar} - set(_STAGES))
    traces = [
        go.Bar(
            y=list(bars),
            x=[bar.get(stage, 0) * 1e3 for bar in bars.values()],
            orientation="h",
            name=text(stage),
            marker={"color": _STAGES.get(stage, COLORS[7])},
            hovertemplate="%{y}<br>%{x:.3g} ms<extra>%{fullData.name}</extra>",
        )
        for stage in stages
    ]
    made = figure(traces, "milliseconds a video", "", barmode="stack", bargap=0.25)
    made.update_yaxes(autorange="reversed", tickfont={"size": 11}, type="category")
    note = (
        "First bar of a case: what the call waited for, which adds up to its time (frames are decoded ahead, so "
        "decode is waiting). Second: each stage alone, nothing beside it."
    )
    if not any("transfer" in bar for bar in bars.values()):
        note += " Nothing is transferred: this backend reads the caller's memory."
    return Chart("split", "Where a video's time goes", made, height=120 + 30 * len(bars), note=note)


def _roofline(parts: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Any]) -> Chart:
    go = require("plotly.graph_objects")
    flops, copies = ceilings["flops_per_second"] / 1e9, ceilings["bytes_per_second"] / 1e9
    ridge = flops / copies
    intensity = [entry["work"]["flops_per_byte"] for entry in parts]
    low, high = min([*intensity, ridge]) / 3, max([*intensity, ridge]) * 3
    roof = {"color": "#000", "width": 2}
    traces = [
        go.Scatter(
            x=[low, ridge, high],
            y=[low * copies, flops, flops],
            mode="lines",
            line=roof,
            name=f"roof: {flops:.3g} GFLOP/s, {copies:.3g} GB/s",
            hoverinfo="skip",
        )
    ]
    for index, part in enumerate(dict.fromkeys(str(entry["case"].get("part")) for entry in parts)):
        own = [entry for entry in parts if str(entry["case"].get("part")) == part]
        traces.append(
            go.Scatter(
                x=[entry["work"]["flops_per_byte"] for entry in own],
                y=[entry["work"]["flops_per_second"] / 1e9 for entry in own],
                mode="markers",
                name=text(part),
                marker={"color": COLORS[index % len(COLORS)], "symbol": SYMBOLS[index % len(SYMBOLS)], "size": 10},
                text=[f"{text(short(entry))}: {entry['work']['roofline_share']:.0%} of the roof" for entry in own],
                hovertemplate="%{text}<br>%{x:.3g} FLOP/byte, %{y:.3g} GFLOP/s<extra></extra>",
            )
        )
    made = figure(traces, "FLOP a byte that has to move", "GFLOP/s")
    made.update_xaxes(**log_axis([low, high]))
    made.update_yaxes(**log_axis([low * copies, flops, *(e["work"]["flops_per_second"] / 1e9 for e in parts)]))
    rows = [
        [
            short(entry),
            f"{entry['work']['flops'] / 1e9:.3g} GFLOP",
            f"{entry['work']['compulsory_bytes'] / 1e6:.3g} MB",
            f"{entry['work']['flops_per_second'] / 1e9:.3g} GFLOP/s",
            f"{entry['work']['roofline_share']:.0%} ({entry['work']['bound']})",
        ]
        for entry in parts
    ]
    note = "The roof is what this machine showed in the same run: its best matrix product and its best copy."
    columns = ("case", "work", "bytes at least", "reached", "of the roof")
    return Chart("roofline", "Roofline", made, height=380, note=note, columns=columns, rows=rows)
