"""`validate --bisect`: the smallest list of nodes to keep in float32 that meets a tolerance.

Every candidate list is judged as `vtn-export trt --keep-fp32 FILE` would use it: the same typing pass, the
same nodes kept for their range, and the rounding copy on the golden samples. Modules are ranked by what they
cost alone (everything else float32), QuickXplain (Junker, AAAI 2004) finds the modules and then the nodes
inside them, and a last pass drops nodes until dropping any one breaks the tolerance. In small graphs every
single node is tried as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from vtn_export.bundle import Bundle, writing_file
from vtn_export.errors import AccuracyError
from vtn_export.evaluate import metrics
from vtn_export.evaluate.forms import Bound
from vtn_export.onnx.precision import rounding_copy, tensor_types, to_precision
from vtn_export.runtime.golden import bundle_samples
from vtn_export.spec import Part, Precision
from vtn_export.trt import typed
from vtn_export.trt.ranges import session_of

# Up to this many nodes, a list of several is held against every single node: a minimal list need not be the
# smallest, and looking at all pairs or more would take hours.
_TRY_EVERY_SINGLE = 256

Progress = Callable[[int], None]  # called with the lists tried since the last call


@dataclass(frozen=True)
class PartKeep:
    """One part: the list's nodes that it has, its error without and with them, and the tolerance."""

    part: str
    nodes: tuple[str, ...]
    error_without: float
    error_with: float
    tolerance: float
    measure: str
    candidates: int
    tried: int


@dataclass(frozen=True)
class KeepList:
    """What `--bisect` found. nodes: by ONNX name, for every part together; the file's lines."""

    precision: str
    nodes: tuple[str, ...]
    parts: tuple[PartKeep, ...]
    file: str | None = None

    def write(self, path: Path) -> KeepList:
        """Write the list as `trt --keep-fp32` reads it, atomically. Raises OutputError."""
        lines = [f"# nodes to keep in float32 in {self.precision} (vtn-export validate --bisect)"]
        for part in self.parts:
            lines.append(
                f"# {part.part}: {part.measure} {part.error_without:.3g} without, {part.error_with:.3g} with, "
                f"tolerance {part.tolerance:.3g}"
            )
        with writing_file(path) as temporary:
            temporary.write_text("\n".join([*lines, *self.nodes]) + "\n", encoding="utf-8")
        return KeepList(self.precision, self.nodes, self.parts, str(path))


class Witness:
    """A part's error, typed with a list of nodes kept: as the engine's own gate computes it."""

    def __init__(self, bundle: Bundle, part: Part, precision: Precision, bound: Bound, progress: Progress) -> None:
        self.bundle, self.part, self.precision, self.bound = bundle, part, precision, bound
        self.near = frozenset(typed.near_limit(bundle, part, precision, None) if precision == "fp16" else ())
        self.model = typed.load(bundle.graph_path(part))
        self.names = {node.name for node in self.model.graph.node}
        self.samples = bundle_samples(bundle, part)
        self.output = bundle.graph(part).spec.outputs[0].name
        self.tried: dict[frozenset[str], float] = {}
        self._progress = progress

    def error(self, keep: Sequence[str]) -> float:
        """By the bound's measure; infinite where an output is not finite."""
        key = frozenset(keep) & self.names
        if key not in self.tried:
            graph = rounding_copy(to_precision(self.model, self.precision, self.names & {*key, *self.near})[0])
            found = []
            with session_of(_own(graph), self.bundle.graph(self.part).spec) as session:
                for sample in self.samples:
                    errors = metrics.errors(session.run(sample.inputs)[self.output], sample.expected[self.output])
                    found.append(errors.agreement if self.bound.relative else errors.max_abs)
            worst = metrics.worst(found)
            self.tried[key] = worst if math.isfinite(worst) else math.inf
            self._progress(1)
        return self.tried[key]

    def passes(self, keep: Sequence[str]) -> bool:
        return self.error(keep) <= self.bound.tolerance

    def candidates(self) -> list[str]:
        """Nodes that the typing pass types, in the order of the graph."""
        types = tensor_types(self.model)
        kept = {entry.node for entry in to_precision(self.model, self.precision, self.names & self.near)[1]}
        return [
            node.name
            for node in self.model.graph.node
            if node.name not in kept and any(types.get(name) == onnx.TensorProto.FLOAT for name in node.output)
        ]


