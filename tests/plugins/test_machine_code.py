"""Machine code: what was promised is in it, for every GPU generation; nothing spills."""

from __future__ import annotations

import re

import pytest

from tests.plugins.library import build_library
from tests.plugins.machine import dump, sass
from vtn_export.trt import plugins

# LDGSTS is cp.async, LDSM is ldmatrix; SM 7.5 has no cp.async
TENSOR_CORE = {"75": ("HMMA", "LDSM"), "80": ("HMMA", "LDSM", "LDGSTS")}


def check_kernels(capability: str) -> None:
    library = build_library(capability)
    number = capability.replace(".", "")
    kernels = sass(library, f"sm_{number}")
    assert len(kernels) == 24 * 2 + 5
    for name, opcodes in kernels.items():
        present = {opcode.split(".")[0] for opcode in opcodes}
        assert not {"LDL", "STL"} & present, f"{name}: spills"
        if "fp32" in name:
            assert "FFMA" in present and "HMMA" not in present, f"{name}: float32 is to stay float32"
        elif number == "75" and "bf16" in name:
            assert "HMMA" not in present  # refused at launch
        else:
            missing = set(TENSOR_CORE.get(number, TENSOR_CORE["80"])) - present
            assert not missing, f"{name}: no {missing}"
    for line in dump(library, "--dump-resource-usage").splitlines():
        if found := re.search(r"STACK:(\d+)", line):
            assert found[1] == "0", line


def test_ampere() -> None:
    check_kernels("8.0")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("capability", [c for c in plugins.COMPUTE_CAPABILITIES if c != "8.0"])
def test_every_generation(capability: str) -> None:
    """One build for each: the compiler itself refuses spills (--warn-on-spills -Werror)."""
    check_kernels(capability)


def test_exports_and_needs() -> None:
    """An export map of five names, no libnvinfer, no libcudart."""
    info = plugins.inspect_library(build_library("8.0"))
    assert info.exports == (
        "getCreators",
        "setLoggerFinder",
        "vtn_plugins_version",
        "vtn_sliding_window_attention",
        "vtn_sliding_window_attention_plan",
    )
    assert all(re.match(r"lib(c|m|pthread|dl|rt)\.so|ld-linux", name) for name in info.needed), info.needed
    assert info.problems == ()
    assert info.compute_capabilities == ("8.0",)
