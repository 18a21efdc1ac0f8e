"""Matrices in the registers of a warp: ldmatrix, stmatrix, movmatrix, mma.sync.

Fragments are those of the PTX manual, "Matrix Fragments for mma.m16n8k16" and its neighbours. With lane =
4·group + t: A holds rows group and group + 8, C and D likewise, B holds column group; t picks the pair of
neighbouring elements (one element for tf32).
"""

from __future__ import annotations

import numpy as np

from . import rounding
from .decoder import Decoder, operation, unsupported
from .findings import DIVERGENT
from .group import Group
from .races import READ, WRITE
from .spaces import SharedSpace, generic_offset
from .syntax import Instruction, Operand, Vector
from .types import LANES, Array, Read, Registers, Step


def _whole(g: Group, active: Array | None) -> None:
    """Reports an .aligned instruction that not every lane of the warp executes."""
    if active is not None:
        idle = ~active
        detail = f"{g.machine.traffic.who(int(g.lanes[idle][0]))} does not execute it with its warp"
        g.machine.traffic.complain(DIVERGENT, g.pc, detail, int(idle.any(axis=1).sum()))


def _matrix_rows(g: Group, addresses: Array, count: int, generic: bool) -> tuple[Array, Array]:
    """Row addresses (warps · 8 · count) of the first 8·count lanes, and those lanes."""
    rows = addresses[:, : 8 * count]
    if generic:
        rows = rows - generic_offset("shared")
    return rows, g.lanes[:, : 8 * count]


@operation("ldmatrix")
def load_matrix(d: Decoder, i: Instruction) -> Step:
    """ldmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16: lane 8m + r gives the address of row r of
    matrix m; lane 4g + t receives elements 2t and 2t + 1 of row g (of the transposed matrix with .trans)."""
    if "m8n8" not in i.parts or i.parts[-1] != "b16":
        raise unsupported(i)
    count = next(int(part[1:]) for part in i.parts if part in ("x1", "x2", "x4"))
    transposed, generic = "trans" in i.parts, not any(part.startswith("shared") for part in i.parts)
    target = i.operands[0]
    writers = [d.write(i, item) for item in (target.items if isinstance(target, Vector) else (target,))]
    where, active = d.address(i, i.operands[1]), d.active(i)
    if len(writers) != count:
        raise unsupported(i, f"{count} registers are needed")

    def step(r: Registers, g: Group) -> None:
        traffic = g.machine.traffic
        _whole(g, active(r, g))
        space = traffic.spaces["shared"]
        rows, lanes = _matrix_rows(g, where(r), count, generic)
        flat, whose = rows.ravel(), lanes.ravel()
        offsets, good = traffic.check(space, g.pc, flat, whose, 16, "reading")
        if good is not None:
            flat, whose, offsets = flat[good], whose[good], offsets[good]
        traffic.check_initialised(space, g.pc, offsets, whose, flat, 16)
        traffic.check_in_flight(g.pc, offsets, 16, whose)
        traffic.races.access(g.pc, READ, offsets, 16, whose, whole_warp=True)
        traffic.counts.add_shared("ldmatrix", g.pc, rows, None, 16)
        values = space.store.gather(offsets, 4, 4)
        if good is not None:
            every = np.zeros((len(good), 4), np.uint32)
            every[good] = values
            values = every
        if transposed:
            halves = values.view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
            values = np.ascontiguousarray(halves).view(np.uint32)
        matrices = values.reshape(-1, count, LANES)
        for position, write in enumerate(writers):
            write(r, np.ascontiguousarray(matrices[:, position]))

    return step


@operation("stmatrix")
def store_matrix(d: Decoder, i: Instruction) -> Step:
    """stmatrix.sync.aligned.m8n8.x{1,2,4}[.trans].shared.b16: the opposite of ldmatrix."""
    if "m8n8" not in i.parts or i.parts[-1] != "b16":
        raise unsupported(i)
    count = next(int(part[1:]) for part in i.parts if part in ("x1", "x2", "x4"))
    transposed, generic = "trans" in i.parts, not any(part.startswith("shared") for part in i.parts)
    source = i.operands[1]
    reads = [d.read(item, "b32") for item in (source.items if isinstance(source, Vector) else (source,))]
    where, active = d.address(i, i.operands[0]), d.active(i)

    def step(r: Registers, g: Group) -> None:
        traffic = g.machine.traffic
        _whole(g, active(r, g))
        space = traffic.spaces["shared"]
        assert isinstance(space, SharedSpace)
        rows, lanes = _matrix_rows(g, where(r), count, generic)
        words: Array = np.stack([read(r) for read in reads], axis=1).reshape(-1, 8, 4)
        if transposed:
            halves = words.view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
            words = np.ascontiguousarray(halves).view(np.uint32)
        words = words.reshape(-1, 4)
        flat, whose = rows.ravel(), lanes.ravel()
        offsets, good = traffic.check(space, g.pc, flat, whose, 16, "writing")
        if good is not None:
            whose, offsets, words = whose[good], offsets[good], words[good]
        traffic.check_in_flight(g.pc, offsets, 16, whose)
        traffic.races.access(g.pc, WRITE, offsets, 16, whose, whole_warp=True)
        traffic.counts.add_shared("shared_store", g.pc, rows, None, 16)
        space.store.scatter(offsets, words, 4, 4)

    return step


