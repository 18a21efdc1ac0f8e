"""What a library file is: its symbols, machine and kernels, read from its bytes; nothing is run."""

from __future__ import annotations

import os
import platform
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vtn_export.errors import PluginError
from vtn_export.trt.plugins.sidecar import CONTRACT_VERSION, Sidecar, read_sidecar, sidecar_path

REQUIRED_SYMBOLS = ("getCreators", "setLoggerFinder")
_MACHINES = {62: "x86_64", 183: "aarch64"}
_CUDA_ELF = 190
_DYNAMIC, _SYMBOLS = 6, 11  # types of ELF sections


@dataclass(frozen=True)
class LibraryInfo:
    """One library: version and contract by its own word, ELF machine, exported and needed names, the C library it
    needs at least, architectures of its cubins, and its sidecar."""

    path: Path
    version: str | None
    contract_version: int | None
    machine: str
    exports: tuple[str, ...]
    needed: tuple[str, ...]
    glibc: str | None
    compute_capabilities: tuple[str, ...]
    sidecar: Sidecar | None

    @property
    def problems(self) -> tuple[str, ...]:
        """Why this machine could not load it, one sentence each; empty if it could."""
        found = []
        if self.machine != this_machine():
            found.append(f"built for {self.machine}, this machine is {this_machine()}")
        missing = [name for name in REQUIRED_SYMBOLS if name not in self.exports]
        if missing:
            found.append(f"exports no {' and no '.join(missing)}: not a TensorRT plugin library")
        foreign = [name for name in self.needed if re.match(r"lib(nvinfer|cudart)", name)]
        if foreign:
            found.append(f"needs {', '.join(foreign)} at load time; expected the C library alone")
        here = _glibc_here()
        if self.machine == this_machine() and self.glibc and here and _numbers(here) < _numbers(self.glibc):
            found.append(f"needs glibc {self.glibc}, this machine has {here}")
        if self.contract_version not in {None, CONTRACT_VERSION}:
            found.append(
                f"implements version {self.contract_version} of the op's contract, expected {CONTRACT_VERSION}"
            )
        if self.sidecar is not None:
            found.extend(self._contradictions(self.sidecar))
        return tuple(found)

    def _contradictions(self, sidecar: Sidecar) -> Iterator[str]:
        if set(sidecar.compute_capabilities) - set(self.compute_capabilities):
            expected = ", ".join(sidecar.compute_capabilities)
            yield f"has kernels for {', '.join(self.compute_capabilities)}, its sidecar says {expected}"
        for what, mine, theirs in (
            ("version", self.version, sidecar.version),
            ("contract", self.contract_version, sidecar.contract_version),
            ("machine", self.machine, sidecar.machine),
        ):
            if mine is not None and mine != theirs:
                yield f"its {what} is {mine}, its sidecar says {theirs}"


def inspect_library(path: Path) -> LibraryInfo:
    """Reads a library. Raises PluginError for no ELF library, and for a sidecar with another hash."""
    try:
        if path.exists() and not path.is_file():  # a device or a pipe may have no end
            raise PluginError(f"{path}: not a file; expected a plugin library")
        data = path.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: cannot be read ({error.strerror}); expected a plugin library") from None
    if data[:4] != b"\x7fELF" or len(data) < 64 or data[4] != 2:
        raise PluginError(f"{path}: not a 64-bit ELF library; expected one of `vtn-export plugins build`")
    try:
        (machine,) = struct.unpack_from("<H", data, 18)
        exports, needed, glibc = _dynamic(data)
        cubins = _cubins(data)
    except (struct.error, IndexError, ValueError):
        raise PluginError(f"{path}: truncated ELF file; build the library again") from None
    sidecar = read_sidecar(path) if sidecar_path(path).is_file() else None
    said = re.search(rb"\0(\d+\.\d+\.\d+) op=(\d{1,9})\0", data)  # what vtn_plugins_version returns
    return LibraryInfo(
        path=path,
        version=said[1].decode() if said else None,
        contract_version=int(said[2]) if said else None,
        machine=_MACHINES.get(machine, f"ELF machine {machine}"),
        exports=exports,
        needed=needed,
        glibc=glibc,
        compute_capabilities=cubins,
        sidecar=sidecar,
    )


def this_machine() -> str:
    return platform.machine().replace("arm64", "aarch64").replace("AMD64", "x86_64")


def _glibc_here() -> str | None:
    try:
        found = os.confstr("CS_GNU_LIBC_VERSION")
    except (ValueError, OSError, AttributeError):  # another C library, another system
        return None
    return found.split()[-1] if found else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)


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


def _dynamic(data: bytes) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    """Defined dynamic symbols, needed libraries, and the newest version of glibc asked for."""
    sections = _sections(data)
    exports: list[str] = []
    needed: list[str] = []
    glibc: str | None = None
    for wanted in (_SYMBOLS, _DYNAMIC):  # a library has one of each; a crafted file with thousands would take hours
        kind, offset, length, link = next((section for section in sections if section[0] == wanted), (0, 0, 0, 0))
        strings, size = sections[link][1:3] if link < len(sections) else (0, 0)
        if kind == _SYMBOLS:
            for at in range(offset, offset + length, 24):
                name, info, _, section = struct.unpack_from("<IBBH", data, at)
                if section != 0 and name != 0 and info >> 4 in {1, 2}:
                    exports.append(_name(data, strings, name))
            versions = {
                found[1].decode() for found in re.finditer(rb"\0GLIBC_([\d.]+)", data[strings : strings + size])
            }
            glibc = max(versions, key=_numbers, default=None)
        elif kind == _DYNAMIC:
            for at in range(offset, offset + length, 16):
                tag, value = struct.unpack_from("<qQ", data, at)
                if tag == 1:
                    needed.append(_name(data, strings, value))
    return tuple(sorted(exports)), tuple(sorted(needed)), glibc


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
