"""Recipes of the devices that engines are built for: engines/targets/*.toml.

`vtn_export/trt/recipes` is a link to that folder, so that an installed package carries the files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from vtn_export.errors import ConfigError, MemoryForecastError, UsageError
from vtn_export.spec import PARTS, PRECISIONS, Part
from vtn_export.trt import api, profile
from vtn_export.trt.profile import AXES, Range

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Defect:
    """A known fault of a range of TensorRT versions, at one precision."""

    tensorrt: tuple[str, str]
    precision: str
    text: str


@dataclass(frozen=True)
class Target:
    """One device: what its engines may be, and what it holds. Memory in bytes."""

    name: str
    title: str
    flavor: api.Flavor
    compute_capabilities: tuple[str, ...]
    cuda: tuple[str, str] | None
    tensorrt: tuple[str, str]
    precisions: tuple[str, ...]
    memory_budget: int
    chunk: int
    profiles: Mapping[Part, Mapping[str, Range]]
    defects: tuple[Defect, ...]

    def check_precision(self, precision: str) -> None:
        """Raises UsageError for a type that the device has no arithmetic for."""
        if precision not in self.precisions:
            raise UsageError(f"--{precision}: {self.title} has no {precision}; it has {', '.join(self.precisions)}")

    def check_version(self, title: str, version: str) -> None:
        """Raises UsageError for a library version outside the recipe's range."""
        if not api.in_range(version, *self.tensorrt):
            low, high = self.tensorrt
            raise UsageError(f"--target {self.name}: got {title} {version}, expected {low} to {high}")

    def check_memory(self, needed: int, what: str, remedy: str) -> None:
        """Raises MemoryForecastError when the forecast is over the device's budget."""
        if needed > self.memory_budget:
            raise MemoryForecastError(
                f"{what}: forecast {needed / 2**30:.1f} GiB, {self.title} has "
                f"{self.memory_budget / 2**30:.1f} GiB for an engine; {remedy}"
            )

    def warnings(self, version: str | None, precision: str) -> list[str]:
        """Known defects of this version (or, where none is known yet, of any that the recipe allows)."""
        return [
            defect.text
            for defect in self.defects
            if defect.precision == precision and (version is None or api.in_range(version, *defect.tensorrt))
        ]


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Target:
    """Raises UsageError for an unknown name (listing those there are), ConfigError for a malformed recipe."""
    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UsageError(f"--target: got {name!r}, expected one of {', '.join(names())}{hint}")
    path = FOLDER / f"{name}.toml"
    try:
        return _read(name, tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: malformed target ({error!r})") from None


def _read(name: str, data: Mapping[str, Any]) -> Target:
    flavor = data["flavor"]
    if flavor not in api.FLAVORS:
        raise ValueError(f"flavor {flavor!r}")
    precisions = tuple(data["precisions"])
    if not set(precisions) <= set(PRECISIONS):
        raise ValueError(f"precisions {precisions}")
    profiles: dict[Part, dict[str, Range]] = {}
    for part, ranges in data["profiles"].items():
        if part not in PARTS or not set(ranges) <= set(AXES):
            raise ValueError(f"profiles.{part}")
        profiles[part] = {axis: profile.parse(text, axis) for axis, text in ranges.items()}
    return Target(
        name=name,
        title=str(data["title"]),
        flavor=cast(api.Flavor, flavor),
        compute_capabilities=tuple(str(capability) for capability in data["compute_capabilities"]),
        cuda=_pair(data["cuda"]) if "cuda" in data else None,
        tensorrt=_pair(data["tensorrt"]),
        precisions=precisions,
        memory_budget=int(float(data["memory_budget_gib"]) * 2**30),
        chunk=int(data["chunk"]),
        profiles=profiles,
        defects=tuple(
            Defect(_pair(item["tensorrt"]), str(item["precision"]), str(item["text"]))
            for item in data.get("defects", ())
        ),
    )


def _pair(values: Any) -> tuple[str, str]:
    low, high = values
    return str(low), str(high)
