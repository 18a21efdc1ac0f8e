"""What a library file is: its symbols, machine and kernels, read from its bytes; nothing is run."""

from __future__ import annotations

import platform
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from vtn_export.errors import PluginError
from vtn_export.trt.plugins.sidecar import Sidecar, read_sidecar, sidecar_path

REQUIRED_SYMBOLS = ("getCreators", "setLoggerFinder")
_MACHINES = {62: "x86_64", 183: "aarch64"}
_CUDA_ELF = 190
_SHF_ALLOC_DYNSYM = 11


@dataclass(frozen=True)
class LibraryInfo:
    """One library: ELF machine, exported and needed names, architectures of its cubins, and its sidecar."""

    path: Path
    machine: str
    exports: tuple[str, ...]
    needed: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    sidecar: Sidecar | None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why this machine could not load it, one sentence each; empty if it could."""
        found = []
        if self.machine != _this_machine():
            found.append(f"built for {self.machine}, this machine is {_this_machine()}")
        missing = [name for name in REQUIRED_SYMBOLS if name not in self.exports]
        if missing:
            found.append(f"exports no {' and no '.join(missing)}: not a TensorRT plugin library")
        foreign = [name for name in self.needed if re.match(r"lib(nvinfer|cudart)", name)]
        if foreign:
            found.append(f"needs {', '.join(foreign)} at load time; expected the C library alone")
        if self.sidecar is not None and set(self.sidecar.compute_capabilities) - set(self.compute_capabilities):
            expected = ", ".join(self.sidecar.compute_capabilities)
            found.append(f"has kernels for {', '.join(self.compute_capabilities)}, its sidecar says {expected}")
        return tuple(found)


def inspect_library(path: Path) -> LibraryInfo:
    """Reads a library. Raises PluginError for no ELF library, and for a sidecar with another hash."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read ({error.strerror}); expected a plugin library") from None
    if data[:4] != b"\x7fELF" or len(data) < 64 or data[4] != 2:
        raise PluginError(f"{path}: not a 64-bit ELF library; expected one of `vtn-export plugins build`")
    try:
        (machine,) = struct.unpack_from("<H", data, 18)
        exports, needed = _dynamic(data)
        cubins = _cubins(data)
    except (struct.error, IndexError, ValueError):
        raise PluginError(f"{path}: truncated ELF file; build the library again") from None
    sidecar = read_sidecar(path) if sidecar_path(path).is_file() else None
    return LibraryInfo(
        path=path,
        machine=_MACHINES.get(machine, f"ELF machine {machine}"),
        exports=exports,
        needed=needed,
        compute_capabilities=cubins,
        sidecar=sidecar,
    )


def _this_machine() -> str:
    return platform.machine().replace("arm64", "aarch64").replace("AMD64", "x86_64")


def _sections(data: bytes, start: int = 0) -> list[tuple[int, int, int, int]]:
    """(type, offset, size, link) of every section."""
    (table,) = struct.unpack_from("<Q", data, start + 40)
    size, count = struct.unpack_from("<HH", data, start + 58)
    found = []
    for index in range(count):
        at = start + table + index * size
        _, kind, _, _, offset, length, link = struct.unpack_from("<IIQQQQI", data, at)
        found.append((kind, start + offset, length, link))
    return found


def _name(data: bytes, table: int, at: int) -> str:
    end = data.index(b"\0", table + at)
    return data[table + at : end].decode("ascii", "replace")


def _dynamic(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Defined dynamic symbols and needed libraries."""
    sections = _sections(data)
    exports: list[str] = []
    needed: list[str] = []
    for kind, offset, length, link in sections:
        strings = sections[link][1] if link < len(sections) else 0
        if kind == _SHF_ALLOC_DYNSYM:
            for at in range(offset, offset + length, 24):
                name, info, _, section = struct.unpack_from("<IBBH", data, at)
                if section != 0 and name != 0 and info >> 4 in {1, 2}:
                    exports.append(_name(data, strings, name))
        elif kind == 6:
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == 1:
                    needed.append(_name(data, strings, value))
    return tuple(sorted(exports)), tuple(sorted(needed))


def _cubins(data: bytes) -> tuple[str, ...]:
    """Compute capabilities of the CUDA ELF images inside: their flags carry the SM number."""
    found = set()
    at = data.find(b"\x7fELF", 4)
    while at >= 0:
        if len(data) >= at + 64 and struct.unpack_from("<H", data, at + 18)[0] == _CUDA_ELF:
            (flags,) = struct.unpack_from("<I", data, at + 48)
            # CUDA 13 has the SM number in bits 8-15, older compilers in bits 0-7
            number = (flags >> 8) & 0xFF if data[at + 8] >= 8 else flags & 0xFF
            found.add(number)
        at = data.find(b"\x7fELF", at + 4)
    return tuple(f"{number // 10}.{number % 10}" for number in sorted(found))
