"""Power mode, clocks and temperatures of made-up machines: a Jetson's files, a server's, and none at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtn_export.evaluate.context import machine_context, same_machine
from vtn_export.evaluate.power import power_state

ORIN = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
    "etc/nvpmodel.conf": (
        "< PARAM TYPE=FILE NAME=CPU_ONLINE >\n"
        "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_ONLINE CORE_0 1\n"
        "< POWER_MODEL ID=2 NAME=MODE_30W >\nCPU_ONLINE CORE_0 1\n"
        "< PM_CONFIG DEFAULT=2 >\n"
    ),
    "var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull",
    "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
    "sys/class/devfreq/17000000.gpu/cur_freq": "612000000\n",
    "sys/class/devfreq/17000000.gpu/min_freq": "306000000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1300500000\n",
    "sys/class/devfreq/17000000.gpu/governor": "nvhost_podgov\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",
    "sys/class/thermal/thermal_zone0/temp": "48250\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "not available\n",
    **{
        f"sys/devices/system/cpu/cpu{i}/cpufreq/{name}": f"{value}\n"
        for i in range(12)
        for name, value in {
            "scaling_governor": "schedutil",
            "scaling_cur_freq": 729600 + i,
            "scaling_min_freq": 115200,
            "scaling_max_freq": 1728000,
        }.items()
    },
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_a_jetson(tmp_path: Path) -> None:
    found = power_state(tree(tmp_path, ORIN))
    assert found["power_mode"] == "MODE_30W (2)" and found["jetson_clocks"] is False
    assert found["jetson"].startswith("R36 (release), REVISION: 4.3")
    assert found["model"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert found["cpu_governor"] == "schedutil" and found["cpu_khz"] == 729600
    # processors in their own order: 10 comes after 9
    assert [clock["current"] for clock in found["cpu_clocks_khz"]] == [729600 + i for i in range(12)]
    assert found["gpu_devfreq_hz"] == {
        "current": 612000000,
        "least": 306000000,
        "largest": 1300500000,
        "governor": "nvhost_podgov",
    }
    assert found["temperature_celsius"] == {"thermal_zone0 cpu-thermal": 48.25}


def test_jetson_clocks_pins_every_clock(tmp_path: Path) -> None:
    pinned = {name: ORIN[name.replace("min_freq", "max_freq")] if "min_freq" in name else ORIN[name] for name in ORIN}
    assert power_state(tree(tmp_path / "all", pinned))["jetson_clocks"] is True
    pinned["sys/devices/system/cpu/cpu7/cpufreq/scaling_min_freq"] = "115200\n"
    assert power_state(tree(tmp_path / "but one", pinned))["jetson_clocks"] is False


@pytest.mark.parametrize(
    ("status", "said"), [("pmode:0009 fmode:fanNull", "9"), ("garbage", None), ("pmode:", None), (None, None)]
)
def test_a_mode_that_the_table_does_not_name(tmp_path: Path, status: str | None, said: str | None) -> None:
    files = dict(ORIN)
    del files["var/lib/nvpmodel/status"]
    if status is not None:
        files["var/lib/nvpmodel/status"] = status
    assert power_state(tree(tmp_path, files))["power_mode"] == said


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    found = power_state(tmp_path)
    assert found.pop("temperature_celsius") == {} and found.pop("cpu_clocks_khz") == []
    assert set(found.values()) == {None}


def test_a_server_has_governors_and_no_jetson(tmp_path: Path) -> None:
    server = {name: text for name, text in ORIN.items() if "cpufreq" in name}
    found = power_state(tree(tmp_path, server))
    assert found["cpu_governor"] == "schedutil"
    assert found["jetson_clocks"] is None and found["power_mode"] is None and found["gpu_devfreq_hz"] is None


def test_another_power_mode_is_another_machine() -> None:
    here = machine_context(None)
    assert same_machine(here, here) == []
    assert same_machine(here, {**here, "power_mode": "MAXN (0)"}) == [f"power_mode: {here['power_mode']} and MAXN (0)"]
