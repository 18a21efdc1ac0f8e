"""`vtn-export compare`: two bench results."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from vtn_export.cli.console import note, print_json, print_table, reported
from vtn_export.cli.options import Json
from vtn_export.errors import AccuracyError, UsageError


@reported
def command(
    before: Annotated[Path, typer.Argument(help="A result of `vtn-export bench --json FILE`.")],
    after: Annotated[Path, typer.Argument(help="Another one.")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0.0, help="A slow-down beyond this share fails: 0.05 is 5 %.")
    ] = 0.05,
    as_json: Json = False,
) -> None:
    """Show what moved beyond noise between two results; exit 1 when something got slower."""
    from vtn_export.evaluate.bench_schema import read_bench
    from vtn_export.evaluate.compare import SCHEMA, SCHEMA_VERSION, compare

    changes, remarks = compare(read_bench(before), read_bench(after))
    verdicts = [change.verdict(threshold) for change in changes]
    if not changes:
        raise UsageError(f"{before} and {after} have no case in common; measure the same parts, frames and chunks")
    slower = [change.case for change, verdict in zip(changes, verdicts, strict=True) if verdict == "slower"]
    if as_json:
        listed = [{**asdict(c), "verdict": v} for c, v in zip(changes, verdicts, strict=True)]
        document = {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "threshold": threshold}
        print_json({**document, "changes": listed, "remarks": remarks, "slower": slower})
    else:
        for remark in remarks:
            note(remark)
        rows = [
            [
                c.case,
                f"{c.before * 1e3:.2f} ms",
                f"{c.after * 1e3:.2f} ms",
                f"{c.ratio:.3f} ({c.low:.3f}–{c.high:.3f})",
                f"{verdict} NOISY" if c.noisy else verdict,
            ]
            for c, verdict in zip(changes, verdicts, strict=True)
        ]
        print_table(f"{before} → {after}", ["case", "before", "after", "ratio (95 %)", "verdict"], rows)
        if noisy := sum(change.noisy for change in changes):
            note(
                f"NOISY: {noisy} of {len(changes)} cases vary by more than 5 % in a result: its interval knows noise "
                "within a run, not between two; `bench --vs` measures both sides in one"
            )
    if slower:
        note(f"error: {len(slower)} of {len(changes)} cases are slower by more than {threshold:.0%}: {slower[0]}")
        raise typer.Exit(AccuracyError.exit_code)
