"""Counts that decide a kernel's speed, for lack of a clock: fp16, one global column, batch 1, 12 heads of 64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest

from tests.plugins.library import SOURCES
from tests.plugins.machine import resources, sass_instructions
from tests.plugins.problem import Outcome, Problem, run
from vtn_export.trt import plugins

HEADS, DIM = 12, 64
FP16 = 2


@dataclass(frozen=True)
class Limit:
    warp_instructions: int
    work: float
    loads: float
    registers: int
    occupancy: float


LIMITS = {
    9: Limit(95_000, 2.3, 1.2, 64, 0.40),
    32: Limit(130_000, 1.6, 1.25, 80, 0.35),
    128: Limit(360_000, 1.35, 1.75, 128, 0.25),
}
MAX_WINDOW_9_SASS = 660


def problem_of(window: int, sequence: int = 252, heads: int = HEADS, capability: int = 80) -> Problem:
    return Problem("fp16", DIM, heads, sequence, window, lengths=(sequence,), capability=capability)


@cache
def outcome_of(window: int, sequence: int = 252, heads: int = HEADS, capability: int = 80) -> Outcome:
    return run(problem_of(window, sequence, heads, capability))


@cache
def readme() -> str:
    """The page with the table; skips where another compiler than the table's made the kernels."""
    text = (SOURCES / "sliding_window_attention" / "README.md").read_text(encoding="utf-8")
    version = plugins.find_toolkit().version_text
    if f"CUDA {version}" not in text:
        pytest.skip(f"the table is not of CUDA {version}")
    return text


def useful_flops(problem: Problem) -> int:
    """2·D for q·k and 2·D for p·v, for every row and column of C(i)."""
    pairs = sum(
        min(problem.globals, problem.sequence)
        + max(min(i + problem.window, problem.sequence - 1) - max(i - problem.window, problem.globals) + 1, 0)
        for i in range(problem.sequence)
    )
    return 4 * problem.head_dim * problem.heads * pairs


@pytest.mark.parametrize("capability", [80, 87])
@pytest.mark.parametrize("window", LIMITS)
def test_counts(window: int, capability: int) -> None:
    limit, problem = LIMITS[window], problem_of(window, capability=capability)
    outcome = outcome_of(window, capability=capability)
    counts = outcome.report.counts
    qkv_bytes = 3 * HEADS * DIM * FP16 * problem.sequence
    figures = {
        "warp instructions": (counts.warp_instructions, limit.warp_instructions),
        "tensor-core work / useful": (counts.mma_flops / useful_flops(problem), limit.work),
        "loads / qkv": (counts.global_load_traffic / qkv_bytes, limit.loads),
        "stores / output": (counts.global_store_traffic / (qkv_bytes / 3), 1.0),
        "bank conflicts": (counts.bank_conflicts, 0),
    }
    print(window, capability, {name: round(value, 3) for name, (value, _) in figures.items()})
    assert not outcome.report.findings, outcome.report
    for name, (value, highest) in figures.items():
        assert value <= highest, f"window {window}: {name}: got {value}, expected at most {highest}"


@pytest.mark.parametrize("capability", [80, 87])
@pytest.mark.parametrize("window", LIMITS)
def test_the_table_is_what_is_measured(window: int, capability: int) -> None:
    problem, outcome = problem_of(window, capability=capability), outcome_of(window, capability=capability)
    counts, kernel = outcome.report.counts, resources("fp16", problem)
    qkv_bytes = 3 * HEADS * DIM * FP16 * problem.sequence
    cells = (
        f"{window}",
        f"{counts.warp_instructions:,}",
        f"{counts.mma_flops / useful_flops(problem):.2f}",
        f"{counts.global_load_traffic / qkv_bytes:.3f}",
        f"{counts.global_store_traffic / (qkv_bytes / 3):.2f}",
        f"{counts.bank_conflicts}",
        f"{kernel.registers}, {kernel.stack_bytes}",
        f"{100 * kernel.occupancy:.3g} %",
        f"{sass_instructions('fp16', outcome.kernel, capability):,}",
    )
    section = readme().partition(f"| **SM {capability / 10}** |")[2]
    assert f"| {' | '.join(cells)} |" in section.splitlines()[1:4]


@pytest.mark.parametrize("capability", [80, 87])
@pytest.mark.parametrize("window", LIMITS)
def test_registers_and_occupancy(window: int, capability: int) -> None:
    kernel = resources("fp16", problem_of(window, capability=capability))
    print(window, capability, kernel, round(kernel.occupancy, 3))
    assert kernel.stack_bytes == 0, "spills"
    if capability == 80:
        assert kernel.registers <= LIMITS[window].registers
        assert kernel.occupancy >= LIMITS[window].occupancy


@pytest.mark.parametrize("capability", [80, 87])
def test_window_9_is_short_machine_code(capability: int) -> None:
    count = sass_instructions("fp16", outcome_of(9, capability=capability).kernel, capability)
    print("SASS instructions:", capability, count)
    assert count <= MAX_WINDOW_9_SASS


@pytest.mark.parametrize("sequence", [1024, 8192])
@pytest.mark.parametrize("window", [9, 32])
def test_long_sequences_read_no_more(window: int, sequence: int) -> None:
    """One head of the twelve: loads of heads are alike, and the interpreter takes its time."""
    counts = outcome_of(window, sequence, 1).report.counts
    loads = counts.global_load_traffic / (3 * DIM * FP16 * sequence)
    print(window, sequence, round(loads, 3))
    assert loads <= LIMITS[window].loads
    assert counts.bank_conflicts == 0
    assert f"| {window} | {sequence:,} | {loads:.3f} |" in readme().splitlines()


@pytest.mark.parametrize("window", [9, 32, 128])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128])
def test_no_bank_conflicts_at_any_head_dimension(head_dim: int, window: int) -> None:
    counts = run(Problem("fp16", head_dim, 1, 100, window, lengths=(100,))).report.counts
    assert counts.bank_conflicts == 0, counts.conflicts_at
