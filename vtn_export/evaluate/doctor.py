"""What this machine can do. Nothing heavy is imported: packages are looked up, not loaded."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vtn_export import __version__
from vtn_export.deps import is_installed
from vtn_export.runtime.inference import available_memory
from vtn_export.runtime.session import available_cpus


@dataclass(frozen=True)
class Capability:
    name: str
    available: bool
    detail: str


def examine() -> dict[str, Any]:
    """JSON-ready: the machine, and every capability with what it runs on or what to install."""
    return {"machine": _machine(), "capabilities": [asdict(c) for c in _capabilities()]}


def _machine() -> dict[str, str]:
    memory = available_memory()
    jetson = Path("/etc/nv_tegra_release")
    facts = {
        "vtn-export": __version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "processor": processor_name(),
        "processors usable": str(available_cpus()),
        "memory free": "unknown" if memory is None else f"{memory / 1e9:.1f} GB",
        "disk free here": f"{shutil.disk_usage(Path.cwd()).free / 1e9:.1f} GB",
        "GPU": gpu_name() or "none found",
    }
    if jetson.is_file():
        facts["Jetson"] = jetson.read_text(errors="replace").splitlines()[0].strip("# ")
    return facts


def processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        return platform.processor() or "unknown"
    return platform.processor() or platform.machine()


def gpu_name() -> str | None:
    """The first NVIDIA GPU as nvidia-smi names it; None without one."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            output = subprocess.run(
                [program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
            )
            if output.returncode == 0 and output.stdout.strip():
                return output.stdout.splitlines()[0].strip()
        except (OSError, subprocess.TimeoutExpired):
            return None
    model = Path("/proc/device-tree/model")
    if Path("/dev/nvhost-gpu").exists() and model.is_file():
        return model.read_text(errors="replace").strip("\0")
    return None


def _packages(*names: str) -> str:
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _capabilities() -> list[Capability]:
    export = all(is_installed(name) for name in ("torch", "timm", "onnxscript", "safetensors"))
    rtx, tensorrt = is_installed("tensorrt_rtx"), is_installed("tensorrt")
    gpu = gpu_name() is not None
    nvcc = shutil.which("nvcc") or next(
        (str(p) for p in (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc",) if p.is_file()), None
    )
    return [
        Capability("run and validate bundles (ONNX Runtime)", True, _packages("onnxruntime", "onnx", "numpy")),
        Capability(
            "run bundles on the CPU by OpenVINO (--backend openvino)",
            is_installed("openvino"),
            _packages("openvino") or "pip install 'vtn-export[openvino]'",
        ),
        Capability("decode videos", True, _packages("av")),
        Capability(
            "export checkpoints, PyTorch backend",
            export,
            _packages("torch", "timm", "onnxscript") if export else "pip install 'vtn-export[export]'",
        ),
        Capability(
            "build TensorRT-RTX engines (no GPU needed)",
            rtx,
            _packages("tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
            if rtx
            else "pip install 'vtn-export[rtx]' (x86-64 only)",
        ),
        Capability(
            "build and run TensorRT engines",
            tensorrt and gpu,
            _packages("tensorrt") if tensorrt and gpu else _tensorrt_remedy(tensorrt, gpu),
        ),
        Capability("compile CUDA plugins", nvcc is not None, nvcc or "no nvcc on the PATH or under CUDA_HOME"),
    ]


def _tensorrt_remedy(tensorrt: bool, gpu: bool) -> str:
    if not gpu:
        return "needs an NVIDIA GPU and its driver"
    return "" if tensorrt else "JetPack brings it; elsewhere pip install tensorrt"
