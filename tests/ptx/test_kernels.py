"""Small known kernels as nvcc compiles them, against numpy; and what removing any of their barriers does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from . import Memory, Module, Report
from .toolchain import compile_ptx

KERNELS = Path(__file__).parent / "kernels"
RNG = np.random.default_rng(9)


@pytest.fixture(scope="module")
def basics() -> Module:
    return Module(compile_ptx(KERNELS / "basics.cu", flags=("-O3", "-std=c++17", "-lineinfo")))


@pytest.fixture(scope="module")
def matmul() -> Module:
    return Module(compile_ptx(KERNELS / "matmul.cu"))


def test_saxpy(basics: Module) -> None:
    """Exact: the kernel's fused multiply-add is the rounding of the exact value."""
    memory = Memory()
    x, y = RNG.standard_normal((2, 1000)).astype(np.float32)
    px, py = memory.alloc(x, read_only=True), memory.alloc(y)
    report = basics.launch("saxpy", 8, 128, [struct.pack("<QQif", px, py, 1000, 2.5)], memory)
    assert not report.findings, report
    exact = (2.5 * x.astype(np.float64) + y).astype(np.float32)  # 2.5·x is exact in float64
    assert np.array_equal(memory.get(py), exact)
    assert report.counts.global_load_traffic == 2 * 4000
    assert report.counts.global_store_traffic == 4000


def test_findings_name_the_cuda_line(basics: Module) -> None:
    memory = Memory()
    x = memory.alloc(np.zeros(10, np.float32))
    report = basics.launch("saxpy", 1, 32, [struct.pack("<QQif", x, x, 11, 1)], memory)
    lines = (KERNELS / "basics.cu").read_text().splitlines()
    assert {finding.kind for finding in report.findings} == {"out-of-bounds"}
    for finding in report.findings:
        name, number = finding.source.rsplit(":", 1)
        assert name.endswith("basics.cu")
        assert "p.y[i] = p.a * p.x[i] + p.y[i]" in lines[int(number) - 1]


@pytest.mark.parametrize("n", [1, 31, 1000, 5000])
def test_reduction_with_shuffles_and_shared_memory(basics: Module, n: int) -> None:
    memory = Memory()
    x = RNG.integers(-100, 100, n).astype(np.float32)
    sums = memory.empty(4, np.float32)
    report = basics.launch("block_sums", 4, 256, [memory.alloc(x), sums, n], memory)
    assert not report.findings, report
    assert memory.get(sums).sum() == x.sum()


def test_histogram_with_atomics(basics: Module) -> None:
    memory = Memory()
    data = RNG.integers(0, 256, 3000).astype(np.uint8) // 3
    counts = memory.alloc(np.zeros(256, np.uint32))
    report = basics.launch("histogram", 3, 128, [memory.alloc(data), 3000, counts], memory)
    assert not report.findings, report
    assert np.array_equal(memory.get(counts), np.bincount(data, minlength=256))


@pytest.mark.parametrize("n", [32, 96, 256, 50])
def test_scan(basics: Module, n: int) -> None:
    memory = Memory()
    x = RNG.integers(-5, 100, n).astype(np.int32)
    out = memory.empty(n, np.int32)
    report = basics.launch("scan", 1, n, [memory.alloc(x), out], memory, shared_bytes=4 * n)
    assert not report.findings, report
    assert np.array_equal(memory.get(out), np.cumsum(x))


def test_transpose_is_free_of_conflicts(basics: Module) -> None:
    memory = Memory()
    x = RNG.standard_normal((70, 45)).astype(np.float32)
    out = memory.empty((45, 70), np.float32)
    report = basics.launch("transpose", (2, 3), (32, 8), [memory.alloc(x), out, 70, 45], memory)
    assert not report.findings, report
    assert np.array_equal(memory.get(out), x.T)
    assert report.counts.bank_conflicts == 0