def keep_list(
    bundle: Bundle,
    parts: Sequence[Part],
    precision: Precision,
    bound_of: Callable[[Part], Bound],
    progress: Progress = lambda _tried: None,
) -> KeepList:
    """One list for all parts: every part meets its bound with it, and without any one node some part does not.

    Halves come before `full`, whose nodes have their names. Raises AccuracyError when not even every
    node in float32 is enough, with the error that is left.
    """
    witnesses = [
        Witness(bundle, part, precision, bound_of(part), progress) for part in sorted(parts, key=lambda p: p == "full")
    ]
    nodes: list[str] = []
    while not all(witness.passes(nodes) for witness in witnesses):  # what one part needs may cost another one more
        for witness in witnesses:
            nodes += minimal(witness, nodes)
    nodes = _shrink(nodes, lambda some: all(witness.passes(some) for witness in witnesses))
    found = [
        PartKeep(
            part=witness.part,
            nodes=tuple(name for name in nodes if name in witness.names),
            error_without=witness.error(()),
            error_with=witness.error(nodes),
            tolerance=witness.bound.tolerance,
            measure="relative error" if witness.bound.relative else "absolute error",
            candidates=len(witness.candidates()),
            tried=len(witness.tried),
        )
        for witness in witnesses
    ]
    return KeepList(precision, tuple(nodes), tuple(found))


def minimal(witness: Witness, given: Sequence[str] = ()) -> list[str]:
    """Nodes to keep besides `given`; without any one of them the tolerance is not met. Raises AccuracyError."""
    if witness.passes(given):
        return []
    candidates = [name for name in witness.candidates() if name not in set(given)]
    if not witness.passes([*given, *candidates]):
        raise AccuracyError(
            f"--bisect: {witness.part} in {witness.precision} with all {len(candidates)} nodes in fp32: error "
            f"{witness.error([*given, *candidates]):.3g}, beyond {witness.bound.tolerance:.3g}; give a larger tolerance"
        )
    modules: dict[str, list[str]] = {}
    for name in candidates:
        modules.setdefault(name.rpartition("/")[0], []).append(name)

    def alone(module: str) -> float:
        """What this module costs when it alone is typed."""
        return witness.error([*given, *(name for name in candidates if name not in modules[module])])

    ranked = sorted(modules, key=lambda module: -alone(module))
    chosen = _quick_explain(
        lambda some: witness.passes([*given, *(name for module in some for name in modules[module])]), ranked
    )
    inside = [name for module in chosen for name in modules[module]]
    nodes = _quick_explain(lambda some: witness.passes([*given, *some]), inside)
    nodes = _shrink(nodes, lambda some: witness.passes([*given, *some]))
    if len(nodes) > 1 and len(candidates) <= _TRY_EVERY_SINGLE:
        nodes = next(([name] for name in candidates if witness.passes([*given, name])), nodes)
    order = {name: place for place, name in enumerate(candidates)}
    return sorted(nodes, key=order.__getitem__)


def _shrink(nodes: list[str], passes: Callable[[Sequence[str]], bool]) -> list[str]:
    """Drop nodes until none can be dropped: rounding is not monotone, so what was needed may not be any more."""
    shrinking = True
    while shrinking:
        shrinking = False
        for name in list(nodes):
            rest = [other for other in nodes if other != name]
            if passes(rest):
                nodes, shrinking = rest, True
    return nodes


def _quick_explain(passes: Callable[[Sequence[str]], bool], ranked: Sequence[str]) -> list[str]:
    """A minimal subset of `ranked` (all of which pass) that passes; those in front are preferred."""

    def explain(background: list[str], added: bool, rest: list[str]) -> list[str]:
        if added and passes(background):
            return []
        if len(rest) == 1:
            return rest
        half = (len(rest) + 1) // 2
        front, back = rest[:half], rest[half:]
        from_back = explain([*background, *front], True, back)
        from_front = explain([*background, *from_back], bool(from_back), front)
        return [*from_front, *from_back]

    found = explain([], False, list(ranked))
    # with a test that is not monotone, the halves may not add up: all of them always pass
    return found if passes(found) else list(ranked)


def _own(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy: a session takes its model's content, and a list that types nothing is the graph itself."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied
