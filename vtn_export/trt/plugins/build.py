"""Builds the library with CMake: configure, compile with progress, sidecar. Nothing half-written is left."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vtn_export.bundle import writing_file
from vtn_export.errors import MissingDependencyError, OutputError, PluginError
from vtn_export.trt.plugins.cross import target_libraries
from vtn_export.trt.plugins.info import inspect_library
from vtn_export.trt.plugins.sidecar import CONTRACT_VERSION, LIBRARY, Sidecar, sidecar_path, sidecar_text
from vtn_export.trt.plugins.toolchain import (
    COMPUTE_CAPABILITIES,
    Headers,
    Toolkit,
    check_architectures,
    complete_root,
    find_headers,
    find_toolkit,
)
from vtn_export.untrusted import sha256

CREATORS = (f"vtn::SlidingWindowAttention/{CONTRACT_VERSION}",)
SOURCES_VARIABLE = "VTN_PLUGIN_SOURCES"
# JetPack 7 with CUDA 13: Orin and Thor
CROSS_CAPABILITIES = ("8.7", "11.0")

Progress = Callable[[int, int, str], None]  # steps done, steps in all, what


@dataclass(frozen=True)
class BuildRequest:
    """What to build. `out`: folder of the library; `build`: folder of intermediate files, kept if given."""

    out: Path
    compute_capabilities: tuple[str, ...] = ()  # empty: all that the compiler knows
    cross: str | None = None  # aarch64
    cuda: Path | None = None
    tensorrt_include: Path | None = None
    target_libraries: Path | None = None  # cross: folder of the target's libcudart_static.a
    build: Path | None = None
    jobs: int | None = None


def source_folder() -> Path:
    """plugins/ of the checkout. Raises PluginError where there is none: wheels carry no C++."""
    given = os.environ.get(SOURCES_VARIABLE)
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "plugins"
    if not (folder / "CMakeLists.txt").is_file():
        raise PluginError(
            f"{folder}: no plugin sources; in a checkout: pip install --editable . (or set {SOURCES_VARIABLE})"
        )
    return folder


def build(request: BuildRequest, progress: Progress | None = None) -> Path:
    """Builds the library and its sidecar into request.out and returns the library's path.

    Raises PluginError for a compiler, headers or GPU that do not fit and for a failed build (with the compiler's
    first error), MissingDependencyError for a missing tool, OutputError where `out` cannot be written.
    """
    sources = source_folder()
    cmake = _tool("cmake", "pip install cmake, or the system's package")
    toolkit = find_toolkit(request.cuda)
    headers = find_headers(request.tensorrt_include)
    wanted = request.compute_capabilities or _defaults(request.cross, toolkit)
    numbers = check_architectures(toolkit, wanted)
    root = toolkit.root
    if request.cross is not None:
        _check_cross(request.cross)
        root = complete_root(root, target_libraries(toolkit, request.target_libraries), "aarch64")
    _make_folder(request.out)
    with tempfile.TemporaryDirectory(prefix="vtn-plugins-") as temporary:
        folder = request.build or Path(temporary) / "build"
        root = _without_spaces(root, Path(temporary) / "cuda")
        configure = [cmake, "-S", str(sources), *_cache_entries(request.cross, root, headers, numbers)]
        report = progress or (lambda done, total, what: None)
        report(0, 0, "configure")
        environment = dict(os.environ, CUDACXX=str(root / "bin" / "nvcc"))
        _run([*configure, "-B", str(folder)], environment)
        command = [cmake, "--build", str(folder), "--parallel", str(request.jobs or os.cpu_count() or 1)]
        for done, total in _run_with_progress(command, environment):
            report(done, total, "compile")
        return _deliver(folder / LIBRARY, request, toolkit, headers, numbers)


def _defaults(cross: str | None, toolkit: Toolkit) -> tuple[str, ...]:
    if cross is not None:
        return CROSS_CAPABILITIES
    known = (name for name in COMPUTE_CAPABILITIES if f"sm_{name.replace('.', '')}" in toolkit.architectures)
    return tuple(known)


def _cache_entries(cross: str | None, root: Path, headers: Headers, numbers: tuple[str, ...]) -> Iterator[str]:
    # the newest generation also as PTX, for GPUs that come later
    yield "-DCMAKE_CUDA_ARCHITECTURES=" + ";".join([f"{number}-real" for number in numbers[:-1]] + [numbers[-1]])
    yield f"-DTENSORRT_INCLUDE_DIR={headers.folder}"
    yield "-DCMAKE_BUILD_TYPE=Release"
    yield "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"
    if shutil.which("ninja"):
        yield "-GNinja"
    yield f"-DCUDAToolkit_ROOT={root}"
    if cross is not None:
        yield f"-DCMAKE_TOOLCHAIN_FILE={source_folder() / 'cmake' / 'aarch64.cmake'}"


def _without_spaces(root: Path, link: Path) -> Path:
    """A path of the toolkit that CMake does not cut: it reads nvcc's link folders by splitting them at spaces."""
    if not re.search(r"\s", str(root)):
        return root
    if re.search(r"\s", str(link)):
        raise PluginError(f"{root}: CMake cannot use a CUDA toolkit with spaces in its path; set TMPDIR to one without")
    link.symlink_to(root)
    return link


