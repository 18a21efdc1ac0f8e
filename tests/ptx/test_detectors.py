"""Each detector on a kernel that is broken on purpose, and on the kernel put right."""

from __future__ import annotations

import numpy as np
import pytest

from . import Memory, Module, PtxError, Report
from .lanes import HEADER, run_lanes

A = np.arange(64, dtype=np.uint32)
CELLS = ".shared .align 16 .b8 cells[256]; mov.u32 r1, cells; shl.b32 r2, tid, 2; add.u32 r2, r2, r1;\n"
OTHER = "xor.b32 r3, tid, {}; shl.b32 r3, r3, 2; add.u32 r3, r3, r1;\n"


def found(code: str, **options: object) -> dict[str, str]:
    """Kind -> text of the instructions that were reported for 64 threads."""
    _, report = run_lanes(code, A, **options)  # type: ignore[arg-type]
    return {finding.kind: finding.text for finding in report.findings}


# -- races -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("between", "partner", "racing"),
    [
        ("", 32, True),
        ("bar.sync 0;", 32, False),
        ("bar.warp.sync -1;", 32, True),  # orders one warp only
        ("", 1, True),  # lanes of a warp are not in lockstep
        ("bar.warp.sync -1;", 1, False),
        ("shfl.sync.idx.b32 r9, r2, 0, 31, -1;", 1, True),  # a shuffle does not order memory
        ("membar.cta;", 32, True),
        ("", 0, False),  # a thread sees its own writes
    ],
)
def test_write_then_read(between: str, partner: int, racing: bool) -> None:
    code = CELLS + OTHER.format(partner) + f"st.shared.u32 [r2], a;\n{between}\nld.shared.u32 x, [r3];"
    assert ("shared-race" in found(code)) == racing


def test_read_then_write() -> None:
    code = (
        CELLS
        + OTHER.format(32)
        + """st.shared.u32 [r2], a; bar.sync 0;
    ld.shared.u32 x, [r3];
    {}
    st.shared.u32 [r2], x;"""
    )
    _, report = run_lanes(code.format(""), A)
    (race,) = report.findings
    assert race.kind == "shared-race"
    assert race.text == "st.shared.u32 [r2], x"
    assert "(ld.shared.u32 x, [r3])" in race.detail
    assert "no barrier between this and line" in race.detail
    assert race.count == 64
    assert not found(code.format("bar.sync 0;"))


def test_write_then_write() -> None:
    code = CELLS + "st.shared.u32 [r1], a; {} mov.b32 x, 0;"
    assert found(code.format("")) == {"shared-race": "st.shared.u32 [r1], a"}
    alone = "setp.eq.u32 p, tid, 40; @p st.shared.u32 [r1], a; bar.sync 0; ld.shared.u32 x, [r1];"
    assert not found(CELLS + alone)


def test_neighbouring_halves_do_not_race() -> None:
    code = """
    .shared .align 16 .b8 cells[128]; mov.u32 r1, cells; shl.b32 r2, tid, 1; add.u32 r2, r2, r1;
    cvt.u16.u32 h1, a; st.shared.u16 [r2], h1; ld.shared.u16 h2, [r2]; cvt.u32.u16 x, h2;"""
    assert not found(code)


def test_atomics_race_with_plain_accesses_only() -> None:
    start = CELLS + "setp.eq.u32 p, tid, 0; @p st.shared.u32 [r1], a; bar.sync 0; red.shared.add.u32 [r1], a;"
    assert not found(start + "bar.sync 0; ld.shared.u32 x, [r1];")
    assert "shared-race" in found(start + "ld.shared.u32 x, [r1];")


def test_matrix_loads_race_with_the_lanes_that_wrote() -> None:
    code = """
    .shared .align 16 .b8 cells[1024]; mov.u32 r1, cells; shl.b32 r2, tid, 4; add.u32 r2, r2, r1;
    st.shared.v4.u32 [r2], {{a, a, a, a}}; {}
    ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{x, r4, r5, r6}}, [r2];"""
    assert "shared-race" in found(code.format(""))
    assert not found(code.format("bar.warp.sync -1;"))