def test_divergence_calls_and_local_arrays(basics: Module) -> None:
    memory = Memory()
    n = 2000
    x = RNG.standard_normal(n).astype(np.float32) * 2
    y = memory.empty(n, np.float32)
    report = basics.launch("divergent", 10, 224, [memory.alloc(x), y, n], memory)
    assert not report.findings, report

    def polynomial(value: float, terms: int) -> float:
        result = 0.0
        for term in range(terms):
            result = result * value + term
        return result

    def path(i: int) -> float:
        value = float(x[i])
        kind = i % 9
        ways: dict[int, Callable[[], float]] = {
            0: lambda: 1.0,
            1: lambda: value * (i // 9 % 8),
            2: lambda: polynomial(value, i % 5),
            3: lambda: np.sqrt(abs(value)),
            4: lambda: np.exp(value),
            5: lambda: np.sin(value),
            6: lambda: float(i // 7 % 7),
            7: lambda: np.log(abs(value) + 1),
            8: lambda: 0.0,
        }
        return float(ways[kind]()) + polynomial(0.5, kind)

    assert np.allclose(memory.get(y), [path(i) for i in range(n)], rtol=2e-6, atol=2e-6)


def test_half_precision(basics: Module) -> None:
    memory = Memory()
    a, b = RNG.standard_normal((2, 300, 2)).astype(np.float16)
    product, total = memory.empty((300, 2), np.float16), memory.empty((300, 2), np.uint16)
    report = basics.launch("half_math", 3, 128, [memory.alloc(a), memory.alloc(b), product, total, 300], memory)
    assert not report.findings, report
    exact = a.astype(np.float64) * b + a  # at most 33 bits: exact
    assert np.array_equal(memory.get(product), exact.astype(np.float32).astype(np.float16))
    got = (memory.get(total).astype(np.uint32) << 16).view(np.float32)
    assert np.allclose(got, a.astype(np.float32) + b, rtol=2.0**-8)


def run_matmul(module: Module, m: int = 130, n: int = 200, k: int = 104) -> tuple[Report, float]:
    """The report, and the largest error against float64."""
    memory = Memory()
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((m, k)).astype(np.float16), rng.standard_normal((k, n)).astype(np.float16)
    c = memory.empty((m, n), np.float32)
    pa, pb = memory.alloc(a, read_only=True), memory.alloc(b, read_only=True)
    report = module.launch("matmul", (-(-n // 64), -(-m // 64)), 128, [pa, pb, c, m, n, k], memory)
    return report, float(np.abs(memory.get(c) - a.astype(np.float64) @ b).max())


@pytest.mark.parametrize("shape", [(130, 200, 104), (64, 64, 32), (1, 8, 8), (65, 72, 40)])
def test_matmul_on_tensor_cores(matmul: Module, shape: tuple[int, int, int]) -> None:
    """Tiled, double-buffered, with edges: right, without findings, without bank conflicts."""
    report, error = run_matmul(matmul, *shape)
    assert not report.findings, report
    assert error <= 1e-4
    assert report.counts.bank_conflicts == 0
    m, n, k = shape
    tiles = -(-m // 64) * -(-n // 64) * -(-k // 32)
    assert report.counts.mma_flops == tiles * 2 * 64 * 64 * 32
    assert report.counts.barriers == 2 * tiles
    assert report.counts.global_store_bytes == 4 * m * n


def test_removing_any_barrier_or_wait_is_noticed(matmul: Module) -> None:
    statements = matmul.instructions("matmul", "bar.sync", "cp.async.wait", "cp.async.commit")
    assert len(statements) >= 6
    for instruction in statements:
        report, _ = run_matmul(matmul.without(instruction.line), 130, 64, 104)
        assert report.findings, f"nothing was found without line {instruction.line}: {instruction.text}"


@pytest.mark.parametrize("name", ["block_sums", "scan", "transpose", "histogram"])
def test_removing_any_barrier_of_the_basics_is_noticed(basics: Module, name: str) -> None:
    for instruction in basics.instructions(name, "bar.sync"):
        broken = basics.without(instruction.line)
        memory = Memory()
        out = memory.alloc(np.zeros(4096, np.uint32))
        ones = memory.alloc(np.ones(4096, np.uint32))
        arguments: dict[str, tuple[tuple[int, int], tuple[int, int], list[int]]] = {
            "block_sums": ((2, 1), (256, 1), [ones, out, 2000]),
            "scan": ((1, 1), (128, 1), [ones, out]),
            "transpose": ((2, 2), (32, 8), [ones, out, 64, 64]),
            "histogram": ((2, 1), (128, 1), [ones, 2000, out]),
        }
        grid, block, args = arguments[name]
        report = broken.launch(name, grid, block, args, memory, shared_bytes=512)
        assert "shared-race" in {finding.kind for finding in report.findings}, instruction.line
