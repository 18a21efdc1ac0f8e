"""BUNDLE/openvino/PART.onnx: graphs that libvtn's CPU executor reads, beside the bundle. Torch-free.

OpenVINO's ONNX reader does not expand model-local functions and there is no Python on the device, so the inlined
graph is written once. Its record names the graph it was made from and its own SHA-256; the bundle's manifest is
not touched, and an export in place of the bundle leaves these files behind.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vtn_export.bundle import Bundle, writing_file
from vtn_export.errors import BundleError
from vtn_export.spec import Part

SCHEMA_VERSION = 1
FOLDER = "openvino"
_LARGEST = (1 << 31) - (1 << 20)  # of one protobuf message


def write_cpu_form(bundle: Bundle, folder: Path | None = None) -> list[Path]:
    """Write every part's graph and record into `folder` (default: the bundle's `openvino`). Returns the graphs.

    Graph first, record last, each in one step. Raises BundleError (int8, which OpenVINO computes otherwise than an
    engine does: backends.py; a graph over 2 GB), OutputError.
    """
    if bundle.manifest.precision == "int8":
        raise BundleError(
            f"bundle {bundle.path}: got int8, whose Q/DQ OpenVINO places anew; export the fp32 bundle for the CPU"
        )
    folder = folder or bundle.path / FOLDER
    return [_write(bundle, part, folder) for part in bundle.manifest.graphs]


def _write(bundle: Bundle, part: Part, folder: Path) -> Path:
    import onnx

    from vtn_export.runtime.inlined import inlined

    source = bundle.graph(part).file
    model = inlined(onnx.load(bundle.graph_path(part)))
    if model.ByteSize() > _LARGEST:
        raise BundleError(f"bundle {bundle.path}: {source} is over 2 GB; use TensorRT in libvtn")
    data = model.SerializeToString()
    graph, record = folder / f"{part}.onnx", folder / f"{part}.json"
    with writing_file(graph) as temporary:
        temporary.write_bytes(data)
    told = {
        "schema_version": SCHEMA_VERSION,
        "part": part,
        "source_file": source,
        "source_sha256": bundle.manifest.files[source],
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    with writing_file(record) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return graph
