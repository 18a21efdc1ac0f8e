"""Exchange between lanes, against the manual's rules written out lane by lane."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from .lanes import evaluate, run_lanes

LANES = list(range(32))
RNG = np.random.default_rng(4)
VALUES = RNG.integers(0, 1 << 32, 64, dtype=np.uint32)


def manual_shuffle(mode: str, values: list[int], b: int, c: int) -> tuple[list[int], list[bool]]:
    """The manual's pseudo-code of shfl.sync for one warp with every lane active."""
    results, predicates = [], []
    for lane in LANES:
        bval, cval, segment = b & 31, c & 31, c >> 8 & 31
        high = (lane & segment) | (cval & ~segment & 31)
        low = lane & segment
        if mode == "up":
            source, inside = lane - bval, lane - bval >= high
        elif mode == "down":
            source, inside = lane + bval, lane + bval <= high
        elif mode == "bfly":
            source, inside = lane ^ bval, (lane ^ bval) <= high
        else:
            source = low | (bval & ~segment & 31)
            inside = source <= high
        results.append(values[source if inside else lane])
        predicates.append(inside)
    return results, predicates


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("distance", [0, 1, 3, 8, 17, 31])
def test_shuffle(mode: str, width: int, distance: int) -> None:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    code = f"shfl.sync.{mode}.b32 x|p, a, {distance}, {clamp}, 0xffffffff; selp.u32 y, 1, 0, p;"
    (got, inside), report = run_lanes(code, VALUES, out=[np.uint32, np.uint32])
    assert not report.findings
    for warp in (0, 32):
        values, predicates = manual_shuffle(mode, VALUES[warp : warp + 32].tolist(), distance, clamp)
        assert got[warp : warp + 32].tolist() == values
        assert inside[warp : warp + 32].tolist() == predicates


def test_shuffle_with_a_source_of_each_lane_s_own() -> None:
    source = RNG.integers(0, 64, 32, dtype=np.uint32)
    got = evaluate("shfl.sync.idx.b32 x, a, b, 31, -1;", VALUES[:32], source)
    assert got.tolist() == [int(VALUES[s % 32]) for s in source]


def test_shuffle_among_half_a_warp() -> None:
    """Both halves run the same shuffle, each with a mask of its own lanes."""
    code = """
    and.b32 r1, tid, 16; mov.b32 r2, 0xffff; shl.b32 r2, r2, r1;
    shfl.sync.bfly.b32 x, a, 5, 31, r2;"""
    assert evaluate(code, VALUES[:32]).tolist() == [int(VALUES[n ^ 5]) for n in LANES]


def test_vote() -> None:
    code = """
    setp.lt.u32 p, tid, 7; vote.sync.ballot.b32 x, p, -1;
    setp.lt.u32 p, tid, a; vote.sync.all.pred q, p, -1; selp.u32 y, 1, 0, q;
    vote.sync.any.pred q, !p, -1; selp.u32 z, 1, 0, q;
    vote.sync.uni.pred q, p, -1; selp.u32 w, 1, 0, q;"""
    for bound, (every, none_fails, uniform) in ((32, (1, 0, 1)), (5, (0, 1, 0)), (0, (0, 1, 1))):
        results, report = run_lanes(code, np.full(32, bound, np.uint32), out=[np.uint32] * 4)
        assert not report.findings
        assert [set(r.tolist()) for r in results] == [{0x7F}, {every}, {none_fails}, {uniform}]


def test_match() -> None:
    a = (np.arange(32) % 3).astype(np.uint32)
    got = evaluate("match.any.sync.b32 x, a, -1;", a)
    assert got.tolist() == [sum(1 << j for j in LANES if j % 3 == i % 3) for i in LANES]
    code = "match.all.sync.b32 x|p, a, -1; selp.u32 y, 1, 0, p;"
    (mask, agree), _ = run_lanes(code, a, out=[np.uint32, np.uint32])
    assert (set(mask.tolist()), set(agree.tolist())) == ({0}, {0})
    (mask, agree), _ = run_lanes(code, a * 0 + 9, out=[np.uint32, np.uint32])
    assert (set(mask.tolist()), set(agree.tolist())) == ({0xFFFFFFFF}, {1})
    wide = evaluate("match.any.sync.b64 x, a, -1;", a.astype(np.uint64) << np.uint64(40))
    assert wide.tolist() == got.tolist()


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("add.s32", lambda v: sum(v)),
        ("min.s32", min),
        ("max.s32", max),
        ("and.b32", lambda v: np.bitwise_and.reduce(np.array(v))),
        ("or.b32", lambda v: np.bitwise_or.reduce(np.array(v))),
        ("xor.b32", lambda v: np.bitwise_xor.reduce(np.array(v))),
    ],
)
def test_redux(name: str, function: Any) -> None:
    got = evaluate(f"redux.sync.{name} x, a, -1;", VALUES[:32])
    assert set(got.tolist()) == {int(function(VALUES[:32].view(np.int32).tolist())) % 2**32}


