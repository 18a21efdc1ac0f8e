"""Branches, loops, calls and who runs when."""

from __future__ import annotations

import numpy as np
import pytest

from . import Memory, Module, PtxError
from .lanes import HEADER, evaluate, run_lanes

LANE = np.arange(64, dtype=np.uint32)


def test_every_lane_its_own_trip_count() -> None:
    code = """
    mov.b32 x, 0; mov.b32 r1, 0;
    LOOP: setp.ge.u32 p, r1, a; @p bra DONE; add.u32 x, x, r1; add.u32 r1, r1, 1; bra LOOP;
    DONE:"""
    assert evaluate(code, LANE).tolist() == [n * (n - 1) // 2 for n in range(64)]


def test_nested_divergence_and_lanes_that_end_early() -> None:
    code = """
    and.b32 r1, a, 1; setp.eq.u32 p, r1, 0; @p bra EVEN;
    shr.u32 r2, a, 1; and.b32 r2, r2, 1; setp.eq.u32 q, r2, 0; @q bra ONE;
    mov.b32 x, 3; bra JOIN;
    ONE: mov.b32 x, 1; bra JOIN;
    EVEN: mov.b32 x, 0;
    JOIN: setp.gt.u32 p, a, 40; @p exit; add.u32 x, x, 100;"""
    (got,), report = run_lanes(code, LANE)
    assert not report.findings
    assert got[:41].tolist() == [100 + (n % 4 if n % 2 else 0) for n in range(41)]
    assert set(got[41:].tolist()) == {0xFFFFFFFF}, "nothing was stored by lanes that had ended"


def test_branch_tables() -> None:
    code = """
    and.b32 r1, a, 3;
    TABLE: .branchtargets ZERO, ONE, TWO, ONE;
    brx.idx r1, TABLE;
    ZERO: mov.b32 x, 10; bra END;
    ONE: mov.b32 x, 11; bra END;
    TWO: mov.b32 x, 12;
    END:"""
    assert evaluate(code, LANE).tolist() == [[10, 11, 12, 11][n % 4] for n in range(64)]
    with pytest.raises(PtxError, match="beyond its table"):
        evaluate(code.replace("and.b32 r1, a, 3", "and.b32 r1, a, 7"), LANE)


def test_guards_keep_what_was_there() -> None:
    code = "mov.b32 x, 5; setp.lt.u32 p, a, 3; @p add.u32 x, a, 20; @!p mul.lo.u32 x, x, 2;"
    assert evaluate(code, LANE).tolist() == [20, 21, 22] + [10] * 61


CALLS = (
    HEADER
    + """
.func (.param .b32 result) triple(.param .b32 value)
{
    .reg .b32 r<4>; .reg .pred p;
    ld.param.b32 r1, [value];
    setp.lt.u32 p, r1, 10; @p bra SMALL;
    st.param.b32 [result+0], r1; ret;
    SMALL: mul.lo.u32 r2, r1, 3; st.param.b32 [result+0], r2; ret;
}
.func (.param .b32 result) twice(.param .b32 value)
{
    .reg .b32 r<4>; .local .align 4 .b8 depot[4];
    ld.param.b32 r1, [value]; st.local.u32 [depot], r1;
    { .param .b32 in; st.param.b32 [in+0], r1; .param .b32 out;
      call.uni (out), triple, (in); ld.param.b32 r2, [out+0]; }
    { .param .b32 in; st.param.b32 [in+0], r2; .param .b32 out;
      call.uni (out), triple, (in); ld.param.b32 r3, [out+0]; }
    ld.local.u32 r1, [depot]; add.u32 r3, r3, r1; st.param.b32 [result], r3; ret;
}
.visible .entry run(.param .u64 to)
{
    .reg .b32 r<4>; .reg .b64 rd<4>; .reg .pred p;
    ld.param.u64 rd1, [to]; mov.u32 r1, %tid.x; mul.wide.u32 rd2, r1, 4; add.u64 rd1, rd1, rd2; mov.u32 r2, 7;
    setp.ne.u32 p, r1, 5;
    { .param .b32 in; st.param.b32 [in+0], r1; .param .b32 out; @p call.uni (out), twice, (in);
      @p ld.param.b32 r2, [out+0]; }
    st.global.u32 [rd1], r2; ret;
}
"""
)


def test_calls_are_inlined_with_frames_of_their_own() -> None:
    memory = Memory()
    target = memory.empty(32, np.uint32)
    report = Module(CALLS).launch("run", 1, 32, [target], memory)
    assert not report.findings, report

    def triple(n: int) -> int:
        return 3 * n if n < 10 else n

    assert memory.get(target).tolist() == [7 if n == 5 else triple(triple(n)) + n for n in range(32)]


def test_blocks_run_in_any_number_at_once() -> None:
    """The same result whether blocks share a pass or not, also when they take different ways."""
    text = (
        HEADER
        + """
    .visible .entry run(.param .u64 to) {
        .shared .align 4 .b8 cell[4]; .reg .b32 r<8>; .reg .b64 rd<4>; .reg .pred p;
        ld.param.u64 rd1, [to]; mov.u32 r1, %ctaid.x; mov.u32 r2, %tid.x; mov.u32 r3, 0;
        setp.eq.u32 p, r2, 0; @p st.shared.u32 [cell], r1; bar.sync 0;
        LOOP: setp.ge.u32 p, r3, r1; @p bra DONE; bar.sync 0; add.u32 r3, r3, 1; bra LOOP;
        DONE: ld.shared.u32 r4, [cell]; mad.lo.u32 r4, r4, 100, r3; mov.u32 r5, %ntid.x;
        mad.lo.u32 r5, r1, r5, r2; mul.wide.u32 rd2, r5, 4; add.u64 rd1, rd1, rd2; st.global.u32 [rd1], r4; ret; }"""
    )
    reports = []
    for lanes in (64, 256, 100000):
        memory = Memory()
        target = memory.empty((9, 64), np.uint32)
        report = Module(text).launch("run", 9, 64, [target], memory, max_lanes=lanes)
        assert not report.findings, report
        assert np.array_equal(memory.get(target), np.repeat(np.arange(9) * 101, 64).reshape(9, 64))
        reports.append(report)
    assert {r.counts.warp_instructions for r in reports} == {reports[0].counts.warp_instructions}
    assert {r.counts.barriers for r in reports} == {9 + sum(range(9))}


def test_named_barriers() -> None:
    """Two pairs of warps synchronise by barriers of their own, with counts."""
    code = """
    .shared .align 4 .b8 cells[512]; mov.u32 r1, cells; shl.b32 r2, tid, 2; add.u32 r2, r2, r1; st.shared.u32 [r2], a;
    shr.u32 r3, tid, 6; add.u32 r4, r3, 1; bar.sync r4, 64; xor.b32 r5, tid, 32; shl.b32 r5, r5, 2; add.u32 r5, r5, r1;
    ld.shared.u32 x, [r5];"""
    a = np.arange(128, dtype=np.uint32)
    (got,), report = run_lanes(code, a)
    assert not report.findings, report
    assert np.array_equal(got, a ^ 32)
    assert report.counts.barriers == 2


def test_barriers_that_count_votes() -> None:
    code = """
    setp.lt.u32 p, a, 37; bar.red.popc.u32 x, 0, p; bar.red.and.pred q, 0, p; selp.u32 y, 1, 0, q;
    bar.red.or.pred q, 0, !p; selp.u32 z, 1, 0, q;"""
    results, report = run_lanes(code, LANE, out=[np.uint32] * 3)
    assert not report.findings, report
    assert [set(r.tolist()) for r in results] == [{37}, {0}, {1}]


def test_votes_of_warps_that_come_by_different_ways() -> None:
    code = """
    mov.b32 x, 9; mov.b32 r1, 5; setp.lt.u32 p, tid, 32; @p bra FIRST;
    setp.lt.u32 q, a, 40; add.u32 r1, r1, 1; bar.red.popc.u32 x, 0, q; bra END;
    FIRST: setp.lt.u32 q, a, 3; add.u32 r1, r1, 2; bar.red.popc.u32 x, 0, q;
    END: mov.b32 y, r1;"""
    (votes, ways), report = run_lanes(code, LANE, out=[np.uint32] * 2)
    assert not report.findings, report
    assert set(votes.tolist()) == {11}
    assert ways.tolist() == [7] * 32 + [6] * 32


def test_guards_in_one_branch_only() -> None:
    """The predicate and the old value both come from before the branch."""
    code = """
    mov.b32 x, 50; and.b32 r1, a, 1; setp.eq.u32 p, r1, 0; setp.lt.u32 q, tid, 20; @q bra END;
    @p mov.b32 x, 60;
    END:"""
    assert evaluate(code, LANE).tolist() == [50] * 20 + [60, 50] * 22


def test_names_of_an_inner_scope_end_with_it() -> None:
    code = """
    mov.b32 r1, 1; { .reg .b16 r1; .reg .b32 inner; mov.b32 inner, a; cvt.u16.u32 r1, inner; cvt.u32.u16 r2, r1; }
    add.u32 x, r1, r2;"""
    assert np.array_equal(evaluate(code, LANE), LANE + 1)


def test_producers_arrive_and_consumers_wait() -> None:
    """Warp 1 writes and arrives; warp 0 waits and reads."""
    code = """
    .shared .align 4 .b8 cells[128]; mov.u32 r1, cells; and.b32 r2, tid, 31; mad.lo.u32 r2, r2, 4, r1;
    mov.b32 x, 0; setp.lt.u32 p, tid, 32; @p bra CONSUMER;
    st.shared.u32 [r2], a; bar.arrive 3, 64; bra END;
    CONSUMER: bar.sync 3, 64; ld.shared.u32 x, [r2];
    END:"""
    (got,), report = run_lanes(code, LANE)
    assert not report.findings, report
    assert got.tolist() == list(range(32, 64)) + [0] * 32


def test_errors_name_the_line() -> None:
    with pytest.raises(PtxError, match=r"line \d+: not supported by the interpreter: wgmma\.fence"):
        run_lanes("wgmma.fence.sync.aligned;", LANE)
    with pytest.raises(PtxError, match=r"line \d+: unknown label"):
        run_lanes("bra NOWHERE;", LANE)
    with pytest.raises(PtxError, match="endless loop"):
        text = HEADER + ".visible .entry run() { L: bra L; }"
        Module(text).launch("run", 1, 32, [], Memory(), limit=1000)
    with pytest.raises(PtxError, match="trap was executed"):
        run_lanes("trap;", LANE)
    with pytest.raises(PtxError, match="got the kernel name 'jog'"):
        Module(CALLS).launch("jog", 1, 32, [], Memory())
    with pytest.raises(PtxError, match="got 0 arguments, expected 1"):
        Module(CALLS).launch("run", 1, 32, [], Memory())
    with pytest.raises(PtxError, match="got 3 bytes, expected 8"):
        Module(CALLS).launch("run", 1, 32, [b"abc"], Memory())
    with pytest.raises(PtxError, match=r"without \.version"):
        Module("int main() {}")


def test_an_unknown_instruction_matters_only_when_it_is_reached() -> None:
    code = "mov.b32 x, a; bra END; wgmma.fence.sync.aligned; END:"
    assert np.array_equal(evaluate(code, LANE), LANE)


def test_collectives_do_not_wait_for_lanes_that_end_elsewhere() -> None:
    """Lanes above 15 leave by a way that lies behind the shuffle; the others wait for nobody then."""
    code = """
    mov.b32 x, 0; setp.ge.u32 p, a, 16; @p bra OUT;
    activemask.b32 r1; shfl.sync.bfly.b32 x, a, 1, 31, r1; bra END;
    OUT: mov.b32 x, 7;
    END:"""
    (got,), report = run_lanes(code, LANE[:32])
    assert not report.findings, report
    assert got.tolist() == [n ^ 1 for n in range(16)] + [7] * 16
    everyone = code.replace("activemask.b32 r1", "mov.b32 r1, -1").replace("OUT: mov.b32 x, 7;", "OUT: exit;")
    (got,), report = run_lanes(everyone, LANE[:32])
    assert not report.findings, report
    assert got[:16].tolist() == [n ^ 1 for n in range(16)]
