"""engines/NAME.json: what an engine is, and whether it may be loaded here.

An engine is code: it is deserialised only after its hash was compared with the sidecar's, and the
sidecar with the bundle, the library and the GPU. Every mismatch names what was got, what was
expected and the command that rebuilds.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vtn_export.bundle import Bundle
from vtn_export.errors import BundleError, EngineError, UsageError, VtnError
from vtn_export.spec import PARTS, PRECISIONS, GraphSpec, Part, Precision
from vtn_export.trt import profile as profiles_module
from vtn_export.trt.gpu import Gpu
from vtn_export.trt.plugin_form import PluginRecord
from vtn_export.trt.profile import Profile
from vtn_export.untrusted import read_json, reason_of, sha256

SCHEMA_VERSION = 1
FOLDER = "engines"


@dataclass(frozen=True)
class Sidecar:
    """The record beside one engine. Sizes in bytes, times in seconds."""

    name: str
    part: Part
    key: str  # of all that determines the engine
    engine_sha256: str
    engine_bytes: int
    flavor: str
    version: str
    compute_capabilities: tuple[str, ...]  # empty: the GPU below alone, or (RTX) any from Ampere on
    gpu: Mapping[str, Any] | None
    platform: str
    precision: Precision
    tf32: bool
    attention: str
    kept_fp32: Sequence[Mapping[str, str]]
    accuracy: Mapping[str, float] | None  # of the typing, against PyTorch; None: checked at export
    profiles: Sequence[Profile]
    spec: GraphSpec
    plugin: PluginRecord | None
    source_file: str
    source_sha256: str
    forecast: Mapping[str, Any]
    options: Mapping[str, Any]
    command: str  # rebuilds it
    build: Mapping[str, Any]  # seconds, layers, peak memory of the worker
    tools: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data["compute_capabilities"] = list(self.compute_capabilities)
        data["profiles"] = [{axis: r.to_json() for axis, r in p.items()} for p in self.profiles]
        data["io"] = self.spec.to_json()
        del data["spec"]
        data["plugin"] = None if self.plugin is None else asdict(self.plugin)
        return {"schema_version": SCHEMA_VERSION, **data}

    @classmethod
    def from_json(cls, data: Any, where: Path) -> Sidecar:
        """Raises EngineError for another schema or a malformed field."""
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION:
            remedy = "update vtn-export" if isinstance(version, int) and version > SCHEMA_VERSION else "build it again"
            raise EngineError(f"{where}: got schema version {version}, expected {SCHEMA_VERSION}; {remedy}")
        try:
            values = {f.name: data[f.name] for f in fields(cls) if f.name != "spec"}
            if values["part"] not in PARTS or values["precision"] not in PRECISIONS:
                raise ValueError(f"part {values['part']!r}, precision {values['precision']!r}")
            if values["name"] != where.stem:
                raise ValueError(f"name {values['name']!r}")
            for key, kind in _TYPES.items():
                if not isinstance(values[key], kind):
                    raise ValueError(f"{key} {values[key]!r}")
            values["compute_capabilities"] = tuple(map(str, values["compute_capabilities"]))
            values["profiles"] = [profiles_module.from_json(p) for p in values["profiles"]]
            plugin = values["plugin"]
            values["plugin"] = None if plugin is None else PluginRecord(**plugin)
            return cls(**values, spec=GraphSpec.from_json(data["io"]))
        except (KeyError, TypeError, ValueError, AttributeError, BundleError) as error:
            raise EngineError(f"{where}: malformed engine record ({error!r}); build it again") from None

    def describe_target(self) -> str:
        """Which GPUs run it."""
        if self.flavor == "tensorrt" and self.gpu is not None:
            return f"{self.gpu['name']} (SM {self.gpu['compute_capability']})"
        if self.compute_capabilities:
            return "GPUs of SM " + ", ".join(self.compute_capabilities)
        return "RTX GPUs of SM 8.0 and newer"


_TYPES: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "engine_sha256": str,
    "engine_bytes": int,
    "flavor": str,
    "version": str,
    "compute_capabilities": list,
    "profiles": list,
    "source_file": str,
    "source_sha256": str,
    "command": str,
    "tf32": bool,
    "build": dict,
}


def engine_path(bundle: Bundle, name: str) -> Path:
    return bundle.path / FOLDER / f"{name}.engine"


def record_path(bundle: Bundle, name: str) -> Path:
    return bundle.path / FOLDER / f"{name}.json"


def read(path: Path) -> Sidecar:
    """Raises EngineError."""
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise EngineError(f"{path}: cannot be read ({reason_of(error)}); build the engine again") from None
    return Sidecar.from_json(data, path)


def sidecars(bundle: Bundle) -> list[Path]:
    """The records beside a bundle, newest first."""
    found = (bundle.path / FOLDER).glob("*.json")
    # of a dangling link its own time: reading it says what is wrong
    return sorted((p for p in found if not p.name.startswith(".")), key=lambda p: -p.lstat().st_mtime_ns)


def problems(record: Sidecar, bundle: Bundle) -> list[str]:
    """Why the engine is not this bundle's, or its file not the recorded one. Hashes the engine."""
    found = []
    have = bundle.manifest.files.get(record.source_file)
    if have != record.source_sha256:
        got = "no such graph" if have is None else f"{have[:12]}…"
        found.append(f"the bundle's {record.source_file}: got {got}, expected {record.source_sha256[:12]}…")
    path = engine_path(bundle, record.name)
    try:
        got = sha256(path)
    except OSError as error:
        return [*found, f"{path}: {error.strerror}"]
    if got != record.engine_sha256:
        found.append(
            f"{path.name}: got SHA-256 {got[:12]}…, expected {record.engine_sha256[:12]}… (changed or damaged)"
        )
    return found


