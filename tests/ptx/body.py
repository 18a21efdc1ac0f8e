"""Parsing of one function body: scopes, declarations, labels, instructions."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .syntax import (
    Address,
    Function,
    Imm,
    Instruction,
    Name,
    Not,
    Operand,
    Pair,
    PtxError,
    Reg,
    Sink,
    Special,
    Symbol,
    Var,
    Vector,
    parse_literal,
    parse_variable,
)

_SPACE = re.compile(r"\s+")
_LABEL = re.compile(r"([\w$%]+)\s*:(?!:)")
_GUARD = re.compile(r"@(!?)\s*([\w$%]+)\s*")
_OPCODE = re.compile(r"([a-z][\w]*(?:\.[\w:]+)*)\s*")
_REG_DECL = re.compile(r"\.reg\s*(?:\.v[24]\s*)?\.(\w+)\s+(.*)", re.S)
_BRACE = re.compile(r"[{}]")
_BRACE_OR_LABEL = re.compile(r"[{}]|([\w$%]+)\s*:(?!:)")
_RANGE = re.compile(r"([\w$%]+?)<(\d+)>$")
_SPECIAL = re.compile(
    r"%(?:(?:n?tid|n?ctaid)(?:\.[xyz])?|laneid|warpid|nwarpid|smid|nsmid|gridid|clock(?:64|_hi)?"
    r"|lanemask_(?:eq|le|lt|ge|gt)|dynamic_smem_size|total_smem_size|globaltimer(?:_lo|_hi)?|envreg\d+"
    r"|is_explicit_cluster|(?:n?cluster)?_?(?:ctaid|nctaid|ctarank)(?:\.[xyz])?)$"
)


class _Scope:
    """Names of one pair of braces."""

    def __init__(self) -> None:
        self.registers: dict[str, int] = {}
        self.ranges: dict[str, tuple[int, int]] = {}  # prefix -> (first index, count)
        self.variables: dict[str, Var] = {}
        self.labels: dict[str, str] = {}


class BodyParser:
    """Parses one body. `text` is the whole module without comments; the body is [start, stop) of it."""

    def __init__(self, function: Function, text: str, start: int, stop: int, outer: Mapping[str, Var]) -> None:
        self.function = function
        self.text = text
        self.position = start
        self.stop = stop
        self.line = text.count("\n", 0, start) + 1
        self.scopes = [_Scope()]
        self.scopes[0].variables.update(outer)
        for var in (*function.params, *function.results):
            self.scopes[0].variables[var.name] = var
        self.label_count = 0

    def parse(self) -> Function:
        """Fills the function and returns it."""
        while self._skip_space():
            char = self.text[self.position]
            if char == "{":
                self._open_scope()
            elif char == "}":
                self.scopes.pop()
                self._advance(self.position + 1)
            elif (match := _LABEL.match(self.text, self.position)) is not None:
                self._label(match)
            else:
                end = self.text.find(";", self.position, self.stop)
                if end < 0:
                    raise PtxError(f"line {self.line}: statement without a semicolon")
                self._statement(self.text[self.position : end], self.line)
                self._advance(end + 1)
        return self.function

    def _advance(self, position: int) -> None:
        self.line += self.text.count("\n", self.position, position)
        self.position = position

    def _skip_space(self) -> bool:
        match = _SPACE.match(self.text, self.position)
        if match is not None:
            self._advance(min(match.end(), self.stop))
        return self.position < self.stop

    def _open_scope(self) -> None:
        """Labels of a scope are found at once: branches to them may come first."""
        scope = _Scope()
        depth, end = 0, self.position
        for brace in _BRACE.finditer(self.text, self.position, self.stop):
            depth += 1 if brace.group() == "{" else -1
            if depth == 0:
                end = brace.start()
                break
        level = 0
        for token in _BRACE_OR_LABEL.finditer(self.text, self.position + 1, end):
            if token.group() == "{":
                level += 1
            elif token.group() == "}":
                level -= 1
            elif level == 0 and token.group(1) is not None:
                self.label_count += 1
                scope.labels[token.group(1)] = f"{token.group(1)}@{self.label_count}"
        self.scopes.append(scope)
        self._advance(self.position + 1)

    def _label(self, match: re.Match[str]) -> None:
        name = self._label_name(match.group(1))
        self._advance(match.end())
        self._skip_space()
        if self.text.startswith(".branchtargets", self.position):
            end = self.text.index(";", self.position)
            targets = self.text[self.position + len(".branchtargets") : end]
            self.function.tables[name] = tuple(self._label_name(t.strip()) for t in targets.split(","))
            self._advance(end + 1)
        else:
            self.function.labels[name] = len(self.function.code)

    def _label_name(self, text: str) -> str:
        for scope in reversed(self.scopes):
            if text in scope.labels:
                return scope.labels[text]
        return text

    def _statement(self, text: str, line: int) -> None:
        text = text.strip()
        if not text or text.startswith((".pragma", ".maxntid", ".minnctapersm", ".reqntid")):
            return
        if text.startswith(".reg"):
            self._registers(text, line)
        elif text.startswith((".local", ".shared", ".param", ".global", ".const")):
            var = parse_variable(text, line)
            self.scopes[-1].variables[var.name] = var
            self.function.variables.append(var)
        elif text.startswith("."):
            raise PtxError(f"line {line}: directive not supported: {text}")
        else:
            self.function.code.append(self._instruction(text, line))

    def _registers(self, text: str, line: int) -> None:
        match = _REG_DECL.match(text)
        if match is None:
            raise PtxError(f"line {line}: cannot parse {text!r}")
        kind, scope = match[1], self.scopes[-1]
        for name in (item.strip() for item in match[2].split(",")):
            span = _RANGE.match(name)
            first = len(self.function.registers)
            count = int(span[2]) if span else 1
            if span:
                scope.ranges[span[1]] = (first, count)
            else:
                scope.registers[name] = first
            self.function.registers.extend([kind] * count)

    def _instruction(self, text: str, line: int) -> Instruction:
        guard: tuple[Reg, bool] | None = None
        rest = text
        if (match := _GUARD.match(rest)) is not None:
            predicate = self._operand(match[2], line)
            if not isinstance(predicate, Reg):
                raise PtxError(f"line {line}: got the guard {match[2]!r}, expected a predicate register")
            guard, rest = (predicate, match[1] == "!"), rest[match.end() :]
        match = _OPCODE.match(rest)
        if match is None:
            raise PtxError(f"line {line}: cannot parse {text!r}")
        operands = tuple(self._operand(item, line) for item in _split(rest[match.end() :]))
        return Instruction(line, " ".join(text.split()), tuple(match[1].split(".")), operands, guard)

    def _operand(self, text: str, line: int) -> Operand:
        text = text.strip()
        if text == "_":
            return Sink()
        if text.startswith("[") and text.endswith("]"):
            return self._address(text[1:-1], line)
        if (text.startswith("{") and text.endswith("}")) or (text.startswith("(") and text.endswith(")")):
            return Vector(tuple(self._operand(item, line) for item in _split(text[1:-1])))
        if text.startswith("!"):
            return Not(self._operand(text[1:], line))
        if "|" in text:
            first, second = text.split("|")
            return Pair(self._operand(first, line), self._operand(second, line))
        if re.match(r"[-+]?\d", text):
            try:
                return parse_literal(text)
            except PtxError as error:
                raise PtxError(f"line {line}: {error}") from None
        if text == "WARP_SZ":
            return Imm(32, "int")
        if _SPECIAL.match(text):
            return Special(text)
        return self._name(text)

    def _name(self, text: str) -> Operand:
        for scope in reversed(self.scopes):
            if text in scope.registers:
                return Reg(scope.registers[text])
            if text in scope.variables:
                return Symbol(scope.variables[text])
            split = len(text)
            while split and text[split - 1].isdigit():  # `%r12` is number 12 of `%r<…>` or number 2 of `%r1<…>`
                split -= 1
                span = scope.ranges.get(text[:split])
                if span is not None and int(text[split:]) < span[1]:
                    return Reg(span[0] + int(text[split:]))
        symbol = re.match(r"([\w$%]+)\s*\+\s*(\d+)$", text)
        if symbol is not None and isinstance(base := self._name(symbol[1]), Symbol):
            return Symbol(base.var, int(symbol[2]))
        return Name(self._label_name(text))

    def _address(self, text: str, line: int) -> Address:
        match = re.match(r"\s*([\w$%]+)\s*(?:\+\s*(-?\w+)|(-\s*\w+))?\s*$", text)
        if match is None:
            raise PtxError(f"line {line}: cannot parse the address [{text}]")
        offset = int(parse_literal((match[2] or match[3] or "0").replace(" ", "")).value)
        if re.match(r"\d", match[1]):
            return Address(None, int(parse_literal(match[1]).value) + offset)
        base = self._name(match[1])
        if not isinstance(base, Reg | Symbol):
            raise PtxError(f"line {line}: got the unknown name {match[1]!r} in an address")
        return Address(base, offset)


def _split(text: str) -> list[str]:
    """Splits at commas outside braces, brackets and parentheses."""
    items: list[str] = []
    depth, start = 0, 0
    for position, char in enumerate(text):
        if char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            items.append(text[start:position])
            start = position + 1
    items.append(text[start:])
    return [item for item in items if item.strip()]