def test_active_lanes_after_a_branch() -> None:
    code = """
    mov.b32 x, 0; setp.ge.u32 p, tid, 10; @p bra DONE; activemask.b32 x;
    DONE:"""
    assert evaluate(code, VALUES[:32]).tolist() == [0x3FF] * 10 + [0] * 22


def test_collectives_wait_for_lanes_that_come_later() -> None:
    """Lanes take ways of different length, and meet at a shuffle that lies before the longer way in the text."""
    code = """
    mov.b32 r1, a; setp.lt.u32 p, tid, 9; @p bra LONG; bra MEET;
    MEET: shfl.sync.idx.b32 x, r1, 3, 31, -1; bra END;
    LONG: add.u32 r1, r1, 1; bra MEET;
    END:"""
    (got,), report = run_lanes(code, VALUES[:32])
    assert not report.findings, report
    assert set(got.tolist()) == {int(VALUES[3]) + 1}


# -- matrices ----------------------------------------------------------------------------------------


SHARED = ".extern .shared .align 16 .b8 buffer[];"


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_x4(transposed: bool) -> None:
    """Lane 4g + t gets elements 2t and 2t + 1 of row g, or rows 2t and 2t + 1 of column g with .trans."""
    data = RNG.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    order = RNG.permutation(32).astype(np.uint32)  # where each row lies in shared memory
    laid = np.zeros((32, 8), np.uint16)
    laid[order] = data.reshape(32, 8)
    words = laid.view(np.uint64).reshape(32, 2)
    code = f"""
    mov.u32 r8, buffer; shl.b32 r9, tid, 4; add.u32 r9, r9, r8; st.shared.v2.b64 [r9], {{a, b}};
    bar.warp.sync -1; mad.lo.u32 r9, c, 16, r8;
    ldmatrix.sync.aligned.m8n8.x4{".trans" if transposed else ""}.shared.b16 {{x, y, z, w}}, [r9];"""
    results, report = run_lanes(
        code, words[:, 0].copy(), words[:, 1].copy(), order, out=[np.uint32] * 4, shared_bytes=512, declarations=SHARED
    )
    assert not report.findings, report
    for m, got in enumerate(results):
        matrix = data[m].T if transposed else data[m]
        for lane in LANES:
            low, high = int(matrix[lane // 4][lane % 4 * 2]), int(matrix[lane // 4][lane % 4 * 2 + 1])
            assert got[lane] == low | high << 16


@pytest.mark.parametrize("count", [1, 2])
def test_ldmatrix_takes_addresses_of_the_first_lanes_only(count: int) -> None:
    data = RNG.integers(0, 1 << 16, (count, 8, 8)).astype(np.uint16)
    words = np.resize(data.reshape(-1).view(np.uint64), (32, 2))
    registers = "x" if count == 1 else "x, y"
    code = f"""
    mov.u32 r8, buffer; shl.b32 r9, tid, 4; add.u32 r9, r9, r8; setp.lt.u32 p, tid, {8 * count};
    @p st.shared.v2.b64 [r9], {{a, b}}; @!p mov.b32 r9, 0x7ffffff1; bar.warp.sync -1; mov.b32 y, 0;
    ldmatrix.sync.aligned.m8n8.x{count}.shared.b16 {{{registers}}}, [r9];"""
    results, report = run_lanes(
        code,
        words[:, 0].copy(),
        words[:, 1].copy(),
        out=[np.uint32] * 2,
        shared_bytes=16 * 8 * count,
        declarations=SHARED,
    )
    assert not report.findings, report
    for m in range(count):
        for lane in LANES:
            low, high = int(data[m][lane // 4][lane % 4 * 2]), int(data[m][lane // 4][lane % 4 * 2 + 1])
            assert results[m][lane] == low | high << 16


@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_stmatrix_undoes_ldmatrix(transposed: str) -> None:
    code = f"""
    mov.u32 r8, buffer; shl.b32 r9, tid, 4; add.u32 r9, r9, r8;
    stmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 [r9], {{a, b, a, b}}; bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{x, y, z, w}}, [r9];"""
    a, b = VALUES[:32], VALUES[32:]
    results, report = run_lanes(code, a, b, out=[np.uint32] * 4, shared_bytes=512, declarations=SHARED)
    assert not report.findings, report
    for got, expected in zip(results, (a, b, a, b), strict=True):
        assert np.array_equal(got, expected)


def test_movmatrix_transposes() -> None:
    data = RNG.integers(0, 1 << 16, (8, 8)).astype(np.uint16)
    got = evaluate("movmatrix.sync.aligned.m8n8.trans.b16 x, a;", data.reshape(-1).view(np.uint32).copy())
    assert np.array_equal(got.view(np.uint16).reshape(8, 8), data.T)


def bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Bits of values that bfloat16 holds exactly."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def fragment(matrix: npt.NDArray[np.uint16], row: int, column: int, by_column: bool = False) -> int:
    """The register with elements (row, column) and its neighbour: the next column, or the next row."""
    low = int(matrix[row, column])
    high = int(matrix[row + 1, column] if by_column else matrix[row, column + 1])
    return low | high << 16


@pytest.mark.parametrize(("kind", "accumulator"), [("f16", "f32"), ("f16", "f16"), ("bf16", "f32")])
@pytest.mark.parametrize("depth", [8, 16])
def test_mma(kind: str, depth: int, accumulator: str) -> None:
    """Fragments built element by element from the manual's figures: groupID = lane / 4, t = lane % 4."""
    a = RNG.integers(-8, 9, (16, depth)).astype(np.float32)  # small integers: every order of sums is exact
    b = RNG.integers(-8, 9, (depth, 8)).astype(np.float32)
    c = RNG.integers(-8, 9, (16, 8)).astype(np.float32)
    to_bits = bf16_bits if kind == "bf16" else lambda v: v.astype(np.float16).view(np.uint16)
    raw_a, raw_b, half_c = to_bits(a), to_bits(b), c.astype(np.float16).view(np.uint16)
    columns: list[list[int]] = [[] for _ in range(10)]
    for lane in LANES:
        group, t = lane // 4, lane % 4
        registers = []
        for k in range(0, depth, 8):
            registers += [fragment(raw_a, group, k + 2 * t), fragment(raw_a, group + 8, k + 2 * t)]
        registers += [fragment(raw_b, k + 2 * t, group, by_column=True) for k in range(0, depth, 8)]
        if accumulator == "f16":
            registers += [fragment(half_c, group, 2 * t), fragment(half_c, group + 8, 2 * t)]
        else:
            registers += c.view(np.uint32)[[group, group, group + 8, group + 8], [2 * t, 2 * t + 1] * 2].tolist()
        for column, value in zip(columns, registers, strict=False):
            column.append(value)
    inputs = [np.array(column, np.uint32) for column in columns if column]
    names = "abcdefghij"
    a_names = ", ".join(names[: depth // 4])
    b_names = ", ".join(names[depth // 4 : depth // 4 + depth // 8])
    c_names = ", ".join(names[depth // 4 + depth // 8 : len(inputs)])
    d_names = "x, y, z, w" if accumulator == "f32" else "x, y"
    code = f"""mov.b32 z, 0; mov.b32 w, 0;
    mma.sync.aligned.m16n8k{depth}.row.col.{accumulator}.{kind}.{kind}.{accumulator}
        {{{d_names}}}, {{{a_names}}}, {{{b_names}}}, {{{c_names}}};"""
    results, report = run_lanes(code, *inputs, out=[np.uint32] * 4)
    assert not report.findings
    assert report.counts.mma_flops == 2 * 16 * 8 * depth
    expected = a.astype(np.float64) @ b + c
    for lane in LANES:
        group, t = lane // 4, lane % 4
        wanted = expected[[group, group, group + 8, group + 8], [2 * t, 2 * t + 1] * 2]
        raw = np.array([r[lane] for r in results], np.uint32)
        got = raw.view(np.float32) if accumulator == "f32" else raw[:2].view(np.float16)
        assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize("depth", [4, 8])
def test_mma_tf32(depth: int) -> None:
    a = RNG.integers(-8, 9, (16, depth)).astype(np.float32)
    b = RNG.integers(-8, 9, (depth, 8)).astype(np.float32)
    group, t = np.arange(32) // 4, np.arange(32) % 4
    inputs = []
    for k in range(0, depth, 4):
        inputs += [a[group, k + t], a[group + 8, k + t]]
    inputs += [b[k + t, group] for k in range(0, depth, 4)]
    names = "abcdef"
    a_names, b_names = ", ".join(names[: depth // 2]), ", ".join(names[depth // 2 : len(inputs)])
    code = f"""mov.b32 r1, 0;
    mma.sync.aligned.m16n8k{depth}.row.col.f32.tf32.tf32.f32
        {{x,y,z,w}}, {{{a_names}}}, {{{b_names}}}, {{r1,r1,r1,r1}};"""
    results, _ = run_lanes(code, *inputs, out=[np.float32] * 4)
    expected = a @ b
    assert np.array_equal(results[0], expected[group, 2 * t])
    assert np.array_equal(results[1], expected[group, 2 * t + 1])
    assert np.array_equal(results[2], expected[group + 8, 2 * t])
    assert np.array_equal(results[3], expected[group + 8, 2 * t + 1])


def test_mma_keeps_infinities_and_nan_to_their_rows() -> None:
    a = np.zeros(32, np.uint32)
    a[0] = 0x7C00  # lane 0: A[0, 0] = inf, times B[0, 0] = 1 of lane 0
    b = np.full(32, 0x3C003C00, np.uint32)
    code = """mov.b32 r1, 0;
    mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {x,y,z,w}, {a,r1}, {b}, {r1,r1,r1,r1};"""
    results, _ = run_lanes(code, a, b, out=[np.float32] * 4)
    assert results[0].tolist() == [np.inf] * 4 + [0.0] * 28
    assert not results[2].any()
