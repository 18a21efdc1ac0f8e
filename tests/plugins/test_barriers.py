"""Every barrier and every wait is needed: without any one of them, a detector or the oracle objects."""

from __future__ import annotations

import pytest

from tests.plugins.library import DTYPES, plan
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


def check_each_is_needed(problem: Problem) -> None:
    found: list[int] = []

    def collect(module: Module) -> Module:
        found.extend(instruction.line for instruction in module.instructions(module.kernels[0], *SYNCHRONIZING))
        return module

    outcome = run(problem, change=collect)
    assert not outcome.report.findings
    assert len(found) >= (3 if problem.capability >= 80 else 1), "a wait, a commit and a barrier; SM 7.5: a barrier"
    for line in found:
        broken = run(problem, change=lambda module, line=line: module.without(line))
        assert broken.report.findings, f"{outcome.kernel}: nothing notices that line {line} is gone"


@pytest.mark.parametrize("name", PROBLEMS)
def test_each_is_needed(name: str) -> None:
    check_each_is_needed(PROBLEMS[name])
    check(PROBLEMS[name])


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("dtype", "capability"),
    [(d, c) for c in (80, 75) for d in DTYPES if (d, c) != ("bf16", 75)],  # refused on SM 7.5
)
def test_each_is_needed_in_every_kernel(dtype: str, capability: int) -> None:
    """The shortest problem that each kernel of a type is chosen for and goes round its loops in."""
    reached = set()
    for head_dim in (32, 64, 80, 96, 128):
        for window, dilation, sequence in (
            (9, 1, 150), (9, 2, 150), (32, 1, 150), (32, 1, 300), (32, 2, 150), (100, 1, 300),
        ):  # fmt: skip
            problem = Problem(
                dtype, head_dim, 1, sequence, window, dilation, lengths=(sequence,), capability=capability
            )
            status, launch = plan(problem.params(), capability)
            if status == 0 and launch.kernel not in reached:
                reached.add(launch.kernel)
                check_each_is_needed(problem)
    # SM 7.5 has too little shared memory for some
    assert len(reached) == (5 if dtype == "fp32" else 24 if capability == 80 else 18), sorted(reached)