# -- cp.async ----------------------------------------------------------------------------------------

COPY = """
.shared .align 16 .b8 cells[256]; mov.u32 r1, cells; shl.b32 r2, tid, 2; add.u32 r2, r2, r1;
xor.b32 r3, tid, 32; shl.b32 r3, r3, 2; add.u32 r3, r3, r1;
cp.async.ca.shared.global [r2], [base0], 4; cp.async.commit_group;
{}
{}
ld.shared.u32 x, [r3];"""


@pytest.mark.parametrize(
    ("wait", "barrier", "kinds"),
    [
        ("cp.async.wait_group 0;", "bar.sync 0;", set()),
        ("cp.async.wait_all;", "bar.sync 0;", set()),
        ("", "bar.sync 0;", {"cp.async-in-flight", "uninitialised-read"}),
        ("cp.async.wait_group 1;", "bar.sync 0;", {"cp.async-in-flight", "uninitialised-read"}),
        ("cp.async.wait_group 0;", "", {"shared-race"}),
        ("", "", {"cp.async-in-flight", "uninitialised-read", "shared-race"}),
        ("bar.sync 0;", "cp.async.wait_group 0;", {"shared-race"}),  # the wrong order
    ],
)
def test_copy_then_read(wait: str, barrier: str, kinds: set[str]) -> None:
    assert set(found(COPY.format(wait, barrier))) == kinds


def test_reuse_of_a_buffer_needs_a_barrier_before_the_next_copy() -> None:
    again = "cp.async.ca.shared.global [r2], [base0], 4; cp.async.wait_all;"
    code = COPY.format("cp.async.wait_all;", "bar.sync 0;")
    assert set(found(code + again)) == {"shared-race"}
    assert not found(code + "bar.sync 0;" + again)


def test_two_copies_to_one_place() -> None:
    code = COPY.format("cp.async.ca.shared.global [r2], [base0], 4; cp.async.wait_all;", "bar.sync 0;")
    assert set(found(code)) == {"cp.async-in-flight"}


# -- bounds, alignment, initialisation ---------------------------------------------------------------


def global_kernel(body: str, shift: int = 0, words: int = 32, read_only: bool = False) -> Report:
    """A kernel of 32 lanes with %rd1 = 4·tid bytes into `words` words, moved by `shift` bytes."""
    text = (
        HEADER
        + f"""
    .visible .entry run(.param .u64 at) {{
        .reg .b32 r<8>; .reg .b64 rd<8>; .reg .pred p;
        ld.param.u64 rd1, [at]; mov.u32 r1, %tid.x; mul.wide.u32 rd2, r1, 4; add.u64 rd1, rd1, rd2;
        {body}
        ret; }}"""
    )
    memory = Memory()
    pointer = memory.alloc(np.zeros(words, np.uint32), read_only=read_only) + shift
    return Module(text).launch("run", 1, 32, [pointer], memory)


def test_global_bounds() -> None:
    assert not global_kernel("ld.global.u32 r2, [rd1]; st.global.u32 [rd1], r2;").findings
    (beyond,) = global_kernel("ld.global.u32 r2, [rd1+4];").findings
    assert (beyond.kind, beyond.count, beyond.line) == ("out-of-bounds", 1, 8)
    assert "thread 31" in beyond.detail
    assert "byte 128 of the allocation at" in beyond.detail
    (before,) = global_kernel("st.global.u32 [rd1+-4], r1;").findings
    assert (before.kind, before.count) == ("out-of-bounds", 1)
    (part,) = global_kernel("shl.b64 rd2, rd2, 0; ld.global.u32 r2, [rd1];", words=20).findings
    assert part.count == 12
    (nowhere,) = global_kernel("mov.u64 rd1, 64; ld.global.u32 r2, [rd1];").findings
    assert (nowhere.kind, nowhere.count) == ("out-of-bounds", 32)
    assert not global_kernel("setp.lt.u32 p, r1, 31; @p ld.global.u32 r2, [rd1+4];").findings


