"""What a launch did wrong, by PTX line."""

from __future__ import annotations

from dataclasses import dataclass

OUT_OF_BOUNDS = "out-of-bounds"
MISALIGNED = "misaligned"
UNINITIALISED = "uninitialised-read"
READ_ONLY = "write-to-read-only"
RACE = "shared-race"
IN_FLIGHT = "cp.async-in-flight"
DIVERGENT = "divergent-collective"
DIVERGENT_BARRIER = "divergent-barrier"


@dataclass
class Finding:
    """One kind of fault at one instruction. `count`: lanes (or pairs of accesses) it happened to.

    `line`: of the PTX text, from 1. `source`: the CUDA file and line, when nvcc had -lineinfo.
    """

    kind: str
    line: int
    text: str
    detail: str
    count: int
    source: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}" + (f" ({self.source})" if self.source else "")
        return f"{self.kind} at {where}: {self.text}: {self.detail} ({self.count}×)"


class Findings:
    """Collects findings; the first example of each kind and instruction is kept, the rest counted."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int, int], Finding] = {}

    def add(self, kind: str, line: int, text: str, detail: str, count: int = 1, other_line: int = 0) -> None:
        """`other_line` tells apart findings that need two instructions."""
        key = (kind, line, other_line)
        if key in self._found:
            self._found[key].count += count
        else:
            self._found[key] = Finding(kind, line, text, detail, count)

    def in_order(self) -> list[Finding]:
        """All of them, by line."""
        return sorted(self._found.values(), key=lambda finding: (finding.line, finding.kind))
