"""Every barrier and every wait is needed: without any one of them, a detector or the oracle objects."""

from __future__ import annotations

import pytest

from tests.plugins.problem import Problem, check, run
from tests.ptx import Module

# One problem for each shape of kernel; long enough for every loop to turn several times.
PROBLEMS = {
    "resident, 5 tiles": Problem(sequence=150, lengths=(150,), heads=1),
    "resident, 11 tiles": Problem(sequence=150, window=32, lengths=(150,), heads=1),
    "resident, dilated": Problem(sequence=150, window=9, dilation=2, lengths=(150,), heads=1),
    "streaming": Problem(sequence=300, window=128, lengths=(300,), heads=1),
    "streaming, wide heads": Problem(sequence=150, window=100, head_dim=128, lengths=(150,), heads=1),
    "scalar": Problem("fp32", sequence=150, lengths=(150,), heads=1),
}
SYNCHRONIZING = ("bar.sync", "barrier.sync", "bar.warp.sync", "cp.async.wait", "cp.async.commit")


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_is_needed(name: str) -> None:
    problem = PROBLEMS[name]
    found: list[int] = []

    def collect(module: Module) -> Module:
        found.extend(instruction.line for instruction in module.instructions(module.kernels[0], *SYNCHRONIZING))
        return module

    outcome = run(problem, change=collect)
    assert not outcome.report.findings
    assert len(found) >= 3, "a wait, a commit and a barrier at least"
    for line in found:
        broken = run(problem, change=lambda module, line=line: module.without(line))
        assert broken.report.findings, f"{outcome.kernel}: nothing notices that line {line} is gone"
    check(problem)