def test_a_vector_that_only_ends_outside() -> None:
    body = "and.b64 rd1, rd1, -16; setp.ge.u32 p, r1, 28; @p ld.global.v4.u32 {r2, r3, r4, r5}, [rd1];"
    assert not global_kernel(body).findings
    assert [f.kind for f in global_kernel(body, words=31).findings] == ["out-of-bounds"]


def test_alignment() -> None:
    (odd,) = global_kernel("setp.lt.u32 p, r1, 20; @p ld.global.u32 r2, [rd1];", shift=2).findings
    assert (odd.kind, odd.count) == ("misaligned", 20)
    (half,) = global_kernel("setp.lt.u32 p, r1, 20; @p ld.global.v2.u32 {r2, r3}, [rd1];").findings
    assert (half.kind, half.count) == ("misaligned", 10)
    code = """.shared .align 16 .b8 cells[272]; mov.u32 r1, cells; mad.lo.u32 r2, tid, 4, r1;
    mov.b32 x, 0; st.shared.v4.u32 [r2], {x, x, x, x};"""
    assert found(code)["misaligned"] == "st.shared.v4.u32 [r2], {x, x, x, x}"
    copies = """.shared .align 16 .b8 cells[1024]; mov.u32 r1, cells; mad.lo.u32 r2, tid, 16, r1; mov.b32 x, 0;
    and.b64 base0, base0, -256; cp.async.cg.shared.global [r2], [base0+8], 16; cp.async.wait_all;"""
    assert found(copies)["misaligned"] == "cp.async.cg.shared.global [r2], [base0+8], 16"
    partly = copies.replace("], 16;", "], 16, 4;")
    assert found(partly)["misaligned"] == "cp.async.cg.shared.global [r2], [base0+8], 16, 4"


def test_read_only_memory() -> None:
    (finding,) = global_kernel("st.global.u32 [rd1], r1;", read_only=True).findings
    assert (finding.kind, finding.count) == ("write-to-read-only", 32)
    body = "mov.u32 r2, 9; st.global.u32 [rd1], r2; ld.global.u32 r3, [rd1]; setp.ne.u32 p, r3, 0; @p trap;"
    assert len(global_kernel(body, read_only=True).findings) == 1, "the store did not happen: no trap"
    with pytest.raises(PtxError, match="trap was executed"):
        global_kernel(body)
    assert not global_kernel("ld.global.u32 r2, [rd1];", read_only=True).findings


def test_shared_bounds() -> None:
    code = CELLS + "st.shared.u32 [r2+{}], a; mov.b32 x, 0;"
    assert not found(code.format(0))
    _, report = run_lanes(code.format(8), A)
    (finding,) = report.findings
    assert (finding.kind, finding.count) == ("out-of-bounds", 2)
    assert "shared byte 256 of 256" in finding.detail
    dynamic = "mov.u32 r1, buffer; shl.b32 r2, tid, 2; add.u32 r2, r2, r1; st.shared.u32 [r2], a; mov.b32 x, 0;"
    declared = ".extern .shared .align 16 .b8 buffer[];"
    assert not found(dynamic, shared_bytes=256, declarations=declared)
    assert "out-of-bounds" in found(dynamic, shared_bytes=252, declarations=declared)


def test_local_bounds() -> None:
    code = """.local .align 4 .b8 depot[16]; mov.u64 rd1, depot; add.u64 rd1, rd1, {0}; st.local.u32 [rd1], a;
    ld.local.u32 x, [rd1];"""
    assert not found(code.format(12))
    assert "out-of-bounds" in found(code.format(16))


