"""Every TensorRT name that the package uses, read from its own source, and what a bindings library says of it.

TensorRT proper cannot be imported on a machine without its libraries. Its bindings wheels can be
downloaded, and the extension module inside holds every Python name as a string, beside its
docstring: what TensorRT-RTX (which can be imported) says of the same method is looked for there.
"""

from __future__ import annotations

import ast
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vtn_export.trt

PACKAGE = Path(vtn_export.trt.__file__).parent

# Variable names in the package → the class they hold. `trt` itself is the module.
COMMON = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "layer": "ILayer",
    "registry": "IPluginRegistry",
    "creator": "IPluginCreatorV3One",
    "context": "IExecutionContext",
    "_context": "IExecutionContext",
    "runtime": "Runtime",
    "_runtime": "Runtime",
    "inspector": "EngineInspector",
    "engine": "ICudaEngine",
    "_engine": "ICudaEngine",
}
FILES: dict[str, dict[str, str]] = {
    "api.py": {},
    "worker.py": {"cache": "ITimingCache", "error": "ParserError", "tensor": "ITensor", "engine": "IHostMemory"},
    "lane.py": {"tensor": "", "graph": ""},
    "session.py": {},
    "inspector.py": {},
    "plugin_form.py": {"field": "PluginField", "c": "IPluginCreatorV3One", "node": ""},
}
# Asked for by feature (hasattr, getattr with a default): may be missing in some versions.
BY_FEATURE = {
    ("INetworkDefinition", "add_plugin_v3"),
    ("IBuilderConfig", "set_compute_capability"),
    ("IBuilderConfig", "num_compute_capabilities"),
    ("trt", "ComputeCapability"),
    ("IExecutionContext", "is_stream_capturable"),
    ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
}


@dataclass(frozen=True, order=True)
class Use:
    """One attribute of a TensorRT class (or of the module: owner "trt"), with the arguments of a call or None."""

    owner: str
    name: str
    arguments: int | None


def uses() -> set[Use]:
    """What the package's sources use of TensorRT."""
    found: set[Use] = set()
    for name, own in FILES.items():
        owners = {**COMMON, **own}
        tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
        found_calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        calls = {id(call.func): len(call.args) + len(call.keywords) for call in found_calls}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute):
                owner = _owner(node.value, owners)
                if owner:
                    found.add(Use(owner, node.attr, calls.get(id(node))))
    return found


def _owner(node: ast.expr, owners: dict[str, str]) -> str:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    if name == "trt":
        return "trt"
    if isinstance(node, ast.Attribute) and _owner(node.value, {}) == "trt":
        return node.attr  # trt.BuilderFlag.TF32: the enum is the owner
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
        inner = node.value
        if isinstance(inner.value, ast.Name) and inner.value.id == "trt":
            return node.attr  # trt.ILogger.Severity.ERROR
    return owners.get(name, "")


def argument_counts(function: Any) -> list[tuple[int, int]]:
    """(required, all) arguments of every overload in a pybind docstring, self left out."""
    counts = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(r"(?:\d+\. )?\w+\((.*)\) -> ", line.strip())
        if match and "*args" not in match.group(1):
            arguments = _split(match.group(1))
            arguments = [a for a in arguments if not a.startswith("self:")]
            counts.append((sum("=" not in a for a in arguments), len(arguments)))
    return counts


def _split(text: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [part for part in [*parts, current.strip()] if part]


class Bindings:
    """The strings of a wheel's extension module."""

    def __init__(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("/tensorrt.so")]
            self.data = archive.read(name)
        self.version = wheel.name.split("-")[1]
        self.text = re.sub(rb"\s+", b" ", self.data)

    def has_name(self, name: str) -> bool:
        """Whether the string is there: how pybind registers a name. Linkers store a word inside one it ends."""
        return name.encode() + b"\x00" in self.data

    def has_text(self, text: str) -> bool:
        return re.sub(r"\s+", " ", text).strip().encode() in self.text


def description(owner: Any, name: str) -> str:
    """The first sentence of what a method's or property's documentation says; "" where it says nothing."""
    attribute = getattr(owner, name)
    ivar = re.search(rf":ivar {name}: *(.*)", owner.__doc__ or "")
    if ivar:
        return f":ivar {name}:"
    lines = [line.strip() for line in (attribute.__doc__ or "").splitlines()[1:] if line.strip()]
    lines = [line for line in lines if not re.match(r"(\d+\. )?\w+\(.*\) ->|Overloaded function", line)]
    return re.split(r"(?<=[.])\s", lines[0])[0] if lines else ""
