"""What an engine build is asked for, and what one request is once everything is resolved."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from vtn_export.errors import UsageError
from vtn_export.spec import Precision

Attention = Literal["auto", "plugin", "portable"]
ATTENTIONS: tuple[Attention, ...] = get_args(Attention)
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True)
class BuildOptions:
    """The options of `vtn-export trt`, checked one by one; what is None follows the target or the bundle."""

    precision: Precision | None = None
    profiles: Mapping[str, Sequence[str]] = field(default_factory=dict)  # axis -> MIN:OPT:MAX, once or several times
    flavor: str = "auto"
    attention: Attention = "auto"
    target: str | None = None
    compute_capabilities: Sequence[str] = ()
    workspace: int | None = None  # bytes
    opt_level: int | None = None
    timing_cache: Path | None = None
    calibrate: Path | None = None
    keep_fp32: Sequence[str] = ()
    tf32: bool = False
    force: bool = False
    dry_run: bool = False
    plugin: Path | None = None

    def __post_init__(self) -> None:
        if self.attention not in ATTENTIONS:
            raise UsageError(f"--attention: got {self.attention!r}, expected one of {', '.join(ATTENTIONS)}")
        if self.opt_level is not None and not 0 <= self.opt_level <= 5:
            raise UsageError(f"--opt-level: got {self.opt_level}, expected 0..5")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise UsageError(f"--compute-capability: got {capability!r}, expected such as 8.9")


def parse_bytes(text: str, option: str) -> int:
    """`2GiB`, `512M`, `1.5G` or plain bytes; binary units. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not match or float(match.group(1)) <= 0:
        raise UsageError(f"{option}: got {text!r}, expected a size such as 2GiB or 512MiB")
    return int(float(match.group(1)) * _UNITS[match.group(2)])
