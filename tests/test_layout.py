"""The house's layout: rooms import only rooms above them, heavy packages only where they are needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vtn_export

PACKAGE = Path(vtn_export.__file__).parent
# data flows down this list: checkpoint -> torch model -> ONNX -> engine -> session -> report
ROOMS = (
    "errors", "deps", "spec", "untrusted", "bundle", "video", "runtime", "model", "onnx", "trt", "backends",
    "evaluate", "quantize", "batch", "serve", "cli",
)  # fmt: skip
MAX_LINES = 400
FILES = sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if room == "__main__" else room  # `python -m vtn_export` is the command line


def _imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the package, wherever it stands: lazy ones in functions count too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; rooms are named in full"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "vtn_export" else [module]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "vtn_export" and len(parts) > 1 and parts[1] != "__version__":
                yield node.lineno, parts[1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_rooms_above(path: Path) -> None:
    room = _room(path)
    if room == "__init__":  # the package's own front door: lazy names from any room
        return
    assert room in ROOMS, f"{path.name}: a room that the layout does not know"
    for line, other in _imported_rooms(path):
        assert other in ROOMS, f"{path}:{line}: imports unknown room {other}"
        assert ROOMS.index(other) <= ROOMS.index(room), f"{path}:{line}: {room} imports {other}, which is below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; split by what a reader looks for"


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light() -> None:
    code = "import sys, vtn_export; print([m for m in ('torch', 'onnxruntime', 'numpy', 'onnx') if m in sys.modules])"
    assert _python(code).strip() == "[]"


def test_device_rooms_need_no_export_extra() -> None:
    """What runs on a Jetson: everything above model, imported with torch and its company made absent."""
    absent = ("torch", "torchvision", "timm", "onnxscript", "safetensors", "yaml", "transformers", "polygraphy")
    above = ROOMS[: ROOMS.index("model")]
    modules = sorted(
        ".".join(["vtn_export", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        for path in FILES
        if _room(path) in above
    )
    _python(
        "import importlib, sys\n"
        f"for name in {absent!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )


def test_missing_extra_is_named() -> None:
    code = (
        "import sys\nsys.modules['timm'] = None\n"
        "from vtn_export.deps import require\nfrom vtn_export.errors import MissingDependencyError\n"
        "try: require('timm')\nexcept MissingDependencyError as error: print(error)"
    )
    assert _python(code).strip() == "timm is not installed; pip install 'vtn-export[export]'"


def test_exit_codes_are_distinct() -> None:
    from vtn_export import errors

    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.VtnError) and kind is not errors.VtnError
    ]
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes) and 0 not in codes
