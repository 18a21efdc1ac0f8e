"""The shipped library, built once per state of its sources, its launch plans, and the PTX of its own flags."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import json
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
    """The build's own command for a translation unit, without its output and its GPUs."""
    database = build_library("8.0").parent / "build" / "compile_commands.json"
    entry = next(e for e in json.loads(database.read_text()) if e["file"].endswith(f"{dtype}.cu"))
    words = shlex.split(entry["command"])
    command: list[str] = []
    skip = False
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if skip:
            skip = False
        elif word in {"-o", "-c", "-MF", "-MT"}:
            skip = True
            if word == "-c":
                command.append(following)
        elif word != "-MD" and not word.startswith("--generate-code"):
            command.append(word)
    return command


@functools.cache
def ptx(dtype: str, capability: int = 80) -> str:
    """PTX of the shipped sources with the build's own flags, unmodified."""
    out = CACHE / f"{source_hash()}-ptx" / f"{dtype}_{capability}.ptx"
    with locked(CACHE / "ptx.lock"):
        if not out.is_file():
            for old in CACHE.glob("*-ptx"):
                if old != out.parent:
                    shutil.rmtree(old, ignore_errors=True)
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary = out.with_suffix(".part")
            command = [*compile_command(dtype), "-ptx", f"-arch=compute_{capability}", "-o", str(temporary)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            temporary.replace(out)
    return out.read_text()


@functools.cache
def module(dtype: str, capability: int, kernel: str) -> Module:
    """The PTX of one entry: the file holds two dozen, and parsing them all takes seconds."""
    text = ptx(dtype, capability)
    head, *entries = text.split(".visible .entry ")
    mine = next(entry for entry in entries if entry.startswith(f"{kernel}("))
    # what stands before an entry (shared declarations) belongs to the head or to the entry before it
    return Module.from_source(f"{head}.visible .entry {mine}")
