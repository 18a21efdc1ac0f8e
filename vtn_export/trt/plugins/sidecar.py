"""`libvtn_plugins.so.json`: what a library is, so that it can be checked without being loaded."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vtn_export.bundle import writing_file
from vtn_export.errors import PluginError
from vtn_export.untrusted import read_json, reason_of, sha256

SCHEMA = 1
CONTRACT_VERSION = 1  # of docs/op.md, as the library implements it; onnx/op.py has the graphs'
LIBRARY = "libvtn_plugins.so"


@dataclass(frozen=True)
class Sidecar:
    """Version of the library and of the op's contract, its GPUs and machine, what built it, and its SHA-256."""

    version: str
    contract_version: int
    creators: tuple[str, ...]
    compute_capabilities: tuple[str, ...]
    machine: str
    cuda: str
    tensorrt_headers: str
    sha256: str
    schema: int = SCHEMA


def sidecar_path(library: Path) -> Path:
    return library.with_name(library.name + ".json")


def sidecar_text(sidecar: Sidecar) -> str:
    return json.dumps(asdict(sidecar), indent=2) + "\n"


def write_sidecar(library: Path, sidecar: Sidecar) -> Path:
    """Written whole or not at all."""
    path = sidecar_path(library)
    with writing_file(path) as temporary:
        temporary.write_text(sidecar_text(sidecar), encoding="utf-8")
    return path


def read_sidecar(library: Path) -> Sidecar:
    """The sidecar, its hash checked against the library. Raises PluginError for none, another schema or hash."""
    path = sidecar_path(library)
    try:
        data: Any = read_json(path)
    except FileNotFoundError:
        raise PluginError(f"{library}: no {path.name} beside it; build it with `vtn-export plugins build`") from None
    except (OSError, ValueError) as error:
        raise PluginError(f"{path}: not readable ({reason_of(error)}); build the library again") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        got = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise PluginError(f"{path}: got schema {got}, expected {SCHEMA}; build the library again")
    try:
        sidecar = Sidecar(
            version=str(data["version"]),
            contract_version=int(data["contract_version"]),
            creators=tuple(map(str, data["creators"])),
            compute_capabilities=tuple(map(str, data["compute_capabilities"])),
            machine=str(data["machine"]),
            cuda=str(data["cuda"]),
            tensorrt_headers=str(data["tensorrt_headers"]),
            sha256=str(data["sha256"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PluginError(f"{path}: {error} is missing or malformed; build the library again") from None
    try:
        actual = sha256(library)
    except OSError as error:
        raise PluginError(f"{library}: cannot be read ({error.strerror}); build it again") from None
    if actual != sidecar.sha256:
        raise PluginError(
            f"{library}: got SHA-256 {actual[:12]}…, expected {sidecar.sha256[:12]}… of {path.name}; "
            "the file was changed, build it again"
        )
    return sidecar
