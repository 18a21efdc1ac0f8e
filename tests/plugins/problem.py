"""One problem for a kernel: drawn, run in the interpreter, and judged against float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tests import oracle
from tests.plugins.library import DTYPES, Params, module, plan
from tests.ptx import Memory, Module

Array = np.ndarray[Any, np.dtype[Any]]
STORAGE: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}
POISON = 0x7E


@dataclass(frozen=True)
class Problem:
    dtype: str = "fp16"
    head_dim: int = 64
    heads: int = 2
    sequence: int = 252
    window: int = 9
    dilation: int = 1
    causal: bool = False
    globals: int = 1
    lengths: tuple[int, ...] = (252,)
    scale: float | None = None  # None: 1 / sqrt(head_dim)
    capability: int = 80
    seed: int = 0

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def factor(self) -> float:
        return 1 / math.sqrt(self.head_dim) if self.scale is None else self.scale

    def params(self, qkv: int = 0, lengths: int = 0, output: int = 0) -> Params:
        return Params(
            struct_size=ctypes.sizeof(Params), qkv=qkv, lengths=lengths, output=output,
            data_type=DTYPES.index(self.dtype), num_heads=self.heads, head_dim=self.head_dim,
            one_sided_window=self.window, dilation=self.dilation, num_global_tokens=self.globals,
            causal=int(self.causal), scale=self.factor, batch=self.batch, sequence=self.sequence,
        )  # fmt: skip

    def inputs(self) -> Array:
        """qkv `[B, S, 3·H·D]` of the type, normal."""
        shape = (self.batch, self.sequence, 3 * self.heads * self.head_dim)
        return np.random.default_rng(self.seed).standard_normal(shape).astype(STORAGE[self.dtype])


@dataclass(frozen=True)
class Outcome:
    output: Array  # [B, S, H·D] of the type
    report: Any
    kernel: str


def run(problem: Problem, qkv: Array | None = None, change: Callable[[Module], Module] | None = None) -> Outcome:
    """Runs the launch that the library plans, on its own PTX. `change` may break the module first."""
    values = problem.inputs() if qkv is None else qkv
    memory = Memory()
    storage = np.uint16 if problem.dtype == "bf16" else STORAGE[problem.dtype]
    poisoned = np.full((problem.batch, problem.sequence, problem.heads * problem.head_dim), POISON, np.uint8)
    output = memory.alloc(np.broadcast_to(poisoned[..., None], (*poisoned.shape, np.dtype(storage).itemsize))
                          .copy().view(storage)[..., 0])  # fmt: skip
    status, launch = plan(
        problem.params(
            memory.alloc(values.view(storage), read_only=True),
            memory.alloc(np.array(problem.lengths, np.int32), read_only=True),
            output,
        ),
        problem.capability,
    )
    assert status == 0, f"plan: cudaError_t {status} for {problem}"
    kernel = launch.kernel.decode()
    loaded = module(problem.dtype, problem.capability, kernel)
    report = (change(loaded) if change else loaded).launch(
        kernel,
        grid=tuple(launch.grid),
        block=launch.threads,
        args=[bytes(launch.params[: launch.params_bytes])],
        memory=memory,
        shared_bytes=launch.shared_bytes,
    )
    return Outcome(memory.get(output).view(STORAGE[problem.dtype]), report, kernel)


def reference(problem: Problem, qkv: Array) -> Array:
    return oracle.op(
        qkv.astype(np.float64), problem.lengths, num_heads=problem.heads, one_sided_window=problem.window,
        dilation=problem.dilation, num_global_tokens=problem.globals, causal=problem.causal, scale=problem.factor,
    )  # fmt: skip


def rounded_pytorch(problem: Problem, qkv: Array) -> Array:
    """What PyTorch gives in float32 from inputs of the type, its output rounded to the type."""
    import torch

    batch, tokens, heads, dim = problem.batch, problem.sequence, problem.heads, problem.head_dim
    x = torch.from_numpy(qkv.astype(np.float32)).reshape(batch, tokens, 3, heads, dim).permute(2, 0, 3, 1, 4)
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    step = j - i
    band = (step.abs() <= problem.window * problem.dilation) & (step % problem.dilation == 0) & (j >= problem.globals)
    if problem.causal:
        band &= step <= 0
    out = torch.zeros(batch, heads, tokens, dim)
    for b, length in enumerate(min(max(length, 0), tokens) for length in problem.lengths):
        if length:
            seen = (band | (j < problem.globals))[:length, :length]
            q, k, v = (part[b, :, :length] for part in x)
            scores = (q @ k.transpose(-1, -2) * problem.factor).masked_fill(~seen, -math.inf)
            out[b, :, :length] = torch.softmax(scores, -1) @ v
    return out.transpose(1, 2).reshape(batch, tokens, heads * dim).numpy().astype(STORAGE[problem.dtype])


def check(problem: Problem) -> Outcome:
    """No finding of any detector, every element written, error within the contract's bound."""
    qkv = problem.inputs()
    outcome = run(problem, qkv)
    assert not outcome.report.findings, f"{problem}: {outcome.report}"
    expected = reference(problem, qkv)
    got = outcome.output.astype(np.float64)
    assert np.isfinite(got).all(), f"{problem}: not finite at {np.argwhere(~np.isfinite(got))[:3]}"
    error = np.abs(got - expected).max(initial=0.0)
    pytorch = np.abs(rounded_pytorch(problem, qkv).astype(np.float64) - expected).max(initial=0.0)
    ulp = float(np.spacing(np.abs(expected).max(initial=0.0).astype(STORAGE[problem.dtype])))
    assert error <= 2 * pytorch + 2 * ulp, (
        f"{problem} ({outcome.kernel}): {error:.3g} > 2 * {pytorch:.3g} + 2 * {ulp:.3g}"
    )
    for b, length in enumerate(problem.lengths):
        assert not got[b, max(length, 0) :].any(), f"{problem}: rows beyond the length are not zero"
    return outcome
