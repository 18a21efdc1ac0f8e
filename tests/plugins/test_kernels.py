"""Every kernel of the library, as its PTX, against the float64 oracle; no detector may find anything."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.plugins.covering import covering_array
from tests.plugins.library import DTYPES, library, plan, ptx
from tests.plugins.problem import Problem, check, run

HEAD_DIMS = (32, 64, 80, 96, 128)
WIDER = 100_000  # than any sequence
FACTORS = {
    "dtype": DTYPES,
    "head_dim": HEAD_DIMS,
    "window": (1, 9, 16, 32, 128, WIDER),
    "sequence": (1, 2, 15, 16, 17, 33, 251, 252),
    "dilation": (1, 2, 3),
    "causal": (False, True),
    "globals": (0, 1, 2, 11),
    "lengths": ("full", "ragged", "zero", "beyond"),
    "scale": ("usual", "negative", "zero"),
    "capability": (80, 75),
}


def problem_of(case: dict[str, Any]) -> Problem:
    values = dict(case)
    sequence = values["sequence"]
    lengths = {
        "full": (sequence,),
        "ragged": (max(sequence * 2 // 3, 1), sequence),
        "zero": (0, sequence),
        "beyond": (sequence + 7, -3),
    }[values.pop("lengths")]
    scale = {"usual": None, "negative": -0.125, "zero": 0.0}[values.pop("scale")]
    if values["dtype"] == "bf16":  # refused on SM 7.5
        values["capability"] = 80
    return Problem(lengths=lengths, scale=scale, seed=sequence, **values)


PAIRS = covering_array(FACTORS, 2)


@pytest.mark.parametrize("case", PAIRS, ids=lambda case: "-".join(map(str, case.values())))
def test_pairwise(case: dict[str, Any]) -> None:
    check(problem_of(case))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_wise() -> None:
    for case in covering_array(FACTORS, 3):
        check(problem_of(case))


def test_every_kernel_ran() -> None:
    """The planner reaches each kernel that is compiled; none is dead weight."""
    names = {name for dtype in DTYPES for name in re.findall(r"\.entry (\w+)", ptx(dtype).read_text())}
    reached = set()
    for dtype in DTYPES:
        for dim in HEAD_DIMS:
            for window, dilation, sequence in (
                (9, 1, 252),
                (9, 2, 252),
                (32, 1, 252),
                (32, 1, 1024),
                (32, 2, 252),
                (200, 1, 252),
            ):
                status, launch = plan(Problem(dtype, dim, sequence=sequence, window=window, dilation=dilation).params())
                assert status == 0
                reached.add(launch.kernel.decode())
    assert reached == names


@settings(max_examples=15)
@given(
    dtype=st.sampled_from(DTYPES),
    head_dim=st.sampled_from(HEAD_DIMS),
    sequence=st.integers(1, 300),
    window=st.integers(1, 60),
    dilation=st.integers(1, 9),
    causal=st.booleans(),
    columns=st.integers(0, 70),
    lengths=st.lists(st.integers(-1, 320), min_size=1, max_size=2),
    seed=st.integers(0, 5),
)
@example("fp16", 64, 300, 8, 1, True, 8, [300], 0)
@example("bf16", 64, 65, 11, 1, False, 1, [64, 65], 1)
@example("fp16", 32, 200, 32, 1, False, 8, [129], 2)
def test_drawn(
    dtype: str, head_dim: int, sequence: int, window: int, dilation: int, causal: bool, columns: int,
    lengths: list[int], seed: int,
) -> None:  # fmt: skip
    check(Problem(dtype, head_dim, 2, sequence, window, dilation, causal, columns, tuple(lengths), None, 80, seed))


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_values_stay_finite(dtype: str) -> None:
    """Scores up to the square of fp16's largest number: no overflow, no NaN."""
    problem = Problem(dtype, sequence=40, lengths=(40,))
    qkv = (np.sign(problem.inputs().astype(np.float32)) * 6e4).astype(problem.inputs().dtype)
    outcome = run(problem, qkv)
    assert not outcome.report.findings, outcome.report
    assert np.isfinite(outcome.output.astype(np.float64)).all()


def test_masked_garbage_has_no_weight() -> None:
    """Infinite rows beyond the length, as an unfinished buffer may hold, do not reach any output."""
    for window in (9, 32, 128):
        problem = Problem(sequence=100, window=window, lengths=(60,))
        qkv = problem.inputs()
        clean = run(problem, qkv).output
        qkv[:, 60:] = np.inf
        assert np.array_equal(clean, run(problem, qkv).output)


def test_long_sequences_plan() -> None:
    """S = 2^18 in each type: the grid fits, 32-bit byte offsets do."""
    for dtype in DTYPES:
        status, launch = plan(Problem(dtype, heads=12, sequence=1 << 18, lengths=(1 << 18,)).params())
        assert status == 0
        assert launch.grid[1] * launch.queries >= 1 << 18
        assert launch.grid[1] <= 65535
    assert library().vtn_plugins_version().endswith(b"op=1")
