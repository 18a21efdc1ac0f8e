"""Instructions by which the lanes of a warp exchange registers: shfl, vote, match, redux, activemask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .decoder import Decoder, operation, unsupported
from .findings import DIVERGENT
from .group import Group
from .syntax import Instruction, Pair, Sink
from .types import DTYPES, LANES, Array, Registers, Step

_LANE = np.arange(LANES)
_BIT = np.uint32(1) << np.arange(LANES, dtype=np.uint32)


def lane_bits(flags: Array) -> Array:
    """(…, 32) bool -> (…) uint32 with bit i for lane i."""
    bits: Array = (flags * _BIT).sum(axis=-1, dtype=np.uint32)
    return bits


def participants(g: Group, active: Array | None, members: Array) -> Array:
    """(warps, 32, 32) bool: [w, i, j] when lane j takes part in what lane i executes.

    `members`: the member mask that each lane gives. A lane that is not in its own mask is reported.
    """
    members = np.broadcast_to(members, (g.count, LANES))
    executes = g.all_lanes() if active is None else active
    named = (members[:, :, None] >> _LANE.astype(np.uint32)) & np.uint32(1) != 0
    absent = executes & ~named[:, _LANE, _LANE]
    if absent.any():
        lane = int(g.lanes[absent][0])
        traffic = g.machine.traffic
        detail = f"{traffic.who(lane)} executes it but is not in its member mask"
        traffic.complain(DIVERGENT, g.pc, detail, int(absent.sum()))
    part: Array = named & executes[:, None, :]
    return part


@operation("shfl")
def shuffle(d: Decoder, i: Instruction) -> Step:
    """shfl.sync.{up,down,bfly,idx}.b32 d[|p], a, b, c, members. A source lane that takes no part is reported."""
    if i.parts[1] != "sync":
        raise unsupported(i, "shfl without .sync")
    mode = i.parts[2]
    target = i.operands[0]
    write = d.write(i, target.first if isinstance(target, Pair) else target)
    write_p = d.write(i, target.second if isinstance(target, Pair) else Sink())
    value, distance, clamp, members = (d.read(operand, "b32") for operand in i.operands[1:5])
    active = d.active(i)

    def step(r: Registers, g: Group) -> None:
        shape = r[0].shape
        source = np.broadcast_to(value(r), shape)
        b = np.broadcast_to(distance(r), shape).astype(np.int64) & 31
        c = np.broadcast_to(clamp(r), shape).astype(np.int64)
        segment, bound = (c >> 8) & 31, c & 31
        low, high = _LANE & segment, (_LANE & segment) | (bound & ~segment)
        if mode == "up":
            origin = _LANE - b
            inside = origin >= high
        else:
            origin = {"down": _LANE + b, "bfly": _LANE ^ b, "idx": low | (b & ~segment)}[mode]
            inside = origin <= high
        origin = np.where(inside, origin, _LANE)
        mask = active(r, g)
        members_now = members(r)
        if mask is not None or not (members_now == np.uint32(0xFFFFFFFF)).all():
            takes_part = participants(g, mask, members_now)
            reached = np.take_along_axis(takes_part, origin[:, :, None], axis=2)[:, :, 0]
            lost = g.all_lanes() & ~reached if mask is None else mask & ~reached
            if lost.any():
                detail = f"{g.machine.traffic.who(int(g.lanes[lost][0]))} reads a lane that takes no part"
                g.machine.traffic.complain(DIVERGENT, g.pc, detail, int(lost.sum()))
        write(r, np.take_along_axis(source, origin, axis=1))
        write_p(r, inside)

    return step


@operation("vote")
def vote(d: Decoder, i: Instruction) -> Step:
    """vote.sync.{all,any,uni}.pred and vote.sync.ballot.b32."""
    if i.parts[1] != "sync":
        raise unsupported(i, "vote without .sync")
    mode = i.parts[2]
    write, predicate, members = d.write(i, i.operands[0]), d.read(i.operands[1], "pred"), d.read(i.operands[2], "b32")
    active = d.active(i)

    def step(r: Registers, g: Group) -> None:
        holds = np.broadcast_to(predicate(r), r[0].shape)
        part = participants(g, active(r, g), members(r))
        yes = (part & holds[:, None, :]).any(axis=2)
        no = (part & ~holds[:, None, :]).any(axis=2)
        if mode == "ballot":
            write(r, lane_bits(part & holds[:, None, :]))
        else:
            write(r, {"any": yes, "all": ~no, "uni": ~(yes & no)}[mode])

    return step


@operation("match")
def match(d: Decoder, i: Instruction) -> Step:
    """match.any.sync: lanes with the same value; match.all.sync d|p: every lane, if all have the same value."""
    kind, every = i.parts[-1], i.parts[1] == "all"
    target = i.operands[0]
    write = d.write(i, target.first if isinstance(target, Pair) else target)
    write_p = d.write(i, target.second if isinstance(target, Pair) else Sink())
    value, members, active = d.read(i.operands[1], kind), d.read(i.operands[2], "b32"), d.active(i)

    def step(r: Registers, g: Group) -> None:
        values = np.broadcast_to(value(r), r[0].shape)
        part = participants(g, active(r, g), members(r))
        same = values[:, :, None] == values[:, None, :]
        if every:
            agree = (same | ~part).all(axis=2)
            write(r, np.where(agree, lane_bits(part), np.uint32(0)))
            write_p(r, agree)
        else:
            write(r, lane_bits(part & same))

    return step


@operation("redux")
def reduce(d: Decoder, i: Instruction) -> Step:
    """redux.sync over 32-bit integers."""
    kind = i.parts[-1]
    functions: dict[str, tuple[Callable[..., Array], int]] = {
        "add": (np.add.reduce, 0),
        "and": (np.bitwise_and.reduce, -1),
        "or": (np.bitwise_or.reduce, 0),
        "xor": (np.bitwise_xor.reduce, 0),
        "min": (np.minimum.reduce, np.iinfo(DTYPES[kind]).max if kind in ("u32", "s32") else 0),
        "max": (np.maximum.reduce, np.iinfo(DTYPES[kind]).min if kind in ("u32", "s32") else 0),
    }
    function, neutral = functions[i.parts[2]]
    write, value, members = d.write(i, i.operands[0]), d.read(i.operands[1], kind), d.read(i.operands[2], "b32")
    active = d.active(i)
    idle = np.array(neutral, np.int64).astype(DTYPES[kind])

    def step(r: Registers, g: Group) -> None:
        values = np.broadcast_to(value(r), r[0].shape)
        part = participants(g, active(r, g), members(r))
        write(r, function(np.where(part, values[:, None, :], idle), axis=2).astype(DTYPES[kind]))

    return step


@operation("activemask")
def active_mask(d: Decoder, i: Instruction) -> Step:
    """The lanes that execute it together."""
    write, active = d.write(i, i.operands[0]), d.active(i)

    def step(r: Registers, g: Group) -> None:
        mask = active(r, g)
        bits = lane_bits(g.all_lanes() if mask is None else mask)
        write(r, np.broadcast_to(bits[:, None], r[0].shape))

    return step


@operation("bar")
def warp_barrier(d: Decoder, i: Instruction) -> Step:
    """bar.warp.sync; barriers of the block are the machine's own."""
    members, active = d.read(i.operands[0], "b32"), d.active(i)

    def step(r: Registers, g: Group) -> None:
        mask = active(r, g)
        participants(g, mask, members(r))
        lanes = g.lanes if mask is None else g.lanes[mask]
        g.machine.traffic.races.warp_epoch[lanes.ravel()] += 1

    return step