@operation("movmatrix")
def transpose(d: Decoder, i: Instruction) -> Step:
    """movmatrix.sync.aligned.m8n8.trans.b16: an 8×8 matrix across the warp, transposed."""
    write, read, active = d.write(i, i.operands[0]), d.read(i.operands[1], "b32"), d.active(i)

    def step(r: Registers, g: Group) -> None:
        _whole(g, active(r, g))
        halves = np.ascontiguousarray(read(r)).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
        write(r, np.ascontiguousarray(halves).view(np.uint32).reshape(-1, LANES))

    return step


def _elements(registers: list[Array], kind: str) -> Array:
    """Raw registers of a fragment -> (warps, registers, 8 groups, elements in a row of the group) float32."""
    raw = np.stack(registers, axis=1)
    if kind == "tf32":
        values = (raw & np.uint32(0xFFFFE000)).view(np.float32)
    elif kind == "bf16":
        values = rounding.from_bf16(raw.view(np.uint16))
    else:
        values = raw.view(np.float16).astype(np.float32)
    return values.reshape(len(raw), len(registers), 8, -1)


@operation("mma")
def multiply_accumulate(d: Decoder, i: Instruction) -> Step:
    """mma.sync.aligned.m16n8k{4,8,16}.row.col.D.A.B.C for f16, bf16 and tf32. Products are exact, sums are
    float32 in an order of numpy's choosing, as the manual leaves the order and the rounding of sums open."""
    shape = i.parts[3]
    out_kind, a_kind, b_kind, c_kind = i.parts[-4:]
    depth = {"m16n8k4": 4, "m16n8k8": 8, "m16n8k16": 16}.get(shape, 0)
    if not depth or a_kind != b_kind or a_kind not in ("f16", "bf16", "tf32") or i.parts[4:6] != ("row", "col"):
        raise unsupported(i)
    if out_kind != c_kind or out_kind not in ("f32", "f16") or depth == (16 if a_kind == "tf32" else 4):
        raise unsupported(i)
    step_k = 4 if a_kind == "tf32" else 8
    parts = depth // step_k
    a_reads = [d.read(item, "b32") for item in _items(i, 1)]
    b_reads = [d.read(item, "b32") for item in _items(i, 2)]
    c_reads = [d.read(item, "b32") for item in _items(i, 3)]
    writers = [d.write(i, item) for item in _items(i, 0)]
    if (len(a_reads), len(b_reads)) != (2 * parts, parts):
        raise unsupported(i, f"A of {2 * parts} and B of {parts} registers are needed")
    active = d.active(i)

    def step(r: Registers, g: Group) -> None:
        _whole(g, active(r, g))
        full = r[0].shape
        a = _elements(_all(a_reads, r, full), a_kind)  # (warps, (k half, row half), group, t)
        b = _elements(_all(b_reads, r, full), a_kind)  # (warps, k half, column, t)
        warps = len(a)
        a = a.reshape(warps, parts, 2, 8, step_k).transpose(0, 2, 3, 1, 4).reshape(warps, 16, depth)
        b = b.transpose(0, 2, 1, 3).reshape(warps, 8, depth)
        c = _accumulators(_all(c_reads, r, full), c_kind)
        result = np.matmul(a, b.swapaxes(1, 2)) + c
        rows = result.reshape(warps, 2, LANES, 2)
        if out_kind == "f32":
            for position, write in enumerate(writers):
                write(r, np.ascontiguousarray(rows[:, position // 2, :, position % 2]))
        else:
            packed = rounding.to_f16(rows).view(np.uint32)[..., 0]
            for position, write in enumerate(writers):
                write(r, np.ascontiguousarray(packed[:, position]))
        counts = g.machine.traffic.counts
        counts.mma_instructions += warps
        counts.mma_flops += warps * 2 * 16 * 8 * depth

    return step


def _items(i: Instruction, position: int) -> tuple[Operand, ...]:
    operand = i.operands[position]
    return operand.items if isinstance(operand, Vector) else (operand,)


def _all(reads: list[Read], r: Registers, shape: tuple[int, ...]) -> list[Array]:
    return [np.broadcast_to(read(r), shape) for read in reads]


def _accumulators(registers: list[Array], kind: str) -> Array:
    """(warps, 16, 8) float32."""
    raw = np.stack(registers, axis=-1)  # (warps, lane, register)
    if kind == "f32":
        values = raw.view(np.float32)
    else:
        values = raw.view(np.float16).astype(np.float32)
    pairs = values.reshape(len(raw), 8, 4, 2, 2)  # (warps, group, t, row half, column of the pair)
    return np.ascontiguousarray(pairs.transpose(0, 3, 1, 2, 4)).reshape(len(raw), 16, 8)
