"""For the tests: a few lines of PTX run once for every element of some arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .memory import Memory
from .module import Module, Report

_NAMES = "abcdefghijkl"
_RESULTS = ("x", "y", "z", "w")
HEADER = ".version 9.0\n.target sm_90\n.address_size 64\n"

_DECLARATIONS = """
    .reg .pred p, q, s;
    .reg .b16 h<8>;
    .reg .b32 r<16>;
    .reg .b64 rd<16>;
    .reg .b64 at, offset, base<16>;
    .reg .b32 tid;
    mov.u32 tid, %tid.x;
    mad.lo.u32 tid, %ctaid.x, %ntid.x, tid;
    cvt.u64.u32 at, tid;
"""


def kernel_text(
    code: str, inputs: Sequence[np.dtype[Any]], outputs: Sequence[np.dtype[Any]], declarations: str = ""
) -> str:
    """A kernel `run` that loads a, b, c, … of each thread, runs the code, and stores x, y, …"""
    lines = [_DECLARATIONS]
    count = len(inputs) + len(outputs)
    params = ", ".join(f".param .u64 param{i}" for i in range(count))
    for position, (name, dtype) in enumerate(zip(_NAMES, inputs, strict=False)):
        lines.append(_address(position, dtype) + f".reg .b{_bits(dtype)} {name};\n")
        lines.append(f"ld.global.b{8 * dtype.itemsize} {name}, [base{position}];\n")
    for name, dtype in zip(_RESULTS, outputs, strict=False):
        lines.append(f".reg .b{_bits(dtype)} {name};\n")
    lines.append(code)
    for position, (name, dtype) in enumerate(zip(_RESULTS, outputs, strict=False), len(inputs)):
        lines.append(_address(position, dtype) + f"st.global.b{8 * dtype.itemsize} [base{position}], {name};\n")
    return f"{HEADER}{declarations}\n.visible .entry run({params})\n{{\n{''.join(lines)}ret;\n}}\n"


def _bits(dtype: np.dtype[Any]) -> int:
    return max(16, 8 * dtype.itemsize)


def _address(position: int, dtype: np.dtype[Any]) -> str:
    return (
        f"ld.param.u64 base{position}, [param{position}];\n"
        f"mul.lo.u64 offset, at, {dtype.itemsize};\n"
        f"add.u64 base{position}, base{position}, offset;\n"
    )


def run_lanes(
    code: str,
    *inputs: npt.ArrayLike,
    out: Any = np.uint32,
    threads: int = 0,
    shared_bytes: int = 0,
    declarations: str = "",
) -> tuple[list[npt.NDArray[Any]], Report]:
    """Results x, y, … of the code for every element, and the launch's report. One block up to 1024 threads. `out`: the
    dtype of x, or a list of dtypes."""
    arrays = [np.asarray(value) for value in inputs]
    count = threads or max((len(a) for a in arrays), default=32)
    kinds = [np.dtype(out)] if not isinstance(out, list | tuple) else [np.dtype(kind) for kind in out]
    padded = count if count <= 1024 else -(-count // 256) * 256
    arrays = [np.resize(a, padded) for a in arrays]
    text = kernel_text(code, [a.dtype for a in arrays], kinds, declarations)
    memory = Memory()
    sources = [memory.alloc(a, read_only=True) for a in arrays]
    targets = [memory.empty(padded, kind) for kind in kinds]
    block = padded if padded <= 1024 else 256
    report = Module(text).launch("run", padded // block, block, [*sources, *targets], memory, shared_bytes)
    return [memory.get(target)[:count] for target in targets], report


def evaluate(code: str, *inputs: npt.ArrayLike, out: Any = np.uint32) -> npt.NDArray[Any]:
    """The result x of the code for every element; nothing may have gone wrong."""
    results, report = run_lanes(code, *inputs, out=out)
    assert not report.findings, report
    return results[0]
