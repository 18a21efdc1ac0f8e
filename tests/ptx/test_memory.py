"""Loads, stores, atomics and asynchronous copies, in every address space."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import numpy as np
import pytest

from . import Memory, Module
from .lanes import HEADER, evaluate, run_lanes

BUFFER = ".extern .shared .align 16 .b8 buffer[];"
LANE = np.arange(32, dtype=np.uint32)


def test_vectors_of_registers() -> None:
    memory = Memory()
    data = np.arange(128, dtype=np.uint32)
    source, target = memory.alloc(data), memory.empty(128, np.uint32)
    text = (
        HEADER
        + """
    .visible .entry run(.param .u64 from, .param .u64 to) {
        .reg .b32 r<8>; .reg .b64 rd<4>; .reg .f32 f<4>;
        ld.param.u64 rd0, [from]; ld.param.u64 rd1, [to];
        mov.u32 r0, %tid.x; mul.wide.u32 rd2, r0, 16; add.s64 rd0, rd0, rd2; add.s64 rd1, rd1, rd2;
        ld.global.nc.v4.u32 {r1, r2, r3, r4}, [rd0];
        st.global.v2.u32 [rd1+8], {r1, r2};
        st.global.v2.b32 [rd1], {r4, r3};
        ret; }"""
    )
    report = Module(text).launch("run", 1, 32, [source, target], memory)
    assert not report.findings
    expected = data.reshape(-1, 4)[:, [3, 2, 0, 1]].ravel()
    assert np.array_equal(memory.get(target), expected)


def test_narrow_loads_extend_by_their_type() -> None:
    bits = np.array([0x80, 0x7F, 0xFF, 0], np.uint8)
    assert evaluate("ld.global.u8 r1, [base0]; mov.b32 x, r1;", bits).tolist() == [0x80, 0x7F, 0xFF, 0]
    assert evaluate("ld.global.s8 r1, [base0]; mov.b32 x, r1;", bits).view(np.int32).tolist() == [-128, 127, -1, 0]
    short = np.array([0x8000, 0x7FFF], np.uint16)
    assert evaluate("ld.global.s16 r1, [base0]; mov.b32 x, r1;", short).view(np.int32).tolist() == [-32768, 32767]
    assert evaluate("ld.global.s16 rd1, [base0]; mov.b64 x, rd1;", short, out=np.int64).tolist() == [-32768, 32767]


def test_narrow_stores_cut() -> None:
    """st.u8 of a wider register stores its low byte, and nothing beside it."""
    code = ".shared .align 4 .b8 cell[4]; st.shared.u32 [cell], b; st.shared.u8 [cell+1], a; ld.shared.u32 x, [cell];"
    a, b = np.array([0x12345678], np.uint32), np.array([0xAABBCCDD], np.uint32)
    assert evaluate(code, a, b).tolist() == [0xAABB78DD]


def test_packing() -> None:
    a = np.array([0x12345678], np.uint32)
    assert evaluate("mov.b32 {h1, h2}, a; mov.b32 x, {h2, h1};", a).tolist() == [0x56781234]
    assert evaluate("mov.b64 rd1, {a, 5}; mov.b64 {r1, x}, rd1;", a).tolist() == [5]
    assert evaluate("mov.b64 rd1, {a, 5}; mov.b64 {x, _}, rd1;", a).tolist() == [0x12345678]
    assert evaluate("mov.b32 {h1, h2}, a; mov.b64 x, {h1, h2, h2, 7};", a, out=np.uint64).tolist() == [
        0x0007_1234_1234_5678
    ]


def test_shared_local_and_generic_addresses() -> None:
    code = """
    .local .align 8 .b8 depot[16]; .shared .align 4 .b8 fixed[128];
    mov.u64 rd1, depot; cvta.local.u64 rd2, rd1; st.u32 [rd2+4], a; ld.local.u32 r1, [rd1+4];
    mov.u32 r2, fixed; shl.b32 r3, tid, 2; add.u32 r2, r2, r3; st.shared.u32 [r2], r1;
    cvt.u64.u32 rd3, r2; cvta.shared.u64 rd3, rd3; ld.u32 r4, [rd3];
    cvta.to.shared.u64 rd4, rd3; cvt.u32.u64 r5, rd4; ld.shared.u32 r6, [r5]; add.u32 x, r4, r6;
    isspacep.shared p, rd3; isspacep.local q, rd2; and.pred p, p, q; isspacep.global q, base0; and.pred p, p, q;
    selp.u32 y, 1, 0, p;"""
    (x, y), report = run_lanes(code, LANE + 7, out=[np.uint32, np.uint32])
    assert not report.findings, report
    assert np.array_equal(x, 2 * (LANE + 7))
    assert y.all()


def test_one_generic_load_from_two_spaces() -> None:
    code = """
    .shared .align 4 .b8 fixed[128];
    mov.u32 r2, fixed; shl.b32 r3, tid, 2; add.u32 r2, r2, r3; add.u32 r4, a, 1000; st.shared.u32 [r2], r4;
    cvt.u64.u32 rd3, r2; cvta.shared.u64 rd3, rd3; setp.lt.u32 p, tid, 16;
    selp.b64 rd4, rd3, base0, p; ld.u32 x, [rd4];"""
    (x,), report = run_lanes(code, LANE)
    assert not report.findings, report
    assert x.tolist() == [n + 1000 for n in range(16)] + list(range(16, 32))


def test_struct_parameters_and_module_variables() -> None:
    text = (
        HEADER
        + """
    .global .align 4 .b8 table[8] = {1, 2, 3, 4, 250, 0, 0, 0};
    .const .align 4 .u32 scale = 3;
    .global .align 8 .u64 pointer = table;
    .visible .entry run(.param .align 8 .b8 p[24]) {
        .reg .b32 r<8>; .reg .b64 rd<8>;
        ld.param.u64 rd1, [p]; ld.param.v2.u32 {r1, r2}, [p+8]; ld.param.s16 r3, [p+16];
        mov.u64 rd2, pointer; ld.global.u64 rd3, [rd2]; ld.global.u32 r4, [rd3]; ld.global.u8 r5, [table+4];
        ld.const.u32 r6, [scale];
        st.global.v4.u32 [rd1], {r1, r2, r3, r4}; st.global.v2.u32 [rd1+16], {r5, r6};
        ret; }"""
    )
    memory = Memory()
    target = memory.empty(6, np.uint32)
    report = Module(text).launch("run", 1, 1, [struct.pack("<QIIh6x", target, 11, 22, -33)], memory)
    assert not report.findings, report
    assert memory.get(target).tolist() == [11, 22, 2**32 - 33, 0x04030201, 250, 3]


def test_grid_and_special_registers() -> None:
    text = (
        HEADER
        + """
    .visible .entry run(.param .u64 to) {
        .reg .b32 r<24>; .reg .b64 rd<4>;
        ld.param.u64 rd0, [to];
        mov.u32 r0, %ctaid.x; mov.u32 r1, %ctaid.y; mov.u32 r2, %ctaid.z; mov.u32 r3, %tid.x; mov.u32 r4, %tid.y;
        mov.u32 r5, %tid.z; mov.u32 r6, %ntid.x; mov.u32 r7, %ntid.y; mov.u32 r8, %nctaid.x; mov.u32 r9, %nctaid.y;
        mov.u32 r10, %laneid; mov.u32 r11, %warpid; mov.u32 r12, %lanemask_lt; mov.u32 r13, %ntid.z;
        mad.lo.u32 r14, r2, r9, r1; mad.lo.u32 r14, r14, r8, r0;
        mad.lo.u32 r15, r5, r7, r4; mad.lo.u32 r15, r15, r6, r3;
        mul.lo.u32 r16, r6, r7; mul.lo.u32 r16, r16, r13; mad.lo.u32 r16, r14, r16, r15;
        mul.wide.u32 rd1, r16, 16; add.u64 rd0, rd0, rd1; mad.lo.u32 r17, r11, 32, r10;
        st.global.v4.u32 [rd0], {r14, r15, r17, r12};
        ret; }"""
    )
    memory = Memory()
    grid, block = (2, 3, 2), (5, 3, 4)
    target = memory.empty((12, 60, 4), np.uint32)
    report = Module(text).launch("run", grid, block, [target], memory, max_lanes=128)
    assert not report.findings, report
    got = memory.get(target)
    assert np.array_equal(got[:, :, 0], np.repeat(np.arange(12)[:, None], 60, 1))
    assert np.array_equal(got[:, :, 1], np.repeat(np.arange(60)[None], 12, 0))
    assert np.array_equal(got[:, :, 2], got[:, :, 1]), "warp and lane follow the linear thread number"
    assert np.array_equal(got[0, :, 3], [(1 << n % 32) - 1 for n in range(60)])


@pytest.mark.parametrize(
    ("operation", "kind", "start", "operands", "final"),
    [
        ("add", "u32", 5, range(32), 5 + 496),
        ("min", "s32", 5, range(3, 35), 3),
        ("max", "u32", 5, range(32), 31),
        ("and", "b32", 0xFF, [0xF0 | n for n in range(16)] * 2, 0xF0),
        ("or", "b32", 0x100, range(32), 0x11F),
        ("xor", "b32", 1, range(32), 1),
        ("exch", "b32", 1, range(32), 31),
        ("inc", "u32", 0, [20] * 32, 32 % 21),
        ("dec", "u32", 3, [9] * 32, (3 - 32) % 10),
    ],
)
@pytest.mark.parametrize("space", ["shared", "global", "generic"])
def test_atomics_take_turns(
    operation: str, kind: str, start: int, operands: Iterable[int], final: int, space: str
) -> None:
    """Every lane sees the value the one before it left, and the last leaves the result."""
    suffix = "" if space == "generic" else f".{space}"
    address = "[r8]" if space == "shared" else "[rd8]"
    code = f"""
    .shared .align 4 .b8 shared_cell[4]; mov.u32 r8, shared_cell; mov.u64 rd8, global_cell;
    setp.eq.u32 p, tid, 0; @p st{suffix}.u32 {address}, b; bar.sync 0;
    atom{suffix}.{operation}.{kind} x, {address}, a; bar.sync 0;
    ld{suffix}.u32 y, {address};"""
    (old, left), report = run_lanes(
        code,
        np.array(list(operands), np.uint32),
        np.full(32, start, np.uint32),
        out=[np.uint32, np.uint32],
        declarations=".global .align 4 .b8 global_cell[4];",
    )
    assert not report.findings, report
    assert set(left.tolist()) == {final}
    assert old[0] == start
    if operation == "add":
        assert old.tolist() == [start + n * (n - 1) // 2 for n in range(32)]


def test_atomic_compare_and_swap_and_floats() -> None:
    code = """
    .shared .align 8 .b8 cell[8]; mov.u32 r8, cell; setp.eq.u32 p, tid, 0; @p st.shared.b64 [r8], 0; bar.sync 0;
    atom.shared.cas.b32 x, [r8], a, b; red.shared.add.f32 [r8+4], c; bar.sync 0; ld.shared.f32 y, [r8+4];"""
    a, b = LANE, LANE + 1  # lane n turns n into n + 1
    c = np.full(32, 0.25, np.float32)
    (old, total), report = run_lanes(code, a, b, c, out=[np.uint32, np.float32])
    assert not report.findings, report
    assert np.array_equal(old, LANE)
    assert set(total.tolist()) == {8.0}


# -- asynchronous copies -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("valid", [0, 1, 3, 4, 7, 8, 15, 16])
def test_copies_fill_up_with_zeros(size: int, valid: int) -> None:
    """Bytes beyond the source size are zeros, and are not read: the source ends just after the valid ones."""
    valid = min(valid, size)
    memory = Memory()
    data = np.arange(1, valid + 1, dtype=np.uint8)
    source, target = memory.alloc(data), memory.empty(size, np.uint8)
    moves = "".join(f"ld.shared.u8 r1, [buffer+{n}]; st.global.u8 [rd1+{n}], r1;" for n in range(size))
    caching = "cg" if size == 16 else "ca"
    text = (
        HEADER
        + BUFFER
        + f"""
    .visible .entry run(.param .u64 from, .param .u64 to) {{
        .reg .b32 r<8>; .reg .b64 rd<4>; ld.param.u64 rd0, [from]; ld.param.u64 rd1, [to];
        mov.u32 r2, buffer; mov.u32 r3, {valid};
        cp.async.{caching}.shared.global.L2::128B [r2], [rd0], {size}, r3;
        cp.async.commit_group; cp.async.wait_group 0;
        {moves} ret; }}"""
    )
    report = Module(text).launch("run", 1, 1, [source, target], memory, shared_bytes=size)
    assert not report.findings, report
    assert memory.get(target).tolist() == list(range(1, valid + 1)) + [0] * (size - valid)
    assert report.counts.global_load_sectors == (1 if valid else 0)


def test_copies_can_be_ignored_by_a_predicate() -> None:
    code = """
    mov.u32 r8, buffer; shl.b32 r9, tid, 2; add.u32 r9, r9, r8; setp.ge.u32 p, tid, 5;
    @p mov.b64 base0, 0; cp.async.ca.shared.global [r9], [base0], 4, p; cp.async.wait_all; ld.shared.b32 x, [r9];"""
    (got,), report = run_lanes(code, LANE + 1, shared_bytes=128, declarations=BUFFER)
    assert not report.findings, report
    assert got.tolist() == [1, 2, 3, 4, 5] + [0] * 27


def test_groups_arrive_in_order() -> None:
    """After wait_group 1 the older group is there; the newer one is not, and looking at it is reported."""
    code = """
    mov.u32 r8, buffer; shl.b32 r9, tid, 3; add.u32 r9, r9, r8; mov.b64 rd1, 0; st.shared.b64 [r9], rd1;
    cp.async.ca.shared.global [r9], [base0], 4; cp.async.commit_group;
    cp.async.ca.shared.global [r9+4], [base0], 4; cp.async.commit_group;
    cp.async.wait_group 1; ld.shared.b32 x, [r9]; ld.shared.b32 y, [r9+4];
    cp.async.wait_group 0; ld.shared.b32 z, [r9+4];"""
    (x, y, z), report = run_lanes(code, LANE + 1, out=[np.uint32] * 3, shared_bytes=256, declarations=BUFFER)
    assert np.array_equal(x, LANE + 1)
    assert not y.any()
    assert np.array_equal(z, LANE + 1)
    assert [(f.kind, f.text.split(",")[0]) for f in report.findings] == [("cp.async-in-flight", "ld.shared.b32 y")]


def test_waiting_for_groups_does_not_wait_for_what_is_not_committed() -> None:
    code = """
    mov.u32 r8, buffer; shl.b32 r9, tid, 2; add.u32 r9, r9, r8; cp.async.ca.shared.global [r9], [base0], 4;
    cp.async.wait_group 0; {} ld.shared.b32 x, [r9];"""
    _, report = run_lanes(code.format(""), LANE, shared_bytes=128, declarations=BUFFER)
    assert "cp.async-in-flight" in {finding.kind for finding in report.findings}
    (got,), report = run_lanes(code.format("cp.async.wait_all;"), LANE, shared_bytes=128, declarations=BUFFER)
    assert not report.findings
    assert np.array_equal(got, LANE)


def test_lanes_wait_for_their_own_copies() -> None:
    """Half the warp waits; the other half's data stays away."""
    code = """
    mov.u32 r8, buffer; shl.b32 r9, tid, 2; add.u32 r9, r9, r8; mov.b32 r1, 0; st.shared.b32 [r9], r1;
    cp.async.ca.shared.global [r9], [base0], 4; cp.async.commit_group; setp.lt.u32 p, tid, 16; @!p bra READ;
    cp.async.wait_group 0;
    READ: ld.shared.b32 x, [r9];"""
    (got,), report = run_lanes(code, LANE + 1, shared_bytes=128, declarations=BUFFER)
    assert got.tolist() == list(range(1, 17)) + [0] * 16
    assert [(f.kind, f.count) for f in report.findings] == [("cp.async-in-flight", 16)]
