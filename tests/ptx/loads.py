"""ld, st and their relatives."""

from __future__ import annotations

import numpy as np

from .decoder import Decoder, operation, unsupported
from .group import Group
from .syntax import Address, Instruction, Symbol, Vector, width_of
from .types import RAW, Array, Registers, Step

_SPACES = ("global", "shared", "local", "param", "const")


def space_of(d: Decoder, i: Instruction, address: Address) -> str:
    """The space an instruction names, or generic. Parameters of calls lie in local memory."""
    for part in i.parts[1:]:
        name = part.split("::")[0]
        if name in _SPACES:
            if name == "param" and isinstance(address.base, Symbol) and address.base.var in d.program.frame:
                return "local"
            return "global" if name == "const" else name
    return "generic"


def vector_count(i: Instruction) -> int:
    """2, 4 or 8 for .v2, .v4, .v8; else 1."""
    return next((int(part[1:]) for part in i.parts if part in ("v2", "v4", "v8")), 1)


@operation("ld", "ldu")
def load(d: Decoder, i: Instruction) -> Step:
    """ld of one element or a vector. Caching and ordering qualifiers change nothing here."""
    target, address = i.operands[0], i.operands[1]
    if not isinstance(address, Address):
        raise unsupported(i)
    space, kind, count = space_of(d, i, address), i.parts[-1], vector_count(i)
    width = width_of(kind)
    if width * count > 16 or width > 8:
        raise unsupported(i, "more than 16 bytes a lane")
    where, active = d.address(i, address), d.active(i)
    signed = np.dtype(f"int{8 * width}") if kind[0] == "s" else RAW[width]
    constant = space == "param" and not (address.base is not None and not isinstance(address.base, Symbol))
    if not isinstance(target, Vector):
        write = d.write(i, target)
        if constant:

            def from_params(r: Registers, g: Group) -> None:
                one = g.machine.traffic.load("param", g.machine.single, where(r)[:1, :1], None, width, 1)
                write(r, np.full(r[0].shape, one[0, 0], RAW[width]).view(signed))

            return from_params

        def single(r: Registers, g: Group) -> None:
            write(r, g.machine.traffic.load(space, g, where(r), active(r, g), width, count).view(signed))

        return single
    writers = [d.write(i, item) for item in target.items]
    if len(writers) != count:
        raise unsupported(i, "as many registers as elements are needed")

    def vector(r: Registers, g: Group) -> None:
        values = g.machine.traffic.load(space, g, where(r), active(r, g), width, count)
        for position, writer in enumerate(writers):
            writer(r, np.ascontiguousarray(values[..., position]).view(signed))

    return vector


@operation("st")
def store(d: Decoder, i: Instruction) -> Step:
    """st of one element or a vector."""
    address, source = i.operands[:2]  # a third is a cache policy
    if not isinstance(address, Address):
        raise unsupported(i)
    space, kind, count = space_of(d, i, address), i.parts[-1], vector_count(i)
    width = width_of(kind)
    if width * count > 16 or width > 8:
        raise unsupported(i, "more than 16 bytes a lane")
    where, active = d.address(i, address), d.active(i)
    items = source.items if isinstance(source, Vector) and count > 1 else (source,)
    reads = [d.read(item, f"b{8 * width}") for item in items]
    if len(reads) != count:
        raise unsupported(i, "as many registers as elements are needed")

    def step(r: Registers, g: Group) -> None:
        addresses = where(r)
        values: Array = np.empty((*addresses.shape, count), RAW[width])
        for position, read in enumerate(reads):
            values[..., position] = read(r)
        if count == 1:
            values = values[..., 0]
        g.machine.traffic.store(space, g, addresses, active(r, g), values, width, count)

    return step


@operation("membar", "fence", "prefetch", "prefetchu", "nanosleep", "applypriority", "discard", "griddepcontrol")
def nothing(d: Decoder, i: Instruction) -> Step:
    """Ordering between threads that share no epoch is the race detector's matter; hints do nothing."""
    return lambda r, g: None
