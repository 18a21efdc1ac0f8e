"""Machine code of the built library: registers, shared memory, instructions, by cuobjdump."""

from __future__ import annotations

import functools
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.plugins.library import code, cuobjdump, plan
from tests.plugins.problem import Problem

# Threads, 32-bit registers and bytes of shared memory of one SM
SM = {80: (2048, 65536, 167936), 87: (1536, 65536, 167936)}
RESERVED_SHARED = 1024  # of every block, from SM 8.0 on


@dataclass(frozen=True)
class Resources:
    registers: int
    stack_bytes: int
    threads: int
    shared_bytes: int
    capability: int

    @property
    def occupancy(self) -> float:
        """Share of an SM's warps that can be there at once. Registers go out by 256 a warp."""
        threads, registers, shared = SM[self.capability]
        a_warp = (self.registers * 32 + 255) // 256 * 256
        warps = self.threads // 32
        blocks = min(
            registers // a_warp // warps, shared // (self.shared_bytes + RESERVED_SHARED), threads // self.threads, 32
        )
        return blocks * warps * 32 / threads


@functools.cache
def dump(binary: Path, *options: str) -> str:
    """What cuobjdump says of a library or a cubin."""
    tool = cuobjdump()
    environment = {"PATH": f"{tool.parent}:/usr/bin:/bin"}
    done = subprocess.run(
        [str(tool), *options, str(binary)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def resources(dtype: str, problem: Problem) -> Resources:
    status, launch = plan(problem.params(), problem.capability)
    assert status == 0
    kernel = launch.kernel.decode()
    text = dump(code(dtype, problem.capability), "--dump-resource-usage")
    found = re.search(rf"Function {kernel}:\s*\n\s*REG:(\d+) STACK:(\d+)", text)
    assert found, f"{kernel}: not in the machine code"
    return Resources(int(found[1]), int(found[2]), launch.threads, launch.shared_bytes, problem.capability)


def sass(binary: Path, architecture: str) -> dict[str, list[str]]:
    """Instructions of every kernel of one architecture, opcode first."""
    kernels: dict[str, list[str]] = {}
    current: list[str] = []
    for line in dump(binary, "--dump-sass", "-arch", architecture).splitlines():
        if name := re.match(r"\s*Function : (\S+)", line):
            current = kernels.setdefault(name[1], [])
        elif code := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            current.append(code[1])
    return kernels


def sass_instructions(dtype: str, kernel: str, capability: int = 80) -> int:
    """Without the padding behind the last branch."""
    return sum(opcode != "NOP" for opcode in sass(code(dtype, capability), f"sm_{capability}")[kernel])
