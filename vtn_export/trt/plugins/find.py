"""Where the library is looked for, in this order: beside the bundle, VTN_PLUGIN_LIB, inside the package."""

from __future__ import annotations

import os
from pathlib import Path

from vtn_export.errors import PluginError
from vtn_export.trt.plugins.info import this_machine
from vtn_export.trt.plugins.sidecar import CONTRACT_VERSION, LIBRARY, read_sidecar

VARIABLE = "VTN_PLUGIN_LIB"
PACKAGE_FOLDER = Path(__file__).parent / "lib"


def find_library(compute_capability: str | None = None, bundle: Path | None = None) -> Path | None:
    """The library, its hash checked; None if there is none.

    A library that was named (beside the bundle or by VTN_PLUGIN_LIB) and is broken, of another machine or contract,
    or lacks the GPU, is a PluginError; one inside the package that is for another machine or GPU is passed over.
    """
    if bundle is not None and (bundle / LIBRARY).is_file():
        return _checked(bundle / LIBRARY, compute_capability, str(bundle / LIBRARY))
    if named := os.environ.get(VARIABLE):
        path = Path(named)
        if not path.is_file():
            raise PluginError(f"{VARIABLE}={named}: no such file; expected {LIBRARY}")
        return _checked(path, compute_capability, f"{VARIABLE}={named}")
    for path in sorted(PACKAGE_FOLDER.glob(f"**/{LIBRARY}")):
        sidecar = read_sidecar(path)
        gpu = compute_capability is None or compute_capability in sidecar.compute_capabilities
        if gpu and sidecar.machine == this_machine():
            return _checked(path, compute_capability, str(path))
    return None


def _checked(path: Path, compute_capability: str | None, named: str) -> Path:
    sidecar = read_sidecar(path)
    if sidecar.contract_version != CONTRACT_VERSION:
        raise PluginError(
            f"{named}: got version {sidecar.contract_version} of the op's contract, expected {CONTRACT_VERSION}; "
            "run vtn-export plugins build"
        )
    if sidecar.machine != this_machine():
        raise PluginError(
            f"{named}: got a library for {sidecar.machine}, expected {this_machine()}; "
            "run vtn-export plugins build on this machine"
        )
    if compute_capability is not None and compute_capability not in sidecar.compute_capabilities:
        raise PluginError(
            f"{named}: got kernels for {', '.join(sidecar.compute_capabilities)}, expected {compute_capability}; "
            f"run vtn-export plugins build --compute-capability {compute_capability}"
        )
    return path.resolve()
