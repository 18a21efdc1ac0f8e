"""The process that holds the parser and the builder: `python -m vtn_export.trt.worker REQUEST.json FD`.

An abort inside the library ends this process, not the command. It reads one request, writes events
to the file descriptor as JSON lines, writes the engine to the path it was given, and dies with its
parent. build.py is the other end.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtn_export.errors import EngineError, OutputError, VtnError
from vtn_export.spec import QUANTIZED_PRECISIONS
from vtn_export.trt import api as apis
from vtn_export.trt.plugin_form import preflight

_STEP_SECONDS = 0.05  # the builder reports thousands of steps a second
_PR_SET_PDEATHSIG = 1


class Events:
    """JSON lines to the parent."""

    def __init__(self, descriptor: int) -> None:
        self._stream = os.fdopen(descriptor, "w", encoding="utf-8", buffering=1)

    def send(self, event: str, **data: Any) -> None:
        self._stream.write(json.dumps({"event": event, **data}) + "\n")


class Progress:
    """IProgressMonitor's callbacks as events; steps are thinned."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._last = 0.0

    def phase_start(self, name: str, parent: str | None, steps: int) -> None:
        self._events.send("phase", name=name, parent=parent, steps=steps)

    def phase_finish(self, name: str) -> None:
        self._events.send("phase_done", name=name)

    def step_complete(self, name: str, step: int) -> bool:
        now = time.monotonic()
        if now - self._last >= _STEP_SECONDS:
            self._last = now
            self._events.send("step", name=name, step=step)
        return True


class Worker:
    """One request: parse, check, and unless it is a dry run build and write."""

    def __init__(self, request: Mapping[str, Any], events: Events) -> None:
        self.request, self.events = request, events
        self.api = apis.load(request["flavor"])
        self.trt = self.api.trt
        self.errors: deque[str] = deque(maxlen=4)
        self.logger = self.api.logger(self._log)

    def _log(self, severity: str, message: str) -> None:
        # a function used twice repeats its nodes' names; each is a warning of the parser's, and harmless
        if severity == "error":
            self.errors.append(" ".join(message.split())[:500])
        elif severity == "warning" and "already exists, the output tensors of this" not in message:
            self.events.send("warning", message=message[:500])

    def run(self) -> dict[str, Any]:
        trt, request = self.trt, self.request
        builder = trt.Builder(self.logger)
        network = builder.create_network(self.api.network_flags)
        if request["plugin"] is not None:
            registry = builder.get_plugin_registry()
            preflight(trt, registry, request["plugin"], request["plugin_instances"])
        self.events.send("stage", stage="parse")
        start = time.perf_counter()
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(request["onnx"]):
            raise EngineError(self._parse_error(parser))
        parse_seconds = time.perf_counter() - start
        self._check_io(network)
        layers = self._layers(network)
        quantized = self._check_types(network, layers)
        config = builder.create_builder_config()
        self._configure(builder, network, config)
        result: dict[str, Any] = {
            "version": self.api.version,
            "layers": len(layers),
            "layer_types": dict(Counter(layer["type"] for layer in layers).most_common()),
            "parse_seconds": round(parse_seconds, 3),
        }
        if quantized is not None:
            result["quantized_products"] = quantized
        if request["engine"] is None:
            result["layer_list"] = layers
        else:
            result.update(self._build(builder, network, config))
        result["cpu_seconds"] = round(time.process_time(), 3)  # what wall time is on a machine of one's own
        result["peak_bytes"] = _peak_bytes()
        return result

    def _build(self, builder: Any, network: Any, config: Any) -> dict[str, Any]:
        self.events.send("stage", stage="build")
        config.progress_monitor = self.api.progress_monitor(Progress(self.events))
        start = time.perf_counter()
        engine = builder.build_serialized_network(network, config)
        seconds = time.perf_counter() - start
        if engine is None:
            raise EngineError(f"{self.api.title} {self.api.version} built no engine: {self._last_error()}")
        self.events.send("stage", stage="write")
        try:
            with Path(self.request["engine"]).open("wb") as stream:
                stream.write(engine)
            self._save_timing_cache(config)
        except OSError as problem:
            raise OutputError(f"writing the engine: {problem.strerror or problem}; nothing was changed") from None
        return {"build_seconds": round(seconds, 3), "engine_bytes": engine.nbytes}

    def _configure(self, builder: Any, network: Any, config: Any) -> None:
        trt, request = self.trt, self.request
        if not request["tf32"]:
            config.clear_flag(trt.BuilderFlag.TF32)  # on by default, and fp32 would not be fp32
        if request["workspace"] is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace"])
        if request["opt_level"] is not None:
            config.builder_optimization_level = request["opt_level"]
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layer names for the inspector
        if self.api.builds_without_gpu:
            self.api.set_targets(config, request["compute_capabilities"])
        if request["timing_cache"] is not None:
            path = Path(request["timing_cache"])
            cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
            if not config.set_timing_cache(cache, False):
                raise EngineError(f"--timing-cache {path}: made by another version or on another GPU; remove it")
        for shapes in request["profiles"]:
            profile = _polygraphy_profile(request["flavor"], shapes).to_trt(builder, network)
            if config.add_optimization_profile(profile) < 0:
                raise EngineError(f"profile {shapes}: not taken by {self.api.title}: {self._last_error()}")

    def _save_timing_cache(self, config: Any) -> None:
        if self.request["timing_cache"] is None:
            return
        cache = config.get_timing_cache()
        path = Path(self.request["timing_cache"])
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(bytes(cache.serialize()))
        temporary.replace(path)

    def _parse_error(self, parser: Any) -> str:
        if parser.num_errors == 0:
            return f"{self.request['source']}: {self.api.title} cannot parse it: {self._last_error()}"
        error = parser.get_error(0)
        where = f"node {error.node_name()!r} ({error.node_operator()})" if error.node_operator() else "the file"
        reason = " ".join(str(error.desc()).split())
        return f"{self.request['source']}: {self.api.title} {self.api.version} cannot parse {where}: {reason[:300]}"

    def _last_error(self) -> str:
        return self.errors[-1] if self.errors else "it gave no reason"

    def _check_io(self, network: Any) -> None:
        """Names and types of the network against the bundle's interface."""
        got = {
            tensor.name: str(tensor.dtype).rpartition(".")[2].lower()
            for tensor in (
                *(network.get_input(i) for i in range(network.num_inputs)),
                *(network.get_output(i) for i in range(network.num_outputs)),
            )
        }
        names = {"float": "float32", "half": "float16", "bf16": "bfloat16"}
        got = {name: names.get(dtype, dtype) for name, dtype in got.items()}
        if got != self.request["io"]:
            raise EngineError(f"{self.request['source']}: got tensors {got}, expected {self.request['io']}")

    def _layers(self, network: Any) -> list[dict[str, str]]:
        found = []
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            dtype = str(layer.get_output(0).dtype).rpartition(".")[2] if layer.num_outputs else ""
            found.append({"name": layer.name, "type": str(layer.type).rpartition(".")[2], "dtype": dtype})
        return found

    def _check_types(self, network: Any, layers: list[dict[str, str]]) -> int | None:
        """Nobody gets fp32 who asked for less: the matrix products and convolutions say what they compute.

        Returns how many take 8-bit values on both sides, None for the other precisions.
        """
        precision = self.request["precision"]
        heavy = [layer for layer in layers if layer["type"] in ("MATRIX_MULTIPLY", "CONVOLUTION")]
        if precision in QUANTIZED_PRECISIONS:
            count = quantized_products(network, {"int8": "INT8", "fp8": "FP8"}[precision])
            if heavy and not count:
                raise EngineError(
                    f"{self.request['source']}: asked for {precision}, but none of its {len(heavy)} matrix products "
                    f"and convolutions takes {precision} on both sides"
                )
            return count
        wanted = {"fp16": "HALF", "bf16": "BF16"}.get(precision)
        if self.request.get("fp32_products"):
            return None
        if wanted and heavy and not any(layer["dtype"] == wanted for layer in heavy):
            raise EngineError(
                f"{self.request['source']}: asked for {precision}, "
                f"but none of its {len(heavy)} matrix products and convolutions is {wanted}"
            )
        return None