def _check_cross(cross: str) -> None:
    if cross != "aarch64":
        raise PluginError(f"--cross: got {cross}, expected aarch64")
    compiler = "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        raise MissingDependencyError(f"{compiler}: not found; apt-get install g++-aarch64-linux-gnu")


def _tool(name: str, remedy: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingDependencyError(f"{name}: not found; {remedy}")
    return found


def _make_folder(out: Path) -> None:
    """Also tries to write there: better now than after minutes of compiling."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}: is a file; expected a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OutputError(f"--out {out}: cannot be written ({error.strerror}); name another folder") from None


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"plugin build: {_first_error(done.stdout + done.stderr)}")


def _run_with_progress(command: list[str], environment: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Runs a build and yields (steps done, steps) from ninja's `[3/10]` or make's `[ 30%]`."""
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if steps := re.match(r"\[(\d+)/(\d+)\]", line):
                    yield int(steps[1]), int(steps[2])
                elif percent := re.match(r"\[\s*(\d+)%\]", line):
                    yield int(percent[1]), 100
        except BaseException:  # Ctrl-C: the compilers, too, which are children of its children
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode:
        raise PluginError(f"plugin build: {_first_error(''.join(lines))}")


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for index, line in enumerate(lines):
        if line.startswith("CMake Error"):
            return " ".join(lines[index : index + 3])
        if re.search(r"\bld: (cannot find|.*undefined reference)", line):
            return line  # what follows says only that ld failed
        if re.search(r"\b(fatal )?error\b", line, re.IGNORECASE) and "warn-on-spills" not in line:
            return line
    return lines[-1] if lines else "failed and said nothing"


def _deliver(built: Path, request: BuildRequest, toolkit: Toolkit, headers: Headers, numbers: tuple[str, ...]) -> Path:
    """Library and sidecar, each whole or not at all; the sidecar first: until the library follows, their hashes differ
    and nobody takes the pair for a good one."""
    info = inspect_library(built)
    machine = request.cross or platform.machine()
    if info.machine != machine or set(info.compute_capabilities) != {f"{n[:-1]}.{n[-1]}" for n in numbers}:
        raise PluginError(
            f"{built.name}: got {info.machine} with kernels for {', '.join(info.compute_capabilities)}, expected "
            f"{machine} with {', '.join(numbers)}; build in a fresh folder"
        )
    library = request.out / LIBRARY
    with writing_file(library) as new_library, writing_file(sidecar_path(library)) as new_sidecar:
        shutil.copyfile(built, new_library)
        described = Sidecar(
            version=_version(),
            contract_version=CONTRACT_VERSION,
            creators=CREATORS,
            compute_capabilities=info.compute_capabilities,
            machine=machine,
            cuda=toolkit.version_text,
            tensorrt_headers=headers.version_text,
            sha256=sha256(new_library),
        )
        new_sidecar.write_text(sidecar_text(described), encoding="utf-8")
    return library


def _version() -> str:
    text = (source_folder() / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(r"project\(vtn_plugins VERSION ([\d.]+)", text)
    return found[1] if found else "0"
