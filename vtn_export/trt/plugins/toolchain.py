"""Where nvcc and TensorRT's headers come from: given, the system's, or the wheels of the `plugins` extra."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vtn_export.errors import MissingDependencyError, OutputError, PluginError

COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "11.0", "12.0")
MIN_CUDA = (12, 6)
MIN_TENSORRT = (10, 3)
_SYSTEM_HEADERS = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/tensorrt/include",
)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its root, version, and the GPU architectures that its nvcc knows (`sm_87`)."""

    root: Path
    version: tuple[int, ...]
    architectures: tuple[str, ...]
    source: str  # given, system or wheels

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True)
class Headers:
    """TensorRT's C++ headers: the folder of NvInferRuntime.h and their version."""

    folder: Path
    version: tuple[int, ...]
    source: str  # given, system or wheel

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version))


def architecture(compute_capability: str) -> str:
    """`8.7` -> `87`. Raises PluginError for a capability that the library has no kernels for."""
    if compute_capability not in COMPUTE_CAPABILITIES:
        raise PluginError(
            f"compute capability: got {compute_capability}, expected one of {', '.join(COMPUTE_CAPABILITIES)}"
        )
    return compute_capability.replace(".", "")


def find_toolkit(given: Path | None = None) -> Toolkit:
    """The toolkit at `given`, else the system's if it is new enough, else the wheels'.

    Raises PluginError for a root without nvcc or a version below 12.6, MissingDependencyError for no compiler.
    """
    if given is not None:
        if not (given / "bin" / "nvcc").is_file():
            raise PluginError(f"--cuda {given}: no bin/nvcc in it; expected the root of a CUDA toolkit")
        return _describe(_usable(given), "given")
    unfit: PluginError | None = None
    for root in _system_roots():
        if (root / "bin" / "nvcc").is_file():
            try:
                return _describe(_usable(root), "system")
            except PluginError as error:  # too old: the wheels may serve
                unfit = unfit or error
    for root in _wheel_roots():
        return _describe(complete_root(root), "wheels")
    if unfit is not None:
        raise PluginError(f"{unfit}; name another with --cuda, or pip install 'vtn-export[plugins]'")
    raise MissingDependencyError(
        "nvcc: not found; install the CUDA toolkit, name its root with --cuda, or pip install 'vtn-export[plugins]'"
    )


def find_headers(given: Path | None = None) -> Headers:
    """TensorRT's headers in `given`, else the system's, else the development wheel's.

    Raises PluginError for a folder without them or a version below 10.3, MissingDependencyError for none.
    """
    if given is not None:
        if not (given / "NvInferRuntime.h").is_file():
            raise PluginError(f"--tensorrt-include {given}: no NvInferRuntime.h in it; expected TensorRT's headers")
        return _headers(given, "given")
    for folder in map(Path, _SYSTEM_HEADERS):
        if (folder / "NvInferRuntime.h").is_file():
            return _headers(folder, "system")
    for folder in _on_path("kernel_lens/include/tensorrt"):
        if (folder / "NvInferRuntime.h").is_file():
            return _headers(folder, "wheel")
    raise MissingDependencyError(
        "TensorRT headers: not found; install TensorRT's development package, name the folder with "
        "--tensorrt-include, or pip install --no-deps kernel-lens==2.0.1"
    )


def check_architectures(toolkit: Toolkit, compute_capabilities: Iterable[str]) -> tuple[str, ...]:
    """The architecture numbers. Raises PluginError for one that this nvcc does not know."""
    numbers = tuple(dict.fromkeys(architecture(capability) for capability in compute_capabilities))
    for number in numbers:
        if f"sm_{number}" not in toolkit.architectures:
            known = ", ".join(name.removeprefix("sm_") for name in toolkit.architectures)
            raise PluginError(
                f"compute capability {number[:-1]}.{number[-1]}: nvcc {toolkit.version_text} does not know it "
                f"(it knows {known}); use a newer CUDA with --cuda"
            )
    return numbers


