"""PTX types as numpy types, and the closures an instruction becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .group import Group

Array = npt.NDArray[Any]
Registers = list[Array]
"""One (warps, 32) array of raw bits a register: bool, uint8, uint16, uint32 or uint64. Never written in place."""

Step = Callable[[Registers, "Group"], None]
Read = Callable[[Registers], Array]
Write = Callable[[Registers, Array], None]

LANES = 32

DTYPES: dict[str, np.dtype[Any]] = {
    "pred": np.dtype(np.bool_),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "bf16": np.dtype(np.uint16),  # numpy has no bfloat16: bits
    "f16x2": np.dtype(np.uint32),  # packed: bits
    "bf16x2": np.dtype(np.uint32),
    "tf32": np.dtype(np.uint32),
}
for _bits in (8, 16, 32, 64):
    DTYPES[f"u{_bits}"] = DTYPES[f"b{_bits}"] = np.dtype(f"uint{_bits}")
    DTYPES[f"s{_bits}"] = np.dtype(f"int{_bits}")

RAW: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.bool_),
    1: np.dtype(np.uint8),
    2: np.dtype(np.uint16),
    4: np.dtype(np.uint32),
    8: np.dtype(np.uint64),
}
"""The raw dtype of a register or memory element of so many bytes; 0 is a predicate."""
