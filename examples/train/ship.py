"""Puts a run's weights into the package, with its log and what was measured, and its tables into the docs.

    python examples/train/ship.py --out runs/shapes     a run that was evaluated (evaluate.py, dilation.py)
    python examples/train/ship.py                       evaluates the shipped weights again

Writes vtn_export/data/moving_shapes.safetensors and .json, and the tables of docs/moving-shapes.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import shapes
from evaluate import COUNTS, evaluate, watched

from vtn_export.model.checkpoint import load
from vtn_export.model.shipped import DATA, shipped
from vtn_export.untrusted import sha256

NAME = "moving_shapes"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "moving-shapes.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of the run (default: the shipped weights, evaluated again)")
    out = parser.parse_args().out
    record = of_run(out) if out else evaluated_again()
    (DATA / f"{NAME}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    DOCS.write_text(with_tables(DOCS.read_text(encoding="utf-8"), record), encoding="utf-8")


def of_run(out: Path) -> dict[str, Any]:
    weights = DATA / f"{NAME}.safetensors"
    shutil.copyfile(out / "model.safetensors", weights)
    return {
        "sha256": sha256(weights),
        "labels": list(shapes.LABELS),
        "evaluation": json.loads((out / "evaluation.json").read_text(encoding="utf-8")),
        "dilation": json.loads((out / "dilation.json").read_text(encoding="utf-8"))
        if (out / "dilation.json").exists()
        else None,
        "training": [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()],
    }


def evaluated_again() -> dict[str, Any]:
    trained = shipped(NAME)
    if trained is None:
        raise SystemExit(f"{NAME}: no weights in {DATA}; give a run with --out")
    record: dict[str, Any] = json.loads((DATA / f"{NAME}.json").read_text(encoding="utf-8"))
    return {**record, "evaluation": evaluate(load(trained.weights, NAME), COUNTS, watched)}


def with_tables(text: str, record: dict[str, Any]) -> str:
    """The page with each table between its two markers made anew."""
    tables = {
        "evaluation": evaluation_table(record["evaluation"]),
        "classes": classes_table(record["evaluation"]),
        "stages": stages_table(record["training"]),
        "dilation": dilation_table(record["dilation"]) if record["dilation"] else "Not run for these weights yet.\n",
    }
    for name, rows in tables.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{DOCS}: expected one place for the table {name!r}: {begin}{end}")
        before, rest = text.split(begin)
        text = before + begin + rows + end + rest.split(end)[1]
    return text


def evaluation_table(evaluation: dict[str, Any]) -> str:
    rows = [
        [
            name, one["clips"], f"{one['top1']:.1%} ± {one['standard_error']:.1%}",
            f"{one['shuffled_way_kept']:.0%}", f"{one['one_frame_top1']:.0%}",
        ]
        for name, one in evaluation.items()
    ]  # fmt: skip
    return _table(["frames", "clips", "top-1", "shuffled: way kept", "one frame: top-1"], rows)


def classes_table(evaluation: dict[str, Any]) -> str:
    rows = [
        [label, *(f"{one['per_class'].get(label, float('nan')):.1%}" for one in evaluation.values())]
        for label in shapes.LABELS
    ]
    return _table(["class", *(f"{name} frames" for name in evaluation)], rows)


def stages_table(training: list[dict[str, Any]]) -> str:
    rows = []
    for row in training:
        if "heldout" not in row:
            continue
        stage = row["part"], row["number"]
        last = [one for one in training if (one["part"], one["number"]) == stage and "step" in one][-1]
        found = row["heldout"]
        if "distance" in found:
            gave = f"off by {found['distance']:.1%} of the width; by more than an eighth {found['off']:.1%}", "", ""
        else:
            gave = f"{last['accuracy']:.1%}", f"{found[str(row['frames'])]:.1%}", f"{found['64']:.1%}"
        window = row["window"] or "no attention yet"
        rows.append([row["part"], row["frames"], window, f"{row['learning_rate']:.1e}", row["steps"], *gave])
    head = ["part", "frames", "window", "learning rate", "steps", "training top-1", "held-out, own length", "64 frames"]
    return _table(head, rows)


def dilation_table(dilation: dict[str, Any]) -> str:
    rows = [
        [name, *(f"{value:.1%}" for value in values), f"{sum(values) / len(values):.1%}"]
        for name, values in dilation["top1_by_seed"].items()
    ]
    seeds = [f"seed {number}" for number in range(len(rows[0]) - 2)]
    return _table(["dilation", *seeds, "mean"], rows)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
