"""The interface: a module of PTX, its kernels, launches and their reports."""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import instructions as _instructions  # noqa: F401 - fills the table of operations
from .access import Traffic
from .counts import Counts
from .findings import Finding, Findings
from .kernel import Kernel
from .machine import Machine
from .memory import Memory
from .program import SHARED_BASE, link
from .races import RaceDetector
from .source import Source
from .spaces import GlobalSpace, LocalSpace, ParamSpace, SharedSpace, Space
from .syntax import Address, Imm, Instruction, PtxError, Var, width_of
from .types import LANES, RAW, Array

Argument = int | float | bytes | np.generic
Dim3 = int | tuple[int, ...]


@dataclass
class Report:
    """What a launch did. `lines`: PTX line -> warp instructions issued there; `conflict_lines`: -> wavefronts
    lost to bank conflicts there."""

    kernel: str
    findings: list[Finding] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    lines: dict[int, int] = field(default_factory=dict)
    conflict_lines: dict[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([f"{self.kernel}: {len(self.findings)} findings", *map(str, self.findings)])


class Module:
    """A PTX module."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.source = Source(text)
        self._kernels: dict[str, Kernel] = {}

    @classmethod
    def from_source(cls, text: str) -> Module:
        """From PTX text."""
        return cls(text)

    @classmethod
    def from_file(cls, path: str | Path) -> Module:
        """From a file of PTX."""
        return cls(Path(path).read_text())

    @property
    def kernels(self) -> list[str]:
        """Names of all entries, as in the text."""
        return list(self.source.entries)

    def find(self, name: str) -> str:
        """The one entry whose name is, or contains, `name`; demangled names are compared with blanks removed."""
        if name in self.source.entries:
            return name
        found = [entry for entry in self.source.entries if name in entry]
        if not found:
            wanted = name.replace(" ", "")
            found = [e for e in self.source.entries if wanted in demangled(e).replace(" ", "")]
        if len(found) != 1:
            raise PtxError(f"got the kernel name {name!r}, which fits {found or 'nothing'}; have {self.kernels}")
        return found[0]

    def kernel(self, name: str) -> Kernel:
        """The decoded kernel of an entry."""
        entry = self.find(name)
        if entry not in self._kernels:
            self._kernels[entry] = Kernel(link(self.source, entry))
        return self._kernels[entry]

    def instructions(self, name: str, *opcodes: str) -> list[Instruction]:
        """The instructions of a kernel whose opcode begins with one of these, `bar.sync` or `cp.async.wait`."""
        code = self.kernel(name).program.code
        return [i for i in code if not opcodes or any(i.opcode.startswith(opcode) for opcode in opcodes)]

    def without(self, line: int) -> Module:
        """The module with the first statement of a line (from 1) blanked out: for tests that break a kernel."""
        changed = copy.copy(self)
        changed.source = self.source.without(line)
        changed._kernels = {}
        return changed

    def launch(
        self,
        name: str,
        grid: Dim3,
        block: Dim3,
        args: Sequence[Argument],
        memory: Memory,
        shared_bytes: int = 0,
        max_lanes: int = 16384,
        limit: int = 50_000_000,
    ) -> Report:
        """Runs a kernel. `args` are converted to the declared parameters: ints (also addresses), floats, numpy
        scalars, or bytes (structs). Blocks run together, up to `max_lanes` lanes at a time, in the order of
        their index; `limit` warp instructions end an endless loop."""
        kernel = self.kernel(name)
        launcher = _Launch(kernel, _dim3(grid), _dim3(block), self.source, memory, shared_bytes)
        launcher.pack(args)
        with np.errstate(all="ignore"):
            return launcher.run(max_lanes, limit)


def _dim3(size: Dim3) -> tuple[int, int, int]:
    dims = (size,) if isinstance(size, int) else tuple(size)
    x, y, z = (*dims, 1, 1, 1)[:3]
    if min(x, y, z) < 1:
        raise PtxError(f"got the dimensions {size}, expected positive numbers")
    return x, y, z


def demangled(name: str) -> str:
    """A readable form of an Itanium name: its nested names, joined by ::, template arguments left as they are."""
    match = re.match(r"_ZN?", name)
    if match is None:
        return name
    parts, position = [], match.end()
    while (length := re.compile(r"[KL]?(\d+)").match(name, position)) is not None:
        start = length.end()
        position = start + int(length[1])
        parts.append(name[start:position])
    return "::".join(parts)


class _Launch:
    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        source: Source,
        memory: Memory,
        shared_bytes: int,
    ) -> None:
        self.kernel = kernel
        self.program = kernel.program
        self.grid = grid
        self.block = block
        self.threads = block[0] * block[1] * block[2]
        if self.threads > 1024:
            raise PtxError(f"got a block of {self.threads} threads, expected at most 1024")
        self.warps = -(-self.threads // LANES)
        self.memory = memory
        self.shared_bytes = shared_bytes
        self.shared_size = self.program.static_shared + shared_bytes
        self.params = b""
        self.report = Report(self.program.name)
        self.found = Findings()
        self.issues = np.zeros(len(self.program.code) + 1, np.int64)
        self.source = source
        self.global_addresses = _place_globals(source, list(self.program.globals), memory)

    def pack(self, args: Sequence[Argument]) -> None:
        """Lays the arguments out as the kernel's parameters."""
        declared = list(self.program.params)
        if len(args) != len(declared):
            raise PtxError(f"{self.program.name}: got {len(args)} arguments, expected {len(declared)}")
        data = bytearray(self.program.param_size)
        for var, arg in zip(declared, args, strict=True):
            raw = _argument_bytes(arg, var)
            start = self.program.params[var]
            data[start : start + len(raw)] = raw
        self.params = bytes(data)

    def run(self, max_lanes: int, limit: int) -> Report:
        total = self.grid[0] * self.grid[1] * self.grid[2]
        batch = max(1, max_lanes // (self.warps * LANES))
        counts = self.report.counts
        for first in range(0, total, batch):
            self._run_blocks(first, min(batch, total - first), limit)
        for index, issued in enumerate(self.issues[:-1]):
            if issued:
                instruction = self.program.code[index]
                counts.opcodes[instruction.opcode] += int(issued)
                self.report.lines[instruction.line] = self.report.lines.get(instruction.line, 0) + int(issued)
        for index, extra in counts.conflicts_at.items():
            line = self.program.code[index].line
            self.report.conflict_lines[line] = self.report.conflict_lines.get(line, 0) + extra
        self.report.findings = self.found.in_order()
        for finding in self.report.findings:
            finding.source = self.source.cuda_line(finding.line)
        return self.report

    def _run_blocks(self, first: int, blocks: int, limit: int) -> None:
        number = np.arange(first, first + blocks)
        x, y = self.grid[0], self.grid[1]
        ids = np.stack([number % x, number // x % y, number // (x * y)], axis=1)
        lanes_of_block = self.warps * LANES
        lanes = blocks * lanes_of_block
        shared = SharedSpace(blocks, lanes_of_block, self.shared_size)
        spaces: dict[str, Space] = {
            "global": GlobalSpace(self.memory),
            "shared": shared,
            "local": LocalSpace(lanes, self.program.frame_size),
            "param": ParamSpace(self.params),
        }
        granule = _granule(self.program.code)
        races = RaceDetector(granule, len(shared.store.data) // granule, blocks, lanes, lanes_of_block)
        traffic = Traffic(self.program.code, spaces, races, self.report.counts, self.found, ids, lanes_of_block)
        machine = Machine(self.kernel, traffic, self.warps, self.threads, blocks, limit)
        self._set_registers(machine, ids)
        machine.run()
        self.issues += machine.issues
        self.report.counts.predicated_off += machine.predicated_off

    def _set_registers(self, machine: Machine, ids: Array) -> None:
        shape = machine.lanes.shape
        blank = {width: np.zeros(shape, RAW[width]) for width in RAW}
        for index, width in enumerate(self.kernel.widths):
            machine.registers[index] = blank[width]
        in_block = machine.lanes % (self.warps * LANES)
        block_of = machine.lanes // (self.warps * LANES)
        x, y = self.block[0], self.block[1]
        lane = machine.lanes % LANES
        one = np.uint64(1)
        values: dict[str, Array | int] = {
            "%laneid": lane,
            "%warpid": in_block // LANES,
            "%nwarpid": self.warps,
            "%tid.x": in_block % x,
            "%tid.y": in_block // x % y,
            "%tid.z": in_block // (x * y),
            "%lanemask_eq": one << lane.astype(np.uint64),
            "%lanemask_lt": (one << lane.astype(np.uint64)) - one,
            "%lanemask_le": (one << (lane + 1).astype(np.uint64)) - one,
            "%lanemask_ge": ~((one << lane.astype(np.uint64)) - one) & np.uint64(0xFFFFFFFF),
            "%lanemask_gt": ~((one << (lane + 1).astype(np.uint64)) - one) & np.uint64(0xFFFFFFFF),
            "%dynamic_smem_size": self.shared_bytes,
            "%total_smem_size": self.shared_size,
            "%smid": 0,
            "%nsmid": 1,
            "%cc": 0,
        }
        for axis, name in enumerate("xyz"):
            values[f"%ntid.{name}"] = self.block[axis]
            values[f"%nctaid.{name}"] = self.grid[axis]
            values[f"%ctaid.{name}"] = ids[:, axis][block_of]
        for name, index in self.program.specials.items():
            if name not in values:
                raise PtxError(f"{self.program.name}: the special register {name} is not supported")
            dtype = RAW[self.kernel.widths[index]]
            machine.registers[index] = np.broadcast_to(np.asarray(values[name]), shape).astype(dtype)
        for var, index in self.program.globals.items():
            machine.registers[index] = np.full(shape, self.global_addresses[var], np.uint64)


def _argument_bytes(arg: Argument, var: Var) -> bytes:
    size = var.size or 0
    if isinstance(arg, bytes):
        raw = arg
    elif isinstance(arg, np.generic):
        raw = arg.tobytes()
    elif isinstance(arg, int):
        raw = (arg & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    else:
        raw = struct.pack("<f" if size == 4 else "<d", arg)
    if len(raw) != size:
        raise PtxError(f"parameter {var.name}: got {len(raw)} bytes, expected {size}")
    return raw


def _place_globals(source: Source, wanted: list[Var], memory: Memory) -> dict[Var, int]:
    """Allocates module variables and whatever their initial values name."""
    placed: dict[Var, int] = {}

    def place(var: Var) -> int:
        if var not in placed:
            data = b""
            for width, value in var.init:
                number = value if isinstance(value, int) else place(source.variables[value.split("+")[0]])
                data += (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
            size = var.size if var.size is not None else len(data)
            content = np.frombuffer(data.ljust(size, b"\0"), np.uint8)
            placed[var] = memory.alloc(content, read_only=var.space == "const")
        return placed[var]

    for var in wanted:
        place(var)
    return placed


def _granule(code: Sequence[Instruction]) -> int:
    """The smallest access to shared memory in the code: the grain in which races are looked for."""
    sizes = [16]
    for i in code:
        name = i.parts[0]
        if name in ("ld", "st", "atom", "red"):
            spaces = {part.split("::")[0] for part in i.parts}
            if spaces & {"global", "local", "param", "const"}:
                continue
            if any(isinstance(operand, Address) for operand in i.operands):
                count = next((int(p[1:]) for p in i.parts if p in ("v2", "v4", "v8")), 1)
                sizes.append(min(16, width_of(i.parts[-1]) * count))
        elif i.parts[:2] == ("cp", "async") and len(i.operands) > 2 and isinstance(i.operands[2], Imm):
            sizes.append(int(i.operands[2].value))
    return min(sizes)


__all__ = ["SHARED_BASE", "Memory", "Module", "Report", "demangled"]
