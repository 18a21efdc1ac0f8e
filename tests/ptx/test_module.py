"""The interface: names, memory, arguments, the way to nvcc."""

from __future__ import annotations

import numpy as np
import pytest

from . import Memory, Module, PtxError
from .lanes import HEADER
from .module import demangled
from .toolchain import compile_ptx

TWO = (
    HEADER
    + """
.visible .entry _ZN3vtn5firstEPfi(.param .u64 p, .param .u32 n) { ret; }
.entry _Z6secondPf(
    .param .u64 p
)
.maxntid 128, 1, 1
{
    // a comment with a brace }
    ret;
}
"""
)


def test_kernels_are_found_by_any_part_of_their_name() -> None:
    module = Module(TWO)
    assert module.kernels == ["_ZN3vtn5firstEPfi", "_Z6secondPf"]
    assert module.find("_Z6secondPf") == "_Z6secondPf"
    assert module.find("second") == "_Z6secondPf"
    assert module.find("vtn::first") == "_ZN3vtn5firstEPfi"
    assert demangled("_ZN3vtn5firstEPfi") == "vtn::first"
    for name in ("_Z", "third"):
        with pytest.raises(PtxError, match=f"got the kernel name '{name}'"):
            module.find(name)


def test_statements_can_be_blanked() -> None:
    text = HEADER + ".entry run() {\n.reg .b32 r<2>;\nmov.u32 r1, 5; mov.u32 r0, 6;\nbar.sync 0;\nret;\n}\n"
    module = Module(text)
    (barrier,) = module.instructions("run", "bar.sync")
    assert barrier.line == 7
    assert [i.opcode for i in module.without(7).instructions("run")] == ["mov.u32", "mov.u32", "ret"]
    assert [i.text for i in module.without(6).instructions("run")] == ["mov.u32 r0, 6", "bar.sync 0", "ret"]
    assert len(module.instructions("run")) == 4, "the module itself is as it was"
    with pytest.raises(PtxError, match="line 9: got '}', expected a statement"):
        module.without(9)


def test_memory_keeps_shapes_and_grows() -> None:
    memory = Memory()
    first = np.arange(6, dtype=np.int16).reshape(2, 3)
    p = memory.alloc(first)
    q = memory.empty((1 << 18,), np.float32)
    r = memory.alloc(np.float64(2.5))
    assert p % 256 == q % 256 == 0
    assert np.array_equal(memory.get(p), first)
    assert memory.get(p).dtype == np.int16
    assert np.isnan(memory.get(q)).all()
    assert not memory.written(q).any()
    assert memory.written(p).all()
    assert memory.get(r).shape == ()
    assert memory.get(r) == 2.5


def test_written_elements() -> None:
    text = (
        HEADER
        + """
    .entry run(.param .u64 at) {
        .reg .b32 r<4>; .reg .b64 rd<4>; ld.param.u64 rd1, [at]; mov.u32 r1, %tid.x; mul.wide.u32 rd2, r1, 8;
        add.u64 rd1, rd1, rd2; st.global.u32 [rd1], r1; ret; }"""
    )
    memory = Memory()
    target = memory.empty((4, 4), np.uint32)
    assert not Module(text).launch("run", 1, 8, [target], memory).findings
    assert np.array_equal(memory.written(target).ravel(), np.arange(16) % 2 == 0)


@pytest.mark.parametrize("block", [0, (8, 8, 32), (1025,)])
def test_blocks_of_impossible_size(block: int | tuple[int, ...]) -> None:
    with pytest.raises(PtxError, match=r"got the dimensions|got a block of"):
        Module(TWO).launch("second", 1, block, [0], Memory())


def test_compiler_errors_are_shown() -> None:
    with pytest.raises(RuntimeError, match=r"identifier .nonsense. is undefined"):
        compile_ptx('extern "C" __global__ void f() { nonsense; }')
