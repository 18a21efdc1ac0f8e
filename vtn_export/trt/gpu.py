"""The GPU of this machine: asked through the driver, absent without an error. No TensorRT here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from vtn_export.deps import is_installed
from vtn_export.errors import GpuError


@dataclass(frozen=True)
class Gpu:
    """The first CUDA device. Memory in bytes; driver as CUDA counts it, 13000 for 13.0."""

    name: str
    compute_capability: str  # "8.7"
    driver: int
    memory: int
    integrated: bool  # shares the host's memory, as on a Jetson

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def require_gpu() -> Gpu:
    """The GPU, or GpuError saying why there is none."""
    gpu, reason = _look()
    if gpu is None:
        raise GpuError(f"no NVIDIA GPU answers ({reason}); run this on the machine with the GPU")
    return gpu


def find_gpu() -> Gpu | None:
    """The GPU, or None."""
    return _look()[0]


@lru_cache(maxsize=1)
def _look() -> tuple[Gpu | None, str]:
    if not is_installed("cuda"):
        return None, "cuda-python is not installed: pip install 'vtn-export[trt]'"
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        return None, f"cuda-python cannot be used: {error}"
    status, count = runtime.cudaGetDeviceCount()
    if int(status) != 0 or not count:
        return None, f"cudaGetDeviceCount: {status.name}"
    status, properties = runtime.cudaGetDeviceProperties(0)
    if int(status) != 0:
        return None, f"cudaGetDeviceProperties: {status.name}"
    status, driver = runtime.cudaDriverGetVersion()
    name = properties.name
    return (
        Gpu(
            name=name.decode(errors="replace") if isinstance(name, bytes) else str(name),
            compute_capability=f"{properties.major}.{properties.minor}",
            driver=int(driver),
            memory=int(properties.totalGlobalMem),
            integrated=bool(properties.integrated),
        ),
        "",
    )