def test_uninitialised_shared_memory_is_nan_and_reported() -> None:
    (got,), report = run_lanes(CELLS + "ld.shared.f32 x, [r2];", A, out=np.float32)
    assert np.isnan(got).all()
    assert [(f.kind, f.count) for f in report.findings] == [("uninitialised-read", 64)]
    halves = CELLS + "st.shared.u16 [r2], a; ld.shared.u32 x, [r2];"
    assert set(found(halves)) == {"uninitialised-read"}
    matrix = CELLS + "and.b32 r2, r2, -16; ldmatrix.sync.aligned.m8n8.x1.shared.b16 {x}, [r2];"
    assert set(found(matrix)) == {"uninitialised-read"}


def test_uninitialised_global_and_local_memory() -> None:
    text = (
        HEADER
        + """
    .visible .entry run(.param .u64 at) {
        .reg .b32 r<8>; .reg .b64 rd<8>; ld.param.u64 rd1, [at]; ld.global.u32 r1, [rd1]; ret; }"""
    )
    memory = Memory()
    report = Module(text).launch("run", 1, 32, [memory.empty(4, np.float32)], memory)
    assert [f.kind for f in report.findings] == ["uninitialised-read"]
    assert set(found(".local .align 4 .b8 depot[16]; ld.local.u32 x, [depot+4];")) == {"uninitialised-read"}


# -- divergence --------------------------------------------------------------------------------------


def test_a_barrier_in_one_branch() -> None:
    code = "mov.b32 x, a; setp.lt.u32 p, tid, 16; @!p bra END; bar.sync 0; END: bar.sync 1;"
    assert "divergent-barrier" in found(code)
    by_warp = "mov.b32 x, a; setp.lt.u32 p, tid, 32; @!p bra OTHER; bar.sync 0; bra END; OTHER: bar.sync 0; END:"
    assert not found(by_warp), "whole warps may reach the same barrier by different instructions"


def test_a_barrier_after_some_threads_have_ended() -> None:
    code = "mov.b32 x, a; setp.ge.u32 p, tid, 50; @p exit; bar.sync 0;"
    assert set(found(code)) == {"divergent-barrier"}


def test_a_barrier_that_nobody_completes() -> None:
    code = "mov.b32 x, a; setp.lt.u32 p, tid, 32; @!p bra OTHER; bar.sync 2, 64; OTHER:"
    assert set(found(code)) == {"divergent-barrier"}


@pytest.mark.parametrize(
    "collective",
    [
        "shfl.sync.idx.b32 x, a, 0, 31, -1;",
        "vote.sync.ballot.b32 x, p, -1;",
        "bar.warp.sync -1;",
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {x, r2, r3, r4}, {r1, r1}, {r1}, {r1, r1, r1, r1};",
    ],
)
def test_collectives_of_half_a_warp(collective: str) -> None:
    for before in ("", "mov.b32 r5, 1;"):  # as the first instruction behind the branch, and in the middle
        code = f"""mov.b32 x, a; mov.b32 r1, 0; setp.lt.u32 p, tid, 16; @!p bra END; {before} {collective}
        END: bar.sync 0;"""
        assert "divergent-collective" in found(code)
        assert "divergent-collective" not in found(code.replace("@!p bra END;", ""))


def test_a_guarded_matrix_instruction() -> None:
    code = """mov.b32 r1, 0; setp.lt.u32 p, tid, 16; mov.b32 x, 0;
    @p mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {r5, r2, r3, r4}, {r1, r1}, {r1}, {r1, r1, r1, r1};"""
    assert set(found(code)) == {"divergent-collective"}


def test_lanes_outside_their_mask_and_sources_outside() -> None:
    outside = "shfl.sync.idx.b32 x, a, 0, 31, 0xff;"
    assert set(found(outside)) == {"divergent-collective"}
    masked = """mov.b32 x, a; setp.lt.u32 p, tid, 8; @!p bra END; shfl.sync.idx.b32 x, a, {}, 31, 0xff; END:"""
    assert not found(masked.format(5))
    assert set(found(masked.format(9))) == {"divergent-collective"}
