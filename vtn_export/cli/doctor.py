"""`vtn-export doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

from vtn_export.cli.console import print_json, print_table, reported
from vtn_export.cli.options import Json


@reported
def command(as_json: Json = False) -> None:
    """Say what works on this machine, and what to install for the rest."""
    from vtn_export.evaluate.doctor import examine

    report = examine()
    if as_json:
        print_json(report)
        return
    print_table("this machine", ["", ""], [[name, str(value)] for name, value in report["machine"].items()])
    rows = [[c["name"], "yes" if c["available"] else "no", c["detail"]] for c in report["capabilities"]]
    print_table("what it can do", ["", "here", "with / what to do"], rows)