def machine_problems(
    record: Sidecar, gpu: Gpu, flavor_version: Callable[[str], str | None], plugin: Path | None
) -> list[str]:
    """Why the engine does not run on this machine: another GPU, another library version, a missing plugin."""
    found = []
    version = flavor_version(record.flavor)
    if version != record.version:
        found.append(f"{record.flavor} version: got {version or 'not installed'}, expected {record.version}")
    capability = gpu.compute_capability
    if record.flavor == "tensorrt" and record.gpu is not None:
        if (gpu.name, capability) != (record.gpu["name"], record.gpu["compute_capability"]):
            expected = f"{record.gpu['name']} (SM {record.gpu['compute_capability']})"
            found.append(f"GPU: got {gpu.name} (SM {capability}), expected {expected}")
    elif record.compute_capabilities and capability not in record.compute_capabilities:
        found.append(f"GPU: got SM {capability} ({gpu.name}), expected one of {', '.join(record.compute_capabilities)}")
    if record.plugin is not None:
        if plugin is None:
            found.append(f"plugin: none found, expected {record.plugin.file} ({record.plugin.sha256[:12]}…)")
        elif (digest := sha256(plugin)) != record.plugin.sha256:
            found.append(f"plugin {plugin.name}: got {digest[:12]}…, expected {record.plugin.sha256[:12]}…")
    return found


def require_usable(record: Sidecar, found: Sequence[str]) -> None:
    """Raise EngineError with every mismatch and the command that rebuilds."""
    if found:
        raise EngineError(f"engine {record.name}: {'; '.join(found)}; rebuild it: {record.command}")


def find(bundle: Bundle, part: Part, check: Callable[[Sidecar], list[str]]) -> Sidecar:
    """The newest engine of a part without mismatch. Raises EngineError: none there, or why the newest is none."""
    rejected: list[tuple[Sidecar, list[str]]] = []
    broken: list[str] = []
    for path in sidecars(bundle):
        try:
            record = read(path)
        except EngineError as error:
            broken.append(str(error))
            continue
        if record.part == part:
            found = [*problems(record, bundle), *check(record)]
            if not found:
                return record
            rejected.append((record, found))
    if rejected:
        require_usable(*rejected[0])
    if broken:
        raise EngineError(broken[0])
    command = shlex.join(["vtn-export", "trt", str(bundle.path), "--part", part])
    raise EngineError(f"bundle {bundle.path}: no engine of the {part} part; build one: {command}")


def describe_engines(bundle: Bundle) -> list[dict[str, Any]]:
    """Every engine beside a bundle for `inspect`: its record, what is wrong with it, layers where a GPU is there."""
    described: list[dict[str, Any]] = []
    for path in sidecars(bundle):
        try:
            record = read(path)
        except VtnError as error:
            described.append({"name": path.stem, "problems": [str(error)]})
            continue
        found = problems(record, bundle)
        entry = {**record.to_json(), "runs_on": record.describe_target(), "problems": found, "layers": None}
        if not found:
            from vtn_export.trt.inspector import layers_if_possible

            entry["layers"] = layers_if_possible(record, bundle)
        described.append(entry)
    return described


def checked_part(text: str) -> tuple[Part, ...]:
    """`--part` as parts: `all` or one of them. Raises UsageError."""
    if text == "all":
        return PARTS
    if text not in PARTS:
        raise UsageError(f"--part: got {text!r}, expected one of all, {', '.join(PARTS)}")
    return (text,)
