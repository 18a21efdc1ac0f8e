"""Device recipes: all are read, all say what they must, and an installed package has them."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vtn_export.errors import ConfigError, MemoryForecastError, UsageError
from vtn_export.trt import targets
from vtn_export.trt.api import in_range, version_tuple
from vtn_export.trt.options import parse_bytes

EXPECTED = {
    "jetson-orin-nano-8gb": ("8.7", "tensorrt"),
    "jetson-orin-nx-16gb": ("8.7", "tensorrt"),
    "jetson-agx-orin": ("8.7", "tensorrt"),
    "jetson-thor": ("11.0", "tensorrt"),
    "l4": ("8.9", "tensorrt"),
    "rtx": ("8.9", "rtx"),
}


def test_the_recipes() -> None:
    assert set(targets.names()) == set(EXPECTED)
    for name, (capability, flavor) in EXPECTED.items():
        target = targets.load(name)
        assert capability in target.compute_capabilities and target.flavor == flavor
        assert target.memory_budget > 2**30 and target.chunk >= 1
        assert {"fp32", "fp16", "bf16"} <= set(target.precisions)
        assert target.profiles["backbone"]["chunk"].opt == target.chunk


@pytest.mark.parametrize("name", ["jetson-orin-nano-8gb", "jetson-orin-nx-16gb", "jetson-agx-orin"])
def test_orin_has_no_fp8_and_says_what_10_3_does(name: str) -> None:
    target = targets.load(name)
    with pytest.raises(UsageError, match="no fp8; it has fp32"):
        target.check_precision("fp8")
    for version, told in (("10.3.0.30", 1), ("10.16.2.10", 0), ("11.4.1", 0), (None, 1)):
        assert len(target.warnings(version, "fp16")) == told
        assert target.warnings(version, "bf16") == []


def test_versions_outside_the_recipe() -> None:
    thor = targets.load("jetson-thor")
    thor.check_version("TensorRT", "10.13.3.9")
    thor.check_version("TensorRT", "11.4.1")
    with pytest.raises(UsageError, match=r"got TensorRT 10\.3\.0, expected 10\.13 to 11"):
        thor.check_version("TensorRT", "10.3.0")
    with pytest.raises(UsageError, match=r"12\.0"):
        thor.check_version("TensorRT", "12.0")


def test_memory_over_the_budget() -> None:
    nano = targets.load("jetson-orin-nano-8gb")
    nano.check_memory(4 << 30, "full", "smaller")
    with pytest.raises(MemoryForecastError, match=r"forecast 5\.0 GiB, Jetson Orin Nano 8GB has 4\.5 GiB"):
        nano.check_memory(5 << 30, "full", "--chunk of at most 4 fits")


def test_malformed_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "FOLDER", tmp_path)
    (tmp_path / "bad.toml").write_text('title = "Bad"\nflavor = "other"\n')
    with pytest.raises(ConfigError, match="malformed target"):
        targets.load("bad")


@pytest.mark.parametrize(
    ("version", "expected"),
    [("10.3.0.30", (10, 3, 0, 30)), ("11.4.0.106.post1", (11, 4, 0, 106)), ("dev", ())],
)
def test_versions(version: str, expected: tuple[int, ...]) -> None:
    assert version_tuple(version) == expected
    assert in_range("10.16.2", "10.3", "10.16") and not in_range("10.16.2", "10.3", "10.13")


@pytest.mark.parametrize(
    ("text", "size"), [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("1.5g", 3 << 29), ("4096", 4096), ("8 kb", 8192)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text, "--workspace") == size


@pytest.mark.parametrize("text", ["", "-1", "0", "2 apples", "1e9"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--workspace"):
        parse_bytes(text, "--workspace")


def test_a_wheel_carries_the_recipes(tmp_path: Path) -> None:
    """`pip install .` has them: the package holds a link to engines/targets."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout: nothing to clone")
    copy = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{root}", str(copy)], check=True)
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "bdist_wheel", "-d", str(tmp_path)]
    result = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-500:]
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"vtn_export/trt/recipes/{name}.toml" for name in EXPECTED} <= set(names)
