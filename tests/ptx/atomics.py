"""atom and red: read-modify-write of memory, one lane after another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .decoder import Decoder, operation, unsupported
from .floats import KINDS
from .group import Group
from .loads import space_of
from .races import ATOMIC
from .spaces import GlobalSpace, SharedSpace, generic_offset
from .syntax import Address, Instruction, width_of
from .types import DTYPES, Array, Registers, Step

Modify = Callable[[Array, Array, Array], Array]


def _on_floats(kind: str, function: Callable[[Array, Array], Array]) -> Modify:
    unpack, pack = KINDS[kind].unpack, KINDS[kind].pack
    return lambda old, b, c: pack(function(unpack(old), unpack(b)), "rn")


def modification(name: str, kind: str) -> Modify:
    """The new value from the old one and the operands, all of the instruction's numpy type."""
    simple: dict[str, Callable[[Array, Array], Array]] = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    if name in simple:
        function = simple[name]
        if kind in KINDS and kind not in ("f32", "f64"):
            return _on_floats(kind, function)
        return lambda old, b, c: function(old, b)
    if name == "exch":
        return lambda old, b, c: b
    if name == "cas":
        return lambda old, b, c: np.where(old == b, c, old)
    if name == "inc":
        return lambda old, b, c: np.where(old >= b, old.dtype.type(0), old + old.dtype.type(1))
    if name == "dec":
        return lambda old, b, c: np.where((old == 0) | (old > b), b, old - old.dtype.type(1))
    raise KeyError(name)


_NAMES = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")


@operation("atom", "red")
def atomic(d: Decoder, i: Instruction) -> Step:
    """atom d, [a], b[, c] and red [a], b; lanes take their turns in ascending order."""
    operands = list(i.operands)
    returns = i.parts[0] == "atom"
    write = d.write(i, operands.pop(0)) if returns else None
    address = operands.pop(0)
    if not isinstance(address, Address) or i.parts[-1] == "b128" or any(p in ("v2", "v4", "v8") for p in i.parts):
        raise unsupported(i)
    name = next((part for part in i.parts[1:] if part in _NAMES), "")
    kind = i.parts[-1]
    space, width = space_of(d, i, address), width_of(kind)
    modify = modification(name, kind)
    reads = [d.read(operand, kind) for operand in operands]
    where, active = d.address(i, address), d.active(i)

    def step(r: Registers, g: Group) -> None:
        addresses, mask = where(r), active(r, g)
        b = np.broadcast_to(reads[0](r), r[0].shape)
        c = np.broadcast_to(reads[1](r), r[0].shape) if len(reads) > 1 else b
        traffic = g.machine.traffic
        if space == "generic":
            parts = [
                (window, addresses - generic_offset(window), lanes)
                for window, lanes in traffic.windows(addresses, mask)
            ]
        else:
            parts = [(space, addresses, mask)]
        result = np.zeros(r[0].shape, DTYPES[kind])
        for window, inner, lanes in parts:
            _apply(g, window, inner, lanes, (b, c), modify, width, result)
        if write is not None:
            write(r, result)

    return step


def _apply(
    g: Group,
    name: str,
    addresses: Array,
    mask: Array | None,
    operands: tuple[Array, Array],
    modify: Modify,
    width: int,
    result: Array,
) -> None:
    """Modifies memory in rounds, each with the next lane of every address; old values go into `result`."""
    traffic = g.machine.traffic
    space = traffic.spaces[name]
    chosen = np.flatnonzero(np.ones(addresses.size, np.bool_) if mask is None else mask.ravel())
    flat, lanes = addresses.ravel()[chosen], g.lanes.ravel()[chosen]
    offsets, good = traffic.check(space, g.pc, flat, lanes, width, "atomically changing")
    if good is not None:
        chosen, flat, lanes, offsets = chosen[good], flat[good], lanes[good], offsets[good]
    traffic.check_initialised(space, g.pc, offsets, lanes, flat, width)
    if isinstance(space, SharedSpace):
        traffic.check_in_flight(g.pc, offsets, width, lanes)
        traffic.races.access(g.pc, ATOMIC, offsets, width, lanes)
        traffic.counts.add_shared("shared_store", g.pc, addresses, mask, width)
    elif isinstance(space, GlobalSpace):
        traffic.counts.add_global("store", addresses, mask, width)
        allowed = traffic.check_writable(space, g.pc, offsets, lanes, flat, width)
        if allowed is not None:
            chosen, offsets = chosen[allowed], offsets[allowed]
    b, c = (operand.ravel()[chosen] for operand in operands)
    rest = np.arange(len(chosen))
    while len(rest):
        _, first = np.unique(offsets[rest], return_index=True)
        turn = rest[first]
        old = space.store.gather(offsets[turn], width, 1).view(result.dtype)
        result.ravel()[chosen[turn]] = old
        space.store.scatter(offsets[turn], modify(old, b[turn], c[turn]).view(f"u{width}"), width, 1)
        rest = np.delete(rest, first)
