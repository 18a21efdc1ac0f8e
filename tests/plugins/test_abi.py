"""The library against the TensorRT versions whose headers are not to be had: 10.3 to 11.4, by their Python bindings.

The bindings implement the same C++ interfaces. Their tables of virtual functions say which methods an interface has in
that version and in what order; the library's own tables have to say the same.
"""

from __future__ import annotations

import re
import subprocess
import zipfile
from functools import lru_cache
from pathlib import Path

import pytest

from tests.plugins.library import build_library
from tests.trt.bindings import CACHE, SUPPORTED, wheel
from vtn_export.trt import plugins

# An interface, and the class of the bindings that implements it
INTERFACES = {
    "IPluginV3": "PyIPluginV3Impl",
    "IPluginV3OneCore": "PyIPluginV3OneCoreImpl",
    "IPluginV3OneBuild": "PyIPluginV3OneBuildImpl",
    "IPluginV3OneRuntime": "PyIPluginV3OneRuntimeImpl",
    "IPluginCreatorV3One": "IPluginCreatorV3OneImpl",
}
# getAPILanguage, getInterfaceInfo and two destructors, which every versioned interface begins with
HEAD = 4


def tables(binary: Path, classes: str) -> dict[str, list[list[str]]]:
    """Tables of virtual functions of the classes that a pattern names: a list of methods for each base."""
    addresses: dict[int, str] = {}
    starts: dict[int, tuple[str, int]] = {}
    listing = subprocess.run(["nm", "-SC", "--defined-only", binary], capture_output=True, text=True, check=True).stdout
    for line in listing.splitlines():
        if found := re.match(r"([0-9a-f]{16}) (?:([0-9a-f]{16}) )?\w (.*)", line):
            address = int(found[1], 16)
            addresses.setdefault(address, found[3])
            if found[2] and (table := re.fullmatch(rf"vtable for (.*?({classes}))", found[3])):
                starts[address] = (table[2], int(found[2], 16))
    relocations = subprocess.run(["readelf", "-rW", binary], capture_output=True, text=True, check=True).stdout
    targets = {
        int(place, 16): addresses.get(int(target, 16), "")
        for place, target in re.findall(r"^([0-9a-f]{16})\s+\S+\s+R_X86_64_RELATIVE\s+([0-9a-f]+)$", relocations, re.M)
    }
    result: dict[str, list[list[str]]] = {}
    for start, (name, size) in starts.items():
        bases: list[list[str]] = []
        for place in range(start, start + size, 8):
            target = targets.get(place, "")
            if target.startswith("typeinfo for"):
                bases.append([])
            elif bases and target:
                bases[-1].append(method(target))
        result[name] = bases
    return result


def method(symbol: str) -> str:
    """`getNbOutputs() const` of `nvinfer1::v_1_0::IPluginV3OneBuild::getNbOutputs() const`."""
    found = re.search(r"~?\w+\([^()]*\)(?: const)?$", re.sub(r" \[clone [^]]*\]", "", symbol))
    return found[0] if found else symbol


@lru_cache
def bindings(requirement: str) -> Path:
    path = wheel(requirement)
    if path is None:
        pytest.skip(f"{requirement} is not in the cache and cannot be downloaded (python -m tests.trt.bindings)")
    out = CACHE / f"{path.stem}.so"
    if not out.is_file():
        with zipfile.ZipFile(path) as archive:
            temporary = out.with_suffix(".part")
            temporary.write_bytes(archive.read("tensorrt_bindings/tensorrt.so"))
            temporary.replace(out)
    return out


@lru_cache
def theirs(requirement: str) -> dict[str, list[list[str]]]:
    return tables(bindings(requirement), "|".join((*INTERFACES.values(), "DefaultLogger")))


@lru_cache
def ours() -> list[list[str]]:
    """The methods of each interface that the library's objects implement, one list a base."""
    found = tables(build_library("8.0"), "SlidingWindowAttentionPlugin|SlidingWindowAttentionCreator")
    return [base for bases in found.values() for base in bases]


@pytest.mark.parametrize("requirement", SUPPORTED)
@pytest.mark.parametrize("interface", INTERFACES)
def test_methods_are_where_tensorrt_calls_them(requirement: str, interface: str) -> None:
    (expected,) = theirs(requirement)[INTERFACES[interface]]
    wanted = expected[HEAD:]
    assert len(wanted) >= 2, expected
    assert any(base[HEAD : HEAD + len(wanted)] == wanted for base in ours()), f"{wanted} is none of {ours()}"


@pytest.mark.parametrize("requirement", SUPPORTED)
def test_loggers_are_of_the_two_kinds_that_are_known(requirement: str) -> None:
    """common/logger.cpp: the first entry in TensorRT 10, the one behind IVersionedInterface's four in 11."""
    ((*methods,),) = theirs(requirement)["DefaultLogger"]
    names = [name.partition("(")[0] for name in methods]
    if int(requirement.partition("==")[2].partition(".")[0]) < 11:
        assert names[0] == "log" and len(names) == 3
    else:
        assert names[:2] == ["getAPILanguage", "getInterfaceInfo"] and names.index("log") == HEAD


# What the library calls: an expression builder's methods are inline, and call through a table of TensorRT's.
BUILDER = {
    "constant": "_ZN8nvinfer112IExprBuilder8constantEl",
    "operation": "_ZN8nvinfer112IExprBuilder9operationENS_18DimensionOperationERKNS_14IDimensionExprES4_",
}
CALLER = """
#include <NvInferRuntime.h>
using namespace nvinfer1;
auto take_constant = &IExprBuilder::constant;
auto take_operation = &IExprBuilder::operation;
"""


def called_entry(binary: Path, function: str) -> str:
    """The place in the table that an inline method calls, as the disassembler writes it: `0x18`."""
    command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"(?:call|jmp)\s+\*(0x[0-9a-f]+)\(%r", text)
    assert found is not None, text
    return found[1]


@lru_cache
def compiled_caller(folder: Path) -> Path:
    (folder / "caller.cpp").write_text(CALLER)
    toolkit, headers = plugins.find_toolkit(), plugins.find_headers()
    includes = [f"-I{headers.folder}", f"-I{toolkit.root / 'include'}"]
    command = ["g++", "-std=c++17", "-O2", "-c", *includes, "caller.cpp", "-o", "caller.o"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "caller.o"


@pytest.mark.parametrize("requirement", SUPPORTED)
def test_shape_expressions_are_called_where_they_are(
    requirement: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mine = compiled_caller(tmp_path_factory.getbasetemp())
    for name, symbol in BUILDER.items():
        assert called_entry(bindings(requirement), symbol) == called_entry(mine, symbol), name
