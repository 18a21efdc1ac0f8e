"""Triton's Python backend loads this file as model.py; the work is in vtn_export/serve/endpoint.py beside it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

VERSION = Path(__file__).resolve().parent
# the sources that were exported with this model, before anything that is installed beside the server
sys.path.insert(0, str(VERSION))
# Triton's interpreter does not read this variable itself; a server outside a container needs it to find numpy
sys.path.extend(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)

import numpy as np
import triton_python_backend_utils as pb_utils

from vtn_export.serve.endpoint import Endpoint, Request, make_endpoint


class TritonPythonModel:
    """The names and signatures are Triton's."""

    endpoint: Endpoint

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.endpoint = make_endpoint(VERSION / "bundle", parameters)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        sequence = config.get("sequence_batching") or {}
        self.controls = [control["name"] for control in sequence.get("control_input", [])]

    def execute(self, requests: list[Any]) -> list[Any]:
        answers = self.endpoint.run([self._read(request) for request in requests])
        return [self._respond(answer) for answer in answers]

    def finalize(self) -> None:
        self.endpoint.close()

    def _read(self, request: Any) -> Request:
        tensors = {}
        for name in self.inputs:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            if tensor is not None:
                tensors[name] = _array(tensor)
        controls = {
            name: int(_array(pb_utils.get_input_tensor_by_name(request, name)).reshape(-1)[0]) for name in self.controls
        }
        return Request(tensors, controls)

    def _respond(self, answer: Any) -> Any:
        if isinstance(answer, str):
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer, pb_utils.TritonError.INVALID_ARG))
        return pb_utils.InferenceResponse([_tensor(name, value) for name, value in answer.items()])


_report = sys.unraisablehook


def _report_all_but_one(unraisable: Any) -> None:
    """Triton gives a consumed capsule a name of its own; NumPy complains of that, after all was freed."""
    if "PyCapsule_GetPointer called with incorrect name" not in str(unraisable.exc_value):
        _report(unraisable)


sys.unraisablehook = _report_all_but_one


# Both ways by DLPack. A Python backend built for NumPy 1 (25.08 is) reads an item's size from where NumPy 2 no longer
# keeps it: as_numpy() then repeats the first number, and an output has 0 bytes. DLPack asks NumPy for nothing.
def _array(tensor: Any) -> Any:
    return np.zeros(tensor.shape(), tensor.as_numpy().dtype) if 0 in tensor.shape() else np.from_dlpack(tensor)


def _tensor(name: str, value: Any) -> Any:
    if value.size == 0:
        return pb_utils.Tensor(name, value)
    return pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(value))
