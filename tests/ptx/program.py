"""One kernel ready to run: its functions inlined, its variables laid out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from .source import Source
from .syntax import (
    Address,
    Function,
    Instruction,
    Name,
    Not,
    Operand,
    Pair,
    PtxError,
    Reg,
    Special,
    Symbol,
    Var,
    Vector,
)

SHARED_BASE = 1024
"""Address of the first static shared variable (the first KiB belongs to the system on current GPUs)."""

_MAX_CALL_DEPTH = 32
_FINAL = ("ret", "exit", "trap", "bra", "brx")


@dataclass
class Program:
    """Flat code. Special registers and addresses of module variables are registers too, filled at launch.

    Register 0 is the lane number: it always has the shape of the running group.
    """

    name: str
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict)
    registers: list[str] = field(default_factory=lambda: ["b32"])
    specials: dict[str, int] = field(default_factory=lambda: {"%laneid": 0})
    globals: dict[Var, int] = field(default_factory=dict)
    params: dict[Var, int] = field(default_factory=dict)  # -> offset among the kernel's parameters
    param_size: int = 0
    shared: dict[Var, int] = field(default_factory=dict)  # -> shared address
    static_shared: int = 0
    dynamic_align: int = 16
    frame: dict[Var, int] = field(default_factory=dict)  # -> local address
    frame_size: int = 0

    def special(self, name: str) -> int:
        """The register that holds a special register."""
        if name not in self.specials:
            wide = name in ("%clock64", "%globaltimer", "%gridid")
            self.specials[name] = self._new_register("b64" if wide else "b32")
        return self.specials[name]

    def global_address(self, var: Var) -> int:
        """The register that holds the address of a .global or .const variable."""
        if var not in self.globals:
            self.globals[var] = self._new_register("b64")
        return self.globals[var]

    def _new_register(self, kind: str) -> int:
        self.registers.append(kind)
        return len(self.registers) - 1


def link(source: Source, name: str) -> Program:
    """The program of an entry of the module."""
    program = Program(name)
    entry = source.function(name)
    for var in entry.params:
        program.param_size = -(-program.param_size // var.align) * var.align
        program.params[var] = program.param_size
        if var.size is None:
            raise PtxError(f"{name}: the parameter {var.name} has no size")
        program.param_size += var.size
    _Inliner(source, program).body(entry, {}, "", None, 0)
    if not program.code or program.code[-1].guard is not None or program.code[-1].parts[0] not in _FINAL:
        line = program.code[-1].line if program.code else 0
        program.code.append(Instruction(line, "ret", ("ret",), (), None))
    _lay_out(program)
    return program


class _Inliner:
    def __init__(self, source: Source, program: Program) -> None:
        self.source = source
        self.program = program
        self.calls = 0

    def body(self, function: Function, variables: Mapping[Var, Var], suffix: str, end: str | None, depth: int) -> None:
        """Appends a function's code. `variables`: its parameters -> the caller's. `end`: label that `ret`
        goes to; None in the entry."""
        if depth > _MAX_CALL_DEPTH:
            raise PtxError(f"{function.name}: calls are nested too deeply to be inlined (recursion?)")
        program = self.program
        first = len(program.registers)
        program.registers.extend(function.registers)
        fresh = dict(variables)
        if depth:
            fresh.update((var, replace(var)) for var in function.variables if var.space in ("local", "param"))

        def renamed(operand: Operand) -> Operand:
            if isinstance(operand, Reg):
                return Reg(operand.index + first)
            if isinstance(operand, Special):
                return Reg(program.special(operand.name))
            if isinstance(operand, Symbol):
                return Symbol(fresh.get(operand.var, operand.var), operand.offset)
            if isinstance(operand, Name):
                return Name(operand.text + suffix)
            if isinstance(operand, Vector):
                return Vector(tuple(renamed(item) for item in operand.items))
            if isinstance(operand, Not):
                return Not(renamed(operand.operand))
            if isinstance(operand, Pair):
                return Pair(renamed(operand.first), renamed(operand.second))
            if isinstance(operand, Address) and operand.base is not None:
                base = renamed(operand.base)
                assert isinstance(base, Reg | Symbol)
                return Address(base, operand.offset)
            return operand

        for table, targets in function.tables.items():
            program.tables[table + suffix] = tuple(target + suffix for target in targets)
        marks: dict[int, list[str]] = {}
        for label, index in function.labels.items():
            marks.setdefault(index, []).append(label + suffix)
        for index, instruction in enumerate(function.code):
            for label in marks.get(index, ()):
                program.labels[label] = len(program.code)
            guard = instruction.guard
            if guard is not None:
                guard = (Reg(guard[0].index + first), guard[1])
            if instruction.parts[0] == "call":
                self._call(instruction, guard, renamed, suffix, depth)
            elif instruction.parts[0] == "ret" and end is not None:
                program.code.append(replace(instruction, parts=("bra",), operands=(Name(end),), guard=guard))
            else:
                operands = tuple(renamed(operand) for operand in instruction.operands)
                program.code.append(replace(instruction, operands=operands, guard=guard))
        for label in marks.get(len(function.code), ()):
            program.labels[label] = len(program.code)

    def _call(
        self,
        call: Instruction,
        guard: tuple[Reg, bool] | None,
        renamed: Callable[[Operand], Operand],
        suffix: str,
        depth: int,
    ) -> None:
        """The call itself stays as a branch to the next instruction, so that it is counted."""
        operands = list(call.operands)
        first = operands[0]
        results = first.items if isinstance(first, Vector) else ()
        if isinstance(first, Vector):
            operands.pop(0)
        target = operands.pop(0)
        if not isinstance(target, Name):
            raise PtxError(f"line {call.line}: indirect calls are not supported: {call.text}")
        arguments = operands[0].items if operands and isinstance(operands[0], Vector) else ()
        callee = self.source.function(target.text)
        self.calls += 1
        inner = f"{suffix}#{self.calls}"
        end = f"end{inner}"
        mapping: dict[Var, Var] = {}
        for formal, actual in zip((*callee.results, *callee.params), (*results, *arguments), strict=True):
            symbol = renamed(actual)
            if not isinstance(symbol, Symbol):
                raise PtxError(f"line {call.line}: got the argument {actual}, expected a .param variable")
            mapping[formal] = symbol.var
        code, labels = self.program.code, self.program.labels
        if guard is None:
            labels[f"begin{inner}"] = len(code) + 1
            code.append(replace(call, parts=("bra",), operands=(Name(f"begin{inner}"),), guard=None))
        else:
            code.append(replace(call, parts=("bra",), operands=(Name(end),), guard=(guard[0], not guard[1])))
        self.body(callee, mapping, inner, end, depth + 1)
        labels[end] = len(code)


def _symbols(operand: Operand) -> list[Var]:
    if isinstance(operand, Symbol):
        return [operand.var]
    if isinstance(operand, Address) and isinstance(operand.base, Symbol):
        return [operand.base.var]
    if isinstance(operand, Vector):
        return [var for item in operand.items for var in _symbols(item)]
    return []


def _lay_out(program: Program) -> None:
    """Addresses of shared and local variables that the code names; dynamic shared memory comes last."""
    used: dict[Var, None] = {}
    for instruction in program.code:
        for operand in instruction.operands:
            used.update((var, None) for var in _symbols(operand))
    shared, local = SHARED_BASE, 0
    dynamic: list[Var] = []
    for var in used:
        if var in program.params:
            continue
        if var.space == "shared":
            if var.size is None:
                dynamic.append(var)
                continue
            shared = -(-shared // var.align) * var.align
            program.shared[var] = shared
            shared += var.size
        elif var.space in ("local", "param"):
            if var.size is None:
                raise PtxError(f"{program.name}: the local variable {var.name} has no size")
            local = -(-local // var.align) * var.align
            program.frame[var] = local
            local += var.size
        else:
            program.global_address(var)
    program.dynamic_align = max([16, *(var.align for var in dynamic)])
    shared = -(-shared // program.dynamic_align) * program.dynamic_align if dynamic else shared
    program.shared.update((var, shared) for var in dynamic)
    program.static_shared = shared - SHARED_BASE
    program.frame_size = local
