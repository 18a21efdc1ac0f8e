"""benchmarks/README.md: each benchmark rewrites its own section, between its own marks, from its own JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
_HEAD = """# Benchmarks

One file a question. Each prints what it measures, stores it in `results/*.json`, and rewrites its own section
here; nothing below is written by hand. All times are medians of interleaved runs: noise meets both sides alike.

`make bench` runs temporal, temporal_peers, whole_video, engines, precisions, streaming and command_line: half an
hour to an hour on two quiet cores. `python benchmarks/batch.py` and `python benchmarks/serving.py` are run by hand:
they load the machine with many processes for minutes each, and nothing is compared with peers in them. Where a peer is
faster than ours at some length, `python benchmarks/temporal_profile.py --frames N --peer NAME` shows where both spend
their time.
"""


def write_section(name: str, text: str, path: Path | None = None) -> None:
    """Put `text` between the marks of section `name` of a file (README.md), at the end if it is new."""
    path = path or README
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    content = path.read_text(encoding="utf-8") if path.exists() else _HEAD
    section = f"{begin}\n{text.strip()}\n{end}"
    if begin in content and end in content:
        before, rest = content.split(begin, 1)
        content = before + section + rest.split(end, 1)[1]
    else:
        content = content.rstrip() + "\n\n" + section + "\n"
    path.write_text(content, encoding="utf-8")


def _against(value: float, target: float, *, at_least: bool) -> str:
    met = value >= target if at_least else value <= target
    return "met" if met else "**missed**"


def _spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}–{ratio['max']:.2f}; best {ratio['best']:.2f})"


def _context(context: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {value}" for name, value in context["versions"].items())
    return (
        f"{context['cpu']}, {context['cores']} cores, {context['threads']} threads, load {context['load_at_start']} "
        f"at the start (shared machine); Python {context['python']}, {versions}; {context['date']}."
    )


def describe_context(context: dict[str, Any]) -> str:
    """One line about the machine; `context` is what protocol.context() gave."""
    versions = ", ".join(f"{name} {value}" for name, value in context["packages"].items() if value)
    return (
        f"{context['cpu']}, {context['cpus_usable']} cores, {context['threads']} threads, load "
        f"{context['load_average'][0]:.2f} at the start (shared machine); Python {context['python']}, {versions}; "
        f"{context['date']}."
    )


def write_table(results: dict[str, Any]) -> None:
    """The section of benchmarks/temporal.py."""
    lines = ["## Temporal encoder (`python benchmarks/temporal.py`)", ""]
    if "temporal" in results:
        lines += _temporal(results["temporal"])
    if "video" in results:
        lines += _video(results["video"])
    write_section("temporal", "\n".join(lines))


def _temporal(found: dict[str, Any]) -> list[str]:
    lines = [
        "Three Longformer layers of `vit_b_vtn`, one video, float32. Ratios: median over rounds (smallest–largest; "
        "ratio of the best times, which other work on the machine has disturbed least).",
        "",
        "| frames | ONNX Runtime | Hugging Face eager | faster by | same GEMMs alone | share of them | error |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found["rows"]:
        lines.append(
            f"| {row['frames']} | {row['ort_ms']:.0f} ms | {row['hugging_face_ms']:.0f} ms "
            f"| {_spread(row['speedup'])} × | {row['gemm_ms']:.0f} ms | {_spread(row['gemm_share'])} "
            f"| {row['error_against_hugging_face']:.1e} |"
        )
    speed, best_speed = (min(row["speedup"][kind] for row in found["rows"]) for kind in ("median", "best"))
    share, best_share = (min(row["gemm_share"][kind] for row in found["rows"]) for kind in ("median", "best"))
    memory, slope = found["memory"]["bytes_per_frame"], found.get("slope")
    lines += [
        "",
        "| target | measured | |",
        "| --- | ---: | --- |",
        f"| at least 1.7 × faster than Hugging Face at every length | {speed:.2f} × (best times {best_speed:.2f} ×) "
        f"| {_against(speed, 1.7, at_least=True)} |",
    ]
    if slope is not None:
        lines.append(
            f"| a frame at 16384 costs at most 1.1 × one at 1024 | {_spread(slope)} × "
            f"| {_against(slope['median'], 1.1, at_least=False)} |"
        )
    lines += [
        f"| at most 100 kB a frame beyond the weights | {memory / 1000:.0f} kB "
        f"| {_against(memory, 1e5, at_least=False)} |",
        f"| at least 85 % of the GEMMs' own speed | {share * 100:.0f} % (best times {best_share * 100:.0f} %) "
        f"| {_against(share, 0.85, at_least=True)} |",
        "",
        _context(found["context"]),
        "",
    ]
    return lines


def _video(found: dict[str, Any]) -> list[str]:
    export, share = found["export"], found["throughput_share"]
    gigabytes = export["peak_bytes"] / 1e9
    return [
        f"### Whole video ({found['num_frames']} frames, chunks of 16) and export of `vit_b_vtn`",
        "",
        "| target | measured | |",
        "| --- | ---: | --- |",
        f"| chunked video at 95 % of the backbone's own throughput "
        f"({found['frames_per_second']['backbone']:.2f} frames/s) | {_spread(share)} "
        f"| {_against(share['median'], 0.95, at_least=True)} |",
        f"| export of all parts within 60 s | {export['seconds']:.0f} s "
        f"| {_against(export['seconds'], export['limits']['seconds'], at_least=False)} |",
        f"| within 4 GB | {gigabytes:.2f} GB | {_against(gigabytes, export['limits']['gigabytes'], at_least=False)} |",
        "",
        _context(found["context"]),
        "",
    ]
