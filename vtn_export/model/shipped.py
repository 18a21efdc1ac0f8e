"""Trained weights that come with the package: which preset has some, their labels, and that they are whole. Torch-free.

Beside `data/NAME.safetensors` lies `data/NAME.json`: the weights' SHA-256, the labels, how they were trained and what
they reach on held-out clips.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from vtn_export.errors import CheckpointError
from vtn_export.model.config import presets
from vtn_export.untrusted import sha256

DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Shipped:
    """Weights of the preset `name`; `labels` has one name a class."""

    name: str
    weights: Path
    sha256: str
    labels: tuple[str, ...]

    def check(self) -> Shipped:
        """Itself, if the file is the one that was shipped. Raises CheckpointError."""
        got = sha256(self.weights) if self.weights.is_file() else "no file"
        if got != self.sha256:
            raise CheckpointError(
                f"{self.weights}: got {got[:12]}, expected SHA-256 {self.sha256[:12]}; reinstall vtn-export"
            )
        return self


def shipped(preset: str) -> Shipped | None:
    """The weights that come with a preset, None if it has none. Raises CheckpointError if the file was changed."""
    found = _recorded(preset)
    return found.check() if found is not None else None


def shipped_with_hash(checkpoint_sha256: str | None) -> Shipped | None:
    """The shipped weights with this SHA-256, as a bundle's manifest has it; None if there are none.

    Raises CheckpointError if there are and the file was changed.
    """
    for found in map(_recorded, presets()):
        if found is not None and found.sha256 == checkpoint_sha256:
            return found.check()
    return None


def _recorded(preset: str) -> Shipped | None:
    record = DATA / f"{preset}.json"
    if preset not in presets() or not record.is_file():
        return None
    data = json.loads(record.read_text(encoding="utf-8"))
    return Shipped(preset, record.with_suffix(".safetensors"), str(data["sha256"]), tuple(map(str, data["labels"])))