def quantized_products(network: Any, dtype: str) -> int:
    """How many products and convolutions of a parsed network read both sides from a DQ of this type.

    A Q/DQ network computes in 8 bits where it fuses: a product whose inputs are both dequantized, reshaped at
    most, is what the library's documentation promises to fuse. The engine alone knows; here is no GPU to ask it.
    """
    makers = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        makers.update({layer.get_output(i).name: layer for i in range(layer.num_outputs)})

    def is_dequantized(tensor: Any) -> bool:
        maker = makers.get(tensor.name)
        while maker is not None and _kind(maker) == "SHUFFLE":
            maker = makers.get(maker.get_input(0).name)
        return (
            maker is not None
            and _kind(maker) == "DEQUANTIZE"
            and str(maker.get_input(0).dtype).rpartition(".")[2] == dtype
        )

    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if _kind(layer) in ("MATRIX_MULTIPLY", "CONVOLUTION"):
            sides = [layer.get_input(i) for i in range(2) if i < layer.num_inputs and layer.get_input(i) is not None]
            count += len(sides) == 2 and all(is_dequantized(side) for side in sides)
    return count


def _kind(layer: Any) -> str:
    return str(layer.type).rpartition(".")[2]


def _polygraphy_profile(flavor: str, shapes: Mapping[str, Sequence[Sequence[int]]]) -> Any:
    """A Polygraphy Profile, which knows shape tensors and checks what TensorRT silently drops.

    Polygraphy chooses its flavour by this variable when it is first imported, so this runs in the
    worker alone.
    """
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if flavor == "rtx" else "0"
    from polygraphy.backend.trt import Profile

    profile = Profile()
    for name, (low, best, high) in shapes.items():
        profile.add(name, tuple(low), tuple(best), tuple(high))
    return profile


def main() -> int:
    """Exit code 0 after a `result` event, else that of the error, which is an event too."""
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    events = Events(int(sys.argv[2]))
    _die_with(request["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and kills
    try:
        events.send("result", **Worker(request, events).run())
    except VtnError as problem:
        events.send("error", kind=type(problem).__name__, message=str(problem))
        return problem.exit_code
    except MemoryError:
        events.send("error", kind="EngineError", message="out of memory while building; try a smaller profile")
        return EngineError.exit_code
    return 0


def _peak_bytes() -> int:
    """Largest resident memory of this program. Not ru_maxrss: that counts the parent's from before exec."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return 0


def _die_with(parent: int) -> None:
    """SIGKILL when the parent ends, however it ends: nobody else would wait for this build."""
    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
