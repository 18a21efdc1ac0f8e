"""A module's text as functions, parsed when they are asked for."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cached_property

from .body import BodyParser
from .syntax import Function, PtxError, Var, blank_comments, parse_variable

_HEADER = re.compile(r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\b")
_TOP_VARIABLE = re.compile(r"(?:\.(?:visible|extern|weak|common)\s+)*\.(?:global|const|shared)\b")


class Source:
    """Functions and module-wide variables of a PTX text. Bodies are parsed on first use."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.clean = blank_comments(text)
        self.clean_lines = self.clean.split("\n")
        if ".version" not in self.clean:
            raise PtxError("got a text without .version, expected the PTX of a whole module")
        self.variables: dict[str, Var] = {}
        self.entries: list[str] = []
        self._headers: dict[str, tuple[str, int, int]] = {}  # name -> (header text, body start, body stop)
        self._parsed: dict[str, Function] = {}
        for header, start, stop in self._blocks():
            kind, name = self._header_name(header)
            self._headers[name] = (header, start, stop)
            if kind == "entry":
                self.entries.append(name)

    def function(self, name: str) -> Function:
        """The parsed body of an entry or a function."""
        if name not in self._parsed:
            if name not in self._headers:
                raise PtxError(f"got the function {name!r}, which has no body here; have {list(self._headers)}")
            header, start, stop = self._headers[name]
            function = Function(name)
            groups = _parameter_groups(header)
            line = self.clean.count("\n", 0, start) + 1
            function.params = [parse_variable(item, line) for item in groups[-1]] if groups else []
            if len(groups) == 2:
                function.results = [parse_variable(item, line) for item in groups[0]]
            self._parsed[name] = BodyParser(function, self.clean, start, stop, self.variables).parse()
        return self._parsed[name]

    def without(self, line: int) -> Source:
        """The same text with the first statement of a line (from 1) blanked out. Nothing else moves, so only
        the function around it is parsed again."""
        before = re.search(r"[^{};\s][^{};]*;", self.clean_lines[line - 1])
        if before is None:
            raise PtxError(f"line {line}: got {self.lines[line - 1].strip()!r}, expected a statement")
        start = sum(len(text) + 1 for text in self.clean_lines[: line - 1]) + before.start()
        changed = copy.copy(self)
        blank = " " * len(before.group())
        changed.clean = self.clean[:start] + blank + self.clean[start + len(blank) :]
        changed._parsed = {}
        return changed

    def cuda_line(self, line: int) -> str:
        """`file:line` of the CUDA source that a line of PTX came from; empty without -lineinfo."""
        for number in range(min(line, len(self.lines)) - 1, -1, -1):
            text = self.lines[number].strip()
            if text in ("{", "}") and number < line - 1 and not self.lines[number].startswith((" ", "\t")):
                break
            if (match := re.match(r"\.loc\s+(\d+)\s+(\d+)", text)) is not None:
                return f"{self._files.get(match[1], match[1])}:{match[2]}"
        return ""

    @cached_property
    def _files(self) -> dict[str, str]:
        lines = (line.split('"') for line in self.lines if line.lstrip().startswith(".file"))
        return {line[0].split()[1]: line[1] for line in lines}

    def _blocks(self) -> Iterator[tuple[str, int, int]]:
        """(header, body start, body stop) of each function with a body; collects the variables between."""
        position, text = 0, self.clean
        token = re.compile(r"[{};]|" + _HEADER.pattern + "|" + _TOP_VARIABLE.pattern)
        while (match := token.search(text, position)) is not None:
            position = match.end()
            if _HEADER.fullmatch(match.group()):
                opening, semicolon = text.find("{", position), text.find(";", position)
                if 0 <= semicolon < opening or opening < 0:
                    position = semicolon + 1  # a prototype
                    continue
                stop = _closing(text, opening)
                yield text[match.start() : opening], opening + 1, stop
                position = stop + 1
            elif _TOP_VARIABLE.fullmatch(match.group()):
                end = text.index(";", position)
                line = text.count("\n", 0, match.start()) + 1
                var = parse_variable(text[match.start() : end], line)
                self.variables[var.name] = var
                position = end + 1

    @staticmethod
    def _header_name(header: str) -> tuple[str, str]:
        match = re.match(r"(?:\.(?:visible|extern|weak)\s+)*\.(entry|func)\s*(?:\([^)]*\)\s*)?([\w$%]+)", header, re.S)
        if match is None:
            raise PtxError(f"cannot parse the function header {header!r}")
        return match[1], match[2]


def _closing(text: str, opening: int) -> int:
    depth = 0
    for brace in re.finditer(r"[{}]", text[opening:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return opening + brace.start()
    raise PtxError("a function body is not closed")


def _parameter_groups(header: str) -> list[list[str]]:
    """Declarations inside each pair of parentheses of a header: results (if any), then parameters."""
    return [[item.strip() for item in group.split(",") if item.strip()] for group in re.findall(r"\(([^)]*)\)", header)]
