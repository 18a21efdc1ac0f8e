"""What a PTX text says: modules, functions, variables, instructions. No meaning is attached here."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_WIDTHS = {"f16x2": 4, "bf16x2": 4, "f16": 2, "bf16": 2, "tf32": 4, "pred": 0, "b128": 16}


class PtxError(Exception):
    """PTX that cannot be parsed, is not supported, or asks for the impossible; the message names the line."""


def width_of(type_name: str) -> int:
    """Bytes of a PTX type name without its dot: 4 for `f32`; 0 for `pred`."""
    if type_name in _WIDTHS:
        return _WIDTHS[type_name]
    if re.fullmatch(r"[busf](8|16|32|64)", type_name):
        return int(type_name[1:]) // 8
    raise PtxError(f"got the type .{type_name}, expected a PTX type")


@dataclass(frozen=True)
class Reg:
    """A virtual register of a function, by its index there."""

    index: int


@dataclass(frozen=True)
class Special:
    """A special register such as `%tid.x`."""

    name: str


@dataclass(frozen=True)
class Imm:
    """A literal: an integer, or the bits of a float32 (`0f…`) or float64 (`0d…`), or a decimal float."""

    value: int | float
    kind: str  # "int", "f32" (bits), "f64" (bits) or "decimal"


@dataclass(eq=False)
class Var:
    """A named piece of memory. `size` is None for `extern` arrays, whose size the launch gives."""

    name: str
    space: str
    align: int
    size: int | None
    init: tuple[tuple[int, int | str], ...] = ()  # (width, value or the name of another variable)


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, plus bytes."""

    var: Var
    offset: int = 0


@dataclass(frozen=True)
class Name:
    """A name that is neither register nor variable: a label, or a function."""

    text: str


@dataclass(frozen=True)
class Vector:
    """`{a, b, …}`."""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """`a|b`: a result and its predicate."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Address:
    """`[base+offset]`; base is a register, a variable or (an absolute address) nothing."""

    base: Reg | Symbol | None
    offset: int


@dataclass(frozen=True)
class Sink:
    """`_`: a result nobody wants, or an operand that is not given."""


@dataclass(frozen=True)
class Not:
    """`!p`."""

    operand: Operand


Operand = Reg | Special | Imm | Symbol | Name | Vector | Pair | Address | Sink | Not


@dataclass(frozen=True)
class Instruction:
    """One instruction; `line` counts from 1 in the module's text. Guard: (predicate, True for `@!`)."""

    line: int
    text: str
    parts: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None

    @property
    def opcode(self) -> str:
        return ".".join(self.parts)


@dataclass
class Function:
    """A parsed body. Labels map to indices into `code`; `registers` holds the type of each register."""

    name: str
    params: list[Var] = field(default_factory=list)
    results: list[Var] = field(default_factory=list)
    registers: list[str] = field(default_factory=list)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    variables: list[Var] = field(default_factory=list)


_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.S)
_DEBUG = re.compile(r"^[ \t]*\.(loc|file)\b[^\n]*", re.M)
_VARIABLE = re.compile(
    r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?P<space>global|const|shared|local|param)\b\s*"
    r"(?:\.align\s+(?P<align>\d+)\s*)?\.(?P<type>\w+)\s*(?:\.ptr[^,;)]*?(?:\.align\s+\d+)?\s+)?"
    r"(?P<name>[\w$%]+)\s*(?P<dims>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<init>[^;]*))?"
)


def blank_comments(text: str) -> str:
    """The text without comments and debug lines, every line still where it was."""

    def blanked(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match.group())

    return _DEBUG.sub(blanked, _COMMENT.sub(blanked, text))


def parse_variable(text: str, line: int) -> Var:
    """One `.shared .align 16 .b8 name[64]` declaration, without its semicolon."""
    match = _VARIABLE.match(text.strip())
    if match is None:
        raise PtxError(f"line {line}: cannot parse the declaration {text.strip()!r}")
    width = max(width_of(match["type"]), 1)
    dims = re.findall(r"\[\s*(\d*)\s*\]", match["dims"])
    size: int | None = width
    for dim in dims:
        size = None if dim == "" or size is None else size * int(dim)
    init: list[tuple[int, int | str]] = []
    for item in re.findall(r"[^\s{},]+", match["init"] or ""):
        if re.match(r"[-+0-9]", item):
            literal = parse_literal(item)
            init.append((width, int(literal.value)))
        else:
            init.append((width, item))
    if size is None and init:
        size = width * len(init)
    return Var(match["name"], match["space"], int(match["align"] or width), size, tuple(init))


def parse_literal(text: str) -> Imm:
    """An integer, float or float-bits literal of PTX."""
    body = text.lstrip("+")
    if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", body):
        return Imm(int(body[2:], 16), "f32")
    if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", body):
        return Imm(int(body[2:], 16), "f64")
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+", body):
        return Imm(float(body), "decimal")
    digits = body.rstrip("U")
    sign = -1 if digits.startswith("-") else 1
    digits = digits.lstrip("-")
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|0[bB][01]+|[1-9]\d*|0", digits):
        return Imm(sign * int(digits, 0), "int")
    if re.fullmatch(r"0[0-7]+", digits):
        return Imm(sign * int(digits, 8), "int")
    raise PtxError(f"got {text!r}, expected a PTX literal")
