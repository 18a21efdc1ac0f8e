"""The benchmarks' plots, as PNG beside their JSON; made from the JSON alone, so that they can be drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tables import RESULTS

_OURS = {"ort": "tab:blue", "openvino": "tab:cyan"}


def plot_lengths(found: dict[str, Any], path: Path = RESULTS / "temporal_peers.png") -> None:
    """Milliseconds against frames, both logarithmic; bars from the fastest run to the slowest."""
    from peers import PEERS

    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5))
    for name, title in PEERS.items():
        entries = [(row["frames"], row["peers"].get(name, {})) for row in found["rows"]]
        entries = [(frames, entry) for frames, entry in entries if "median_seconds" in entry]
        if not entries:
            continue
        middle = [entry["median_seconds"] * 1e3 for _, entry in entries]
        below = [(e["median_seconds"] - e["min_seconds"]) * 1e3 for _, e in entries]
        above = [(e["max_seconds"] - e["median_seconds"]) * 1e3 for _, e in entries]
        style = {"color": _OURS[name], "linewidth": 2.4} if name in _OURS else {"linestyle": "--", "linewidth": 1.4}
        x = [frames for frames, _ in entries]
        axes.errorbar(x, middle, yerr=[below, above], label=title, marker="o", markersize=4, capsize=2, **style)
    frames = [row["frames"] for row in found["rows"]]
    axes.set(xscale="log", yscale="log", xlabel="frames", ylabel="milliseconds a video")
    axes.set_xticks(frames, [str(count) for count in frames])
    axes.minorticks_off()
    axes.set_title("Temporal encoder of vit_b_vtn, CPU, float32")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(plt, figure, path)


def plot_videos(found: dict[str, Any], path: Path = RESULTS / "whole_video.png") -> None:
    """Seconds a video of every network, fastest on top."""
    plt = _pyplot()
    rows = sorted(found["rows"], key=lambda row: row["seconds_a_video"], reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.4))
    colors = ["tab:blue" if row["ours"] else "tab:gray" for row in rows]
    bars = axes.barh([row["title"] for row in rows], [row["seconds_a_video"] for row in rows], color=colors)
    axes.bar_label(bars, [f"{row['seconds_a_video']:.3g} s" for row in rows], padding=3, fontsize=8)
    axes.set(xscale="log", xlabel="seconds a video (CPU, float32)")
    axes.margins(x=0.15)
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    _save(plt, figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(plt: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
