"""Counts of small kernels, worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from .counts import count_sectors, count_wavefronts
from .lanes import run_lanes

LANE = np.arange(32, dtype=np.int64)


def wavefronts(
    addresses: list[int] | npt.NDArray[np.int64], size: int, mask: list[bool] | None = None
) -> tuple[int, int]:
    rows = np.array(addresses, np.int64).reshape(1, -1)
    return count_wavefronts(rows, None if mask is None else np.array(mask).reshape(1, -1), size)


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (4 * LANE, 4, (1, 0)),  # one word a bank
        (8 * LANE, 4, (2, 1)),  # stride of two words: two words a bank
        (128 * LANE, 4, (32, 31)),  # a column of a 32-word row
        (132 * LANE, 4, (1, 0)),  # the same, padded by a word
        (0 * LANE, 4, (1, 0)),  # all read one word
        (4 * (LANE // 2), 4, (1, 0)),  # pairs share words
        (128 * (LANE % 2), 4, (2, 1)),  # two words of one bank, each for 16 lanes
        (LANE, 1, (1, 0)),
        (2 * LANE, 2, (1, 0)),
        (8 * LANE, 8, (2, 0)),  # two phases of 16 lanes
        (16 * LANE, 8, (4, 2)),
        (16 * LANE, 16, (4, 0)),  # four phases of 8 lanes
        (32 * LANE, 16, (8, 4)),
        (128 * LANE, 16, (32, 28)),
        (144 * LANE, 16, (4, 0)),  # rows of 128 bytes, padded by 16
        (128 * LANE + 16 * (LANE % 8), 16, (4, 0)),  # or swizzled
    ],
)
def test_bank_conflicts(addresses: npt.NDArray[np.int64], size: int, expected: tuple[int, int]) -> None:
    assert wavefronts(addresses, size) == expected


def test_idle_lanes_neither_conflict_nor_count() -> None:
    assert wavefronts(128 * LANE, 4, [n < 3 for n in range(32)]) == (3, 2)
    assert wavefronts(128 * LANE, 16, [n in (0, 8, 16) for n in range(32)]) == (3, 0)
    assert wavefronts(128 * LANE, 4, [False] * 32) == (0, 0)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (4 * LANE, 4),  # 128 bytes
        (4 * LANE + 16, 5),  # the same, not aligned to a sector
        (16 * LANE, 16),
        (32 * LANE, 32),
        (0 * LANE, 1),
        (4096 * (LANE % 2), 2),
        (4 * LANE[::-1], 4),
    ],
)
def test_sectors(addresses: npt.NDArray[np.int64], expected: int) -> None:
    rows = addresses.reshape(1, 32)
    assert count_sectors(rows, None) == (1, expected)
    both = np.concatenate([rows, rows + 10000 * 32])
    assert count_sectors(both, None) == (2, 2 * expected)
    half = np.array([[True] * 16 + [False] * 16])
    assert count_sectors(rows, half) == (1, len(set((addresses[:16] // 32).tolist())))
    assert count_sectors(rows, ~half & half) == (0, 0)


def test_instructions_and_opcodes() -> None:
    """A loop of three trips by two warps; one warp leaves it after one."""
    code = """
    mov.b32 x, 0;
    LOOP: add.u32 x, x, 1; setp.lt.u32 p, x, a; @p bra LOOP;"""
    a = np.array([3] * 32 + [1] * 32, np.uint32)
    _, base = run_lanes("mov.b32 x, 0;", a)
    (got,), report = run_lanes(code, a)
    assert got.tolist() == a.tolist()
    assert report.counts.warp_instructions - base.counts.warp_instructions == 3 * (3 + 1)
    assert report.counts.opcodes["setp.lt.u32"] == 4
    assert report.counts.opcodes["bra"] == 4
    assert report.counts.opcodes["ret"] == 2
    assert sum(report.counts.opcodes.values()) == sum(report.lines.values()) == report.counts.warp_instructions


def test_divergent_warps_issue_both_sides() -> None:
    code = """
    mov.b32 x, 7; and.b32 r1, a, 1; setp.eq.u32 p, r1, 0; @p bra EVEN; mul.lo.u32 x, a, 3; bra END;
    EVEN: sub.u32 x, a, 1;
    END:"""
    _, mixed = run_lanes(code, np.arange(32, dtype=np.uint32))
    _, pure = run_lanes(code, np.zeros(32, np.uint32))
    assert (mixed.counts.opcodes["mul.lo.u32"], mixed.counts.opcodes["sub.u32"]) == (1, 1)
    assert (pure.counts.opcodes["mul.lo.u32"], pure.counts.opcodes["sub.u32"]) == (0, 1)


def test_guards_that_hold_nowhere() -> None:
    code = "mov.b32 x, 0; setp.gt.u32 p, a, 40; @p add.u32 x, a, 1;"
    _, report = run_lanes(code, np.arange(64, dtype=np.uint32))
    assert report.counts.predicated_off == 1
    assert report.counts.opcodes["add.u32"] == 2


def test_traffic_of_a_kernel() -> None:
    a = np.arange(64, dtype=np.uint32)
    _, report = run_lanes("mov.b32 x, a;", a)
    counts = report.counts
    assert (counts.global_load_requests, counts.global_load_sectors, counts.global_load_bytes) == (2, 8, 256)
    assert (counts.global_store_requests, counts.global_store_sectors, counts.global_store_bytes) == (2, 8, 256)
    assert (counts.global_load_traffic, counts.global_store_traffic) == (256, 256)


def test_conflicts_by_kind_of_access() -> None:
    declared = ".extern .shared .align 128 .b8 buffer[];"
    code = """
    mov.u32 r8, buffer; shl.b32 r9, tid, {}; add.u32 r9, r9, r8;
    cp.async.cg.shared.global [r9], [base0], 16; cp.async.wait_all; bar.sync 0;
    ld.shared.v4.u32 {{r1, r2, r3, r4}}, [r9]; bar.sync 0; st.shared.v4.u32 [r9], {{r1, r2, r3, r4}}; bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{x, r2, r3, r4}}, [r9];"""
    source = np.zeros((32, 2), np.uint64)
    for shift, extra in ((4, 0), (7, 28)):
        text = code.format(shift).replace("[base0]", "[rd1]")
        text = "sub.u64 rd1, base0, offset; and.b64 rd1, rd1, -256;" + text
        _, report = run_lanes(text, source[:, 0].copy(), shared_bytes=4096, declarations=declared)
        counts = report.counts
        assert not report.findings, report
        assert counts.cp_async_conflicts == extra
        assert counts.shared_load_conflicts == extra
        assert counts.shared_store_conflicts == extra
        assert counts.ldmatrix_conflicts == extra
        assert counts.bank_conflicts == 4 * extra
        assert sum(report.conflict_lines.values()) == 4 * extra
