"""The bindings wheels of TensorRT proper that the calls are held against: fetched once into .cache.

python -m tests.trt.bindings      fetch them (10 MB) without running a test
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CACHE = Path(__file__).parents[2] / ".cache" / "tensorrt-bindings"
# JetPack 6.1's, Thor's first, JetPack 7.2's minor, the newest; and one below the floor, which must not pass
FLOOR, BELOW = "tensorrt-cu12-bindings==10.3.0", "tensorrt-cu12-bindings==10.0.1"
SUPPORTED = (
    FLOOR,
    "tensorrt-cu13-bindings==10.13.3.9.post1",
    "tensorrt-cu13-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)


def wheel(requirement: str) -> Path | None:
    """The wheel of one version, from the cache or the package index; None where neither has it."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    found = sorted(CACHE.glob(pattern))
    if not found:
        CACHE.mkdir(parents=True, exist_ok=True)
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (17, 28, 31)]
        command = ["pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11"]
        subprocess.run(
            [sys.executable, "-m", *command, *platforms, "--dest", str(CACHE), requirement],
            capture_output=True,
            check=False,
            timeout=120,
        )
        found = sorted(CACHE.glob(pattern))
    return found[0] if found else None


if __name__ == "__main__":
    sys.exit(0 if None not in {wheel(requirement) for requirement in (BELOW, *SUPPORTED)} else 1)
