"""The shipped library, built once per state of its sources, its launch plans, and the PTX in it.

Compiling kernels is what these tests spend most time on. What is compiled lies under .cache, behind locks, so that
workers share it; builds that differ in their host code alone share the kernels through ccache.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ptx import Module
from vtn_export.errors import MissingDependencyError
from vtn_export.trt import plugins

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "plugins"
CACHE = ROOT / ".cache" / "plugins"
# Wheels of the compiler and of TensorRT's headers, where the environment has none of its own
for _wheels in ("cuda13", "kernel_lens"):
    if (ROOT / ".cache" / _wheels).is_dir() and str(ROOT / ".cache" / _wheels) not in sys.path:
        sys.path.append(str(ROOT / ".cache" / _wheels))

DTYPES = ("fp16", "bf16", "fp32")
# What a block may ask for, by compute capability (CUDA's occupancy tables)
SHARED_BYTES = {75: 65536, 80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448}


class Params(ctypes.Structure):
    """`vtn_sliding_window_attention_params` of c_api.h."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("qkv", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("data_type", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("one_sided_window", ctypes.c_int32),
        ("dilation", ctypes.c_int32),
        ("num_global_tokens", ctypes.c_int32),
        ("causal", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("batch", ctypes.c_int64),
        ("sequence", ctypes.c_int64),
    )


class Launch(ctypes.Structure):
    """`vtn_sliding_window_attention_launch` of c_api.h."""

    _fields_ = (
        ("struct_size", ctypes.c_size_t),
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("queries", ctypes.c_uint32),
        ("params_bytes", ctypes.c_uint32),
        ("params", ctypes.c_ubyte * 160),
    )


@functools.cache
def source_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*")):
        code = path.suffix in {".h", ".cuh", ".cu", ".cpp", ".map", ".txt", ".cmake"}
        if code and "build" not in path.relative_to(SOURCES).parts:
            digest.update(str(path.relative_to(SOURCES)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def shared_compiling() -> Iterator[None]:
    """CMake's compilers run through ccache, where it is there; its folder is the repository's own."""
    launcher = shutil.which("ccache")
    names = {f"CMAKE_{language}_COMPILER_LAUNCHER": launcher for language in ("CXX", "CUDA")} if launcher else {}
    ours = {**names, "CCACHE_DIR": str(ROOT / "build" / "ccache")}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update({name: value for name, value in ours.items() if value})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time builds into a folder; the others then find it done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_library(*capabilities: str) -> Path:
    """libvtn_plugins.so for these GPUs; skips the test where there is no compiler."""
    name = "_".join(capabilities).replace(".", "") or "all"
    folder = CACHE / f"{source_hash()}-{name}"
    with locked(CACHE / f"{name}.lock"):
        library = folder / "libvtn_plugins.so"
        if not (folder / "done").is_file():
            for old in CACHE.glob(f"*-{name}"):
                shutil.rmtree(old, ignore_errors=True)
            try:
                with shared_compiling():
                    plugins.build(plugins.BuildRequest(folder, capabilities, build=folder / "build", jobs=2))
            except MissingDependencyError as error:
                pytest.skip(str(error))
            (folder / "done").touch()
    return library


@functools.cache
def library() -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(build_library("8.0")))
    loaded.vtn_plugins_version.restype = ctypes.c_char_p
    return loaded


def plan(params: Params, capability: int = 80, shared_bytes: int | None = None) -> tuple[int, Launch]:
    """(cudaError_t, the launch) for a GPU that need not be here."""
    launch = Launch(struct_size=ctypes.sizeof(Launch))
    limit = SHARED_BYTES[capability] if shared_bytes is None else shared_bytes
    status = library().vtn_sliding_window_attention_plan(ctypes.byref(params), capability, limit, ctypes.byref(launch))
    return status, launch


def compile_command(dtype: str) -> list[str]:
    """The build's own command for a translation unit, without its source, its output and its GPUs."""
    database = build_library("8.0").parent / "build" / "compile_commands.json"
    entry = next(e for e in json.loads(database.read_text()) if e["file"].endswith(f"{dtype}.cu"))
    words = iter(shlex.split(entry["command"]))
    command: list[str] = []
    for word in words:
        if word in {"-o", "-c", "-MF", "-MT", "-x"}:
            next(words)
        elif word != "-MD" and not word.startswith("--generate-code") and Path(word).name != "ccache":
            command.append(word)
    return command


def _made(dtype: str, capability: int, suffix: str, *command: str | Path) -> Path:
    """A file made from the sources as they are, by a command that ends with `-o FILE`; made once."""
    out = CACHE / f"{source_hash()}-code" / f"{dtype}_{capability}.{suffix}"
    with locked(CACHE / f"{out.stem}.{suffix}.lock"):
        if not out.is_file():
            for old in CACHE.glob("*-code"):
                if old != out.parent:
                    shutil.rmtree(old, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = out.with_name(f"{out.stem}.part.{suffix}")
            done = subprocess.run([*command, "-o", temporary], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            temporary.replace(out)
    return out


@functools.cache
def ptx(dtype: str, capability: int = 80) -> Path:
    """PTX of the shipped sources with the build's own flags, unmodified; for SM 8.0 it is the library's own."""
    if capability == 80:
        return _extracted(build_library("8.0"), dtype)
    source = SOURCES / "sliding_window_attention" / f"{dtype}.cu"
    return _made(dtype, capability, "ptx", *compile_command(dtype), "-ptx", f"-arch=compute_{capability}", source)


def _extracted(library: Path, dtype: str) -> Path:
    """The PTX of a type's kernels as it stands in the library, where the driver finds it (comments are blanked)."""
    folder = library.parent / "ptx"
    with locked(library.parent / "ptx.lock"):
        if not folder.is_dir():
            temporary = folder.with_name("ptx.part")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            subprocess.run(
                [cuobjdump(), "-xptx", "all", library.absolute()], cwd=temporary, check=True, stdout=subprocess.DEVNULL
            )
            for file in list(temporary.iterdir()):
                kind = re.search(r"\.entry vtn_swa_[a-z]+_(\w+?)_d", file.read_text())
                assert kind is not None, file
                file.rename(temporary / f"{kind[1]}.ptx")
            temporary.rename(folder)
    return folder / f"{dtype}.ptx"


def cuobjdump() -> Path:
    """CUDA's reader of binaries; skips the test where there is none."""
    candidates = (shutil.which("cuobjdump"), *(Path(entry) / "nvidia/cu13/bin/cuobjdump" for entry in sys.path))
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    pytest.skip("cuobjdump: not found; pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")


@functools.cache
def code(dtype: str, capability: int) -> Path:
    """A file with the machine code of a type's kernels: the library for SM 8.0, else ptxas's work on `ptx`."""
    if capability == 80:
        return build_library("8.0")
    text = ptx(dtype, capability)
    return _made(dtype, capability, "cubin", *compile_command(dtype), "-cubin", f"-arch=sm_{capability}", text)


@functools.cache
def module(dtype: str, capability: int, kernel: str) -> Module:
    """The PTX of one entry: the file holds two dozen, and parsing them all takes seconds."""
    text = ptx(dtype, capability).read_text()
    head, *entries = text.split(".visible .entry ")
    mine = next(entry for entry in entries if entry.startswith(f"{kernel}("))
    # what stands before an entry (shared declarations) belongs to the head or to the entry before it
    return Module.from_source(f"{head}.visible .entry {mine}")
