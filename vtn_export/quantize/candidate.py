"""A bundle's graphs with some of their layers quantized: typed as they would be written, or switched at run time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import onnx

from vtn_export.bundle import Bundle
from vtn_export.evaluate.eval import Parts
from vtn_export.onnx.precision import rounding_copy, to_precision
from vtn_export.quantize.layers import Layer
from vtn_export.quantize.place import SWITCHES, Ranges, place
from vtn_export.runtime.session import Session
from vtn_export.spec import Array, GraphSpec, Part, QuantizedPrecision, TensorSpec
from vtn_export.trt import typed
from vtn_export.trt.ranges import session_of


class Candidates:
    """Graphs of one bundle by the layers that are quantized in them."""

    def __init__(self, bundle: Bundle, precision: QuantizedPrecision, layers: Sequence[Layer], largest: Ranges) -> None:
        self.bundle, self.precision, self.layers, self.largest = bundle, precision, layers, largest

    def graph(self, part: Part, chosen: Collection[str]) -> onnx.ModelProto:
        """The part with the chosen layers quantized and everything else fp16, or float32 where fp16 would not do."""
        model = typed.load(self.bundle.graph_path(part))
        names = {node.name for node in model.graph.node}
        outputs = {value.name for value in model.graph.output}
        layers = [layer for layer in self.layers if layer.name in chosen and layer.name in names]
        placed = place(model, layers, self.largest, self.precision)
        wide = names & set(typed.near_limit(self.bundle, part, "fp16", None))
        wide |= {node.name for node in placed.graph.node if outputs & set(node.output)}
        # the DQs before a float32 product are float32 too: with a Cast between, nothing fuses them
        wide |= {
            node.name
            for node in placed.graph.node
            if node.op_type == "DequantizeLinear" and node.name.rpartition("/")[0] in wide
        }
        return to_precision(placed, "fp16", wide)[0]

    @contextmanager
    def sessions(self, parts: Sequence[Part], chosen: Collection[str]) -> Iterator[Parts]:
        """The rounding copies of these parts in ONNX Runtime."""
        with ExitStack() as stack:
            opened: dict[Part, Session] = {}
            for part in parts:
                graph = rounding_copy(self.graph(part, chosen))
                opened[part] = stack.enter_context(session_of(graph, self.bundle.graph(part).spec))
            yield opened

    @contextmanager
    def switched(self, parts: Sequence[Part]) -> Iterator[Switched]:
        """The parts in float32, each layer quantized or not as `Switched.flags` says."""
        index = {layer.name: number for number, layer in enumerate(self.layers)}
        switches = TensorSpec(SWITCHES, "bool", (len(self.layers),))
        with ExitStack() as stack:
            opened: dict[Part, Session] = {}
            for part in parts:
                model = typed.load(self.bundle.graph_path(part))
                names = {node.name for node in model.graph.node}
                own = [layer for layer in self.layers if layer.name in names]
                spec = self.bundle.graph(part).spec
                graph = place(model, own, self.largest, self.precision, switched=index)
                wider = GraphSpec((*spec.inputs, switches), spec.outputs)
                opened[part] = stack.enter_context(session_of(graph, wider))
            yield Switched(opened, len(self.layers))


class Switched:
    """Sessions by part that share `flags`, bool `[layers]`: which layers are quantized."""

    def __init__(self, sessions: Mapping[Part, Session], count: int) -> None:
        self.flags: Array = np.zeros(count, bool)
        self._parts = {part: _Part(session, self) for part, session in sessions.items()}

    def __getitem__(self, part: Part) -> Session:
        return self._parts[part]


class _Part:
    def __init__(self, session: Session, owner: Switched) -> None:
        self.spec, self.backend = session.spec, session.backend
        self._session, self._owner = session, owner

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._session.run({**inputs, SWITCHES: self._owner.flags})

    def close(self) -> None:
        self._session.close()
