"""Random structured programs, run by the interpreter and, lane by lane, by a few lines of Python.

What is tested is everything between the instructions: program counters, masks, joining of lanes, which registers
are kept across a branch, blocks that share a pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from .lanes import run_lanes

M = 0xFFFFFFFF
REGISTERS = ("r1", "r2", "r3", "r4")


@dataclass
class Statement:
    """`kind`: op, guarded, if, loop, shuffle or exit."""

    kind: str
    target: str = "r1"
    operation: str = "add"
    first: str = "r1"
    second: str = "r2"
    literal: int = 0
    body: list[Statement] = field(default_factory=list)
    other: list[Statement] = field(default_factory=list)


OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add.u32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.u32": lambda a, b: a * b,
    "xor.b32": lambda a, b: a ^ b,
    "max.u32": max,
    "shr.u32": lambda a, b: a >> b if b < 32 else 0,
}


def draw(rng: random.Random, depth: int, uniform: bool, exits: bool) -> list[Statement]:
    """A block of statements. Shuffles only where every lane of the warp comes by (`uniform`); a program has
    either them or lanes that leave early, whose registers nobody may read."""
    statements = []
    for _ in range(rng.randint(1, 4)):
        kinds = ["op"] * 4 + ["guarded"] * 2
        if depth:
            kinds += ["if"] * 3 + ["loop"] * 2
        if uniform and not exits:
            kinds += ["shuffle"] * 2
        if exits and depth < 2:
            kinds += ["exit"]
        statement = Statement(
            rng.choice(kinds),
            rng.choice(REGISTERS),
            rng.choice(list(OPERATIONS)),
            rng.choice(REGISTERS),
            rng.choice(REGISTERS),
            rng.randint(0, 7),
        )
        if statement.kind == "if":
            statement.body = draw(rng, depth - 1, False, exits)
            statement.other = draw(rng, depth - 1, False, exits) if rng.random() < 0.6 else []
        elif statement.kind == "loop":
            statement.body = draw(rng, depth - 1, False, exits)
        statements.append(statement)
    return statements


class Writer:
    """PTX of a program. Branches are laid out in both orders, so that joins lie before and after."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.labels = 0
        self.late: list[str] = []  # blocks that are put behind everything else

    def label(self) -> str:
        self.labels += 1
        return f"L{self.labels}"

    def block(self, statements: list[Statement], depth: int) -> str:
        return "".join(self.one(statement, depth) for statement in statements)

    def one(self, s: Statement, depth: int) -> str:
        test = f"and.b32 r8, {s.first}, 7; setp.lt.u32 p, r8, {s.literal};\n"
        if s.kind == "op":
            return f"{s.operation} {s.target}, {s.first}, {s.second};\n"
        if s.kind == "guarded":
            negated = self.rng.random() < 0.5
            flip = "not.pred p, p;\n" if negated else ""
            return test + flip + f"@{'!' if negated else ''}p {s.operation} {s.target}, {s.first}, {s.second};\n"
        if s.kind == "shuffle":
            return f"shfl.sync.idx.b32 {s.target}, {s.first}, {4 * s.literal + 1}, 31, -1;\n"
        if s.kind == "exit":
            return test + f"mov.b32 x, {s.target};\n@p bra END;\n"
        if s.kind == "if":
            inside, end = self.label(), self.label()
            body, other = self.block(s.body, depth), self.block(s.other, depth)
            if self.rng.random() < 0.5:
                self.late.append(f"{inside}:\n{body}bra {end};\n")
                return test + f"@p bra {inside};\n{other}{end}:\n"
            return test + f"@!p bra {inside};\n{body}bra {end};\n{inside}:\n{other}{end}:\n"
        start, end = self.label(), self.label()
        counter = f"r{10 + depth}"
        body = self.block(s.body, depth + 1)
        return (
            f"and.b32 {counter}, {s.first}, 3;\n{start}:\nsetp.eq.u32 p, {counter}, 0;\n@p bra {end};\n"
            f"sub.u32 {counter}, {counter}, 1;\n{body}bra {start};\n{end}:\n"
        )

    def program(self, statements: list[Statement]) -> str:
        main = self.block(statements, 0)
        result = "xor.b32 x, r1, r2; add.u32 x, x, r3; xor.b32 x, x, r4;\n"
        return main + result + "bra END;\n" + "".join(self.late) + "END:\n"


def run_block(statements: list[Statement], lanes: list[dict[str, int]], active: list[int], results: list[int]) -> None:
    """Carries statements out for the active lanes of a warp, removing those that end."""
    for s in statements:
        holds = [lane for lane in active if lanes[lane][s.first] & 7 < s.literal]
        if s.kind in ("op", "guarded"):
            for lane in active if s.kind == "op" else holds:
                r = lanes[lane]
                r[s.target] = OPERATIONS[s.operation](r[s.first], r[s.second]) & M
        elif s.kind == "shuffle":
            value = lanes[(4 * s.literal + 1) % 32][s.first]
            for lane in active:
                lanes[lane][s.target] = value
        elif s.kind == "exit":
            for lane in holds:
                results[lane] = lanes[lane][s.target]
                active.remove(lane)
        elif s.kind == "if":
            others = [lane for lane in active if lane not in holds]
            run_block(s.body, lanes, holds, results)
            run_block(s.other, lanes, others, results)
            active[:] = sorted(holds + others)
        else:
            trips = {lane: lanes[lane][s.first] & 3 for lane in active}
            for lane in list(active):
                mine = [lane]
                for _ in range(trips[lane]):
                    run_block(s.body, lanes, mine, results)
                    if not mine:
                        active.remove(lane)
                        break


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_random_programs(seed: int) -> None:
    rng = random.Random(seed)
    statements = draw(rng, 3, True, rng.random() < 0.5)
    inputs = np.random.default_rng(seed).integers(0, 1 << 32, (4, 64), dtype=np.uint32)
    code = "mov.b32 r1, a; mov.b32 r2, b; mov.b32 r3, c; mov.b32 r4, d;\n" + Writer(rng).program(statements)
    (got,), report = run_lanes(code, *inputs)
    assert not report.findings, report
    for warp in (0, 32):
        lanes = [dict(zip(REGISTERS, inputs[:, warp + n].tolist(), strict=True)) for n in range(32)]
        results, active = [0] * 32, list(range(32))
        run_block(statements, lanes, active, results)
        for lane in active:
            r = lanes[lane]
            results[lane] = ((r["r1"] ^ r["r2"]) + r["r3"] & M) ^ r["r4"]
        assert got[warp : warp + 32].tolist() == results
