"""Tables, verdicts and plots from results; results of a benchmark never by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import command_line
import figures
import protocol
import pytest
import streaming
import tables
import temporal_peers
import whole_video

import engines

CONTEXT = {
    "cpu": "a CPU", "cpus_usable": 2, "threads": 2, "load_average": [0.5, 0, 0], "python": "3.11",
    "packages": {"onnx": "1", "torch": None}, "date": "2026-01-01",
}  # fmt: skip


def entry(seconds: float, **more: Any) -> dict[str, Any]:
    return {**protocol.summary([seconds, seconds * 1.1, seconds * 0.9]), "peak_bytes": 5_000_000, "error": 1e-7,
            "first_seconds": 0.1, **more}  # fmt: skip


def peers_found(openvino: float = 2.0) -> dict[str, Any]:
    rows = []
    for frames in (250, 1000):
        found = {
            "ort": entry(1e-3 * frames),
            "openvino": entry(1e-3 * openvino * frames),
            "sdpa": entry(1e-6 * frames**2),
        }
        found["torchscript_ort"] = {"error_text": "out of data bounds"}
        rows.append({"frames": frames, "peers": found, "faster": temporal_peers.faster(found, ["ort", "openvino"])})
    return {"context": CONTEXT, "rows": rows, "slopes": temporal_peers.slopes(rows)}


def test_a_faster_peer_is_named() -> None:
    found = peers_found()
    assert [row["faster"] for row in found["rows"]] == [["sdpa"], []]
    text = "\n".join(temporal_peers.table(found))
    assert "Faster than ours: PyTorch SDPA, band mask at 250 frames." in text
    assert "out of data bounds" in text and "| failed | failed |" in text


def test_the_faster_of_ours_is_what_counts() -> None:
    found = peers_found(openvino=0.01)
    assert all(not row["faster"] for row in found["rows"])
    assert "No peer is faster" in "\n".join(temporal_peers.table(found))


def test_slopes_of_lengths() -> None:
    found = peers_found()["slopes"]
    assert found == {"ort": pytest.approx(1), "openvino": pytest.approx(1), "sdpa": pytest.approx(2)}


def video_rows() -> list[dict[str, Any]]:
    def row(title: str, config: str, seconds: float, gflops: float, ours: bool = False) -> dict[str, Any]:
        return {"title": title, "config": config, "ours": ours, "gflops": gflops, "measured_frames": 32,
                "seconds_a_video": seconds, "top1": None, "top5": 93.24, **protocol.summary([seconds])}  # fmt: skip

    return [
        row("vit_b_vtn: chunked, ONNX Runtime", "vit_b_vtn", 40, 4000, True),
        row("vit_b_vtn: features, ONNX Runtime", "vit_b_vtn", 0.1, 4, True),
        row("vit_b_vtn: reference, PyTorch eager", "vit_b_vtn", 80, 4400),
        row("r3d_18: 10 × 3 views", "r3d_18", 30, 1221),
        row("swin3d_t: 10 × 3 views", "swin3d_t", 204, 2633),
        row("mvit_v2_s: 10 × 3 views", "mvit_v2_s", 440, 8800),
    ]


def test_the_papers_claim_is_judged_by_numbers() -> None:
    found = whole_video.claim(video_rows())
    assert [round(row["time_over_reference"], 2) for row in found] == [0.38, 2.55, 5.5]
    assert [round(row["time_over_ours"], 2) for row in found] == [0.75, 5.1, 11.0]  # features alone are no whole video
    assert found[2]["gflops_over_reference"] == 2
    verdict = whole_video.verdict(found)
    assert "1 of 3 reach the claimed factor against the reference VTN" in verdict
    assert "2 of 3 reach it against ours" in verdict and "1 of 3 need more GFLOPs" in verdict


def test_without_the_model_there_is_no_claim() -> None:
    assert whole_video.claim([row for row in video_rows() if row["config"] != "vit_b_vtn"]) == []


def test_video_table_and_plot(tmp_path: Path) -> None:
    rows = video_rows()
    found = {"context": CONTEXT, "rows": rows, "claim": whole_video.claim(rows)}
    lines = whole_video.table(found)
    assert all(any(row["title"] in line for line in lines) for row in rows)
    figures.plot_videos(found, tmp_path / "v.png")
    figures.plot_lengths(peers_found(), tmp_path / "l.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("v.png", "l.png"))


def test_sections_are_replaced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "README", tmp_path / "README.md")
    tables.write_section("a", "first")
    tables.write_section("b", "second")
    tables.write_section("a", "third")
    text = (tmp_path / "README.md").read_text()
    assert "first" not in text and text.index("third") < text.index("second") and text.count("a: begin") == 1


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("temporal_peers", temporal_peers.table),
        ("whole_video", whole_video.table),
        ("engines", engines.table),
        ("command_line", command_line.table),
        ("streaming", streaming.table),
    ],
)
def test_committed_table_is_of_the_committed_results(name: str, table: Any) -> None:
    stored = protocol.RESULTS / f"{name}.json"
    section = f"<!-- {name}: begin -->"
    readme = tables.README.read_text(encoding="utf-8")
    assert stored.is_file() == (section in readme)
    if stored.is_file():
        assert "\n".join(table(json.loads(stored.read_text()))).strip() in readme
