"""OpenVINO on the CPU: the second CPU backend, `--backend openvino`. Torch-free.

Its ONNX reader does not expand model-local functions, so it reads the portable graph with the op's body
inlined. Weights over 1 GB stay in their file beside the graph, which OpenVINO maps.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from vtn_export.deps import require
from vtn_export.errors import BackendError
from vtn_export.runtime.inlined import inlined
from vtn_export.runtime.session import SessionBase, available_cpus
from vtn_export.spec import Array, GraphSpec


class OpenVinoSession(SessionBase):
    """`path`: a portable ONNX graph, its hash compared before. Computes in float32, whatever the graph's type.

    Compiled anew each time: the largest of the presets takes seconds (`compile_seconds`), and a cache of
    compiled models would be a file to trust that no hash in the bundle covers.
    """

    backend = "openvino"

    def __init__(self, path: Path, spec: GraphSpec, *, threads: int | None = None) -> None:
        """Raises MissingDependencyError, BackendError."""
        super().__init__(spec)
        openvino: Any = require("openvino")
        start = time.perf_counter()
        try:
            graph = _readable(path)
            core = openvino.Core()
            model = core.read_model(graph.SerializeToString())
            del graph
            compiled = core.compile_model(model, "CPU", _options(threads))
            self._request: Any = compiled.create_infer_request()
        except BackendError:
            raise
        except Exception as error:  # openvino's are RuntimeErrors, protobuf's and onnx's have no common base
            raise BackendError(f"openvino: cannot load {path.name}: {_reason(error)}") from None
        self.compile_seconds = time.perf_counter() - start
        self._outputs = [tensor.name for tensor in spec.outputs]

    def _run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if self._request is None:
            raise BackendError("openvino: the session is closed")
        try:
            found = self._request.infer(dict(inputs), share_inputs=True)
            return {name: found[name] for name in self._outputs}
        except Exception as error:  # see above
            raise BackendError(f"openvino: {_reason(error)}") from None

    def close(self) -> None:
        self._request = None


def _options(threads: int | None) -> dict[str, Any]:
    return {
        # float32 sums on every CPU: with AMX or on ARM it would choose bf16 or fp16 by itself
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads or available_cpus(),
    }


def _readable(path: Path) -> onnx.ModelProto:
    """The graph inlined; external data by its absolute path, since the graph itself is handed over in memory."""
    graph = inlined(onnx.load(path, load_external_data=False))
    data = path.with_name(f"{path.name}.data")  # the one file that the bundle has compared
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                if entry.value != data.name:
                    raise BackendError(f"openvino: {path.name}: weights in {entry.value!r}, expected {data.name}")
                entry.value = str(data.resolve())
    return graph


def _reason(error: BaseException) -> str:
    """The last line that says something: OpenVINO puts the places in its sources first."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (told[-1] if told else " ".join(lines))[:300] or type(error).__name__