def cache_folder() -> Path:
    """Folder for what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vtn-export"


def complete_root(root: Path, libraries: Path | None = None, name: str = "native") -> Path:
    """A view of a wheel toolkit by links, with the names that CMake expects (`lib64`, `libcudart.so`).

    `libraries` replaces the toolkit's own, for a cross-build. Raises OutputError where the cache cannot be written.
    """
    try:
        return _complete_root(root, libraries, name)
    except OSError as error:
        raise OutputError(
            f"{cache_folder()}: cannot be written ({error.strerror}); name another cache with XDG_CACHE_HOME"
        ) from None


def _complete_root(root: Path, libraries: Path | None, name: str) -> Path:
    view = cache_folder() / f"cuda-{name}-{hashlib.sha256(f'{root} {libraries}'.encode()).hexdigest()[:16]}"
    lib = view / "lib"
    lib.mkdir(parents=True, exist_ok=True)
    (view / "bin").mkdir(exist_ok=True)
    for part in root.iterdir():
        # beside a folder `targets`, nvcc would look for the target's headers and libraries in there
        if part.name not in {"lib", "lib64", "bin"} | ({"targets"} if libraries else set()):
            _link(view / part.name, part)
    for tool in (root / "bin").iterdir():
        _link(view / "bin" / tool.name, tool)
    for file in (libraries or root / "lib").iterdir():
        _link(lib / file.name, file)
    runtime = next(iter(sorted(lib.glob("libcudart.so.*"))), None)
    if runtime is not None:
        _link(lib / "libcudart.so", runtime)
    _link(view / "lib64", lib)
    return view


def _usable(root: Path) -> Path:
    """The root, or a view of it with the names that CMake looks for: the wheels' lacks them."""
    alone = (root / "lib").is_dir() and not (root / "lib64").exists()
    return complete_root(root.absolute()) if alone else root


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    temporary = link.with_name(f".{link.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def _system_roots() -> Iterator[Path]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if value := os.environ.get(variable):
            yield Path(value)
    if found := shutil.which("nvcc"):
        yield _root_of(Path(found))
    yield Path("/usr/local/cuda")


def _wheel_roots() -> Iterator[Path]:
    for root in (*_on_path("nvidia/cu13"), *_on_path("nvidia/cuda_nvcc")):
        if (root / "bin" / "nvcc").is_file():
            yield root


def _on_path(relative: str) -> Iterator[Path]:
    for entry in sys.path:
        candidate = Path(entry or ".") / relative
        if candidate.is_dir():
            yield candidate.resolve()


def _root_of(nvcc: Path) -> Path:
    """The toolkit's root, by nvcc's own word: the one on PATH may be a script or a link."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cu"
        source.touch()
        text = _output([str(nvcc), "--dryrun", str(source)])
    top = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    return Path(top[1]).resolve() if top else nvcc.resolve().parent.parent


def _describe(root: Path, source: str) -> Toolkit:
    nvcc = root / "bin" / "nvcc"
    version = re.search(r"release [\d.]+, V([\d.]+)", _output([str(nvcc), "--version"]))
    if version is None:
        raise PluginError(f"{nvcc}: does not run (`{nvcc} --version` printed no version); reinstall the CUDA toolkit")
    numbers = tuple(int(part) for part in version[1].split("."))
    if numbers[:2] < MIN_CUDA:
        raise PluginError(f"{nvcc}: got CUDA {version[1]}, expected 12.6 or later")
    architectures = tuple(re.findall(r"^sm_\d+$", _output([str(nvcc), "--list-gpu-code"]), re.MULTILINE))
    return Toolkit(root.absolute(), numbers, architectures, source)


def _headers(folder: Path, source: str) -> Headers:
    try:
        text = (folder / "NvInferVersion.h").read_text(errors="replace")
    except OSError:
        raise PluginError(
            f"{folder}: no NvInferVersion.h beside NvInferRuntime.h; expected TensorRT's headers"
        ) from None
    numbers = []
    for part in ("MAJOR", "MINOR", "PATCH"):
        # 10.14 on has the numbers under other names
        found = re.search(rf"#define (?:TRT_{part}_ENTERPRISE|NV_TENSORRT_{part}) (\d+)", text)
        if found is None:
            raise PluginError(f"{folder}: NvInferVersion.h states no version; expected TensorRT 10.3 or later")
        numbers.append(int(found[1]))
    if tuple(numbers[:2]) < MIN_TENSORRT:
        got = ".".join(map(str, numbers))
        raise PluginError(f"{folder}: got the headers of TensorRT {got}, expected 10.3 or later (IPluginV3)")
    return Headers(folder.absolute(), tuple(numbers), source)


def _output(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
