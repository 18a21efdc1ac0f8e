"""C, C++ and CUDA sources as .clang-format says; ruff does the same for Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("plugins", "engines/runtime", "examples", "tests/cpp")
SUFFIXES = {".h", ".hpp", ".c", ".cpp", ".cu", ".cuh"}


def test_sources_keep_the_house_style() -> None:
    tool = next((t for t in ("clang-format-19", "clang-format-22", "clang-format") if shutil.which(t)), None)
    assert tool is not None, "clang-format: not found; bash .ci/system.sh cpp"
    files = [
        str(path)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES and "build" not in path.relative_to(ROOT / folder).parts
    ]
    assert len(files) > 40
    done = subprocess.run(
        [tool, "--dry-run", "-Werror", f"--style=file:{ROOT / '.clang-format'}", *files],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:2000]
