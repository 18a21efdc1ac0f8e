"""Bundle → engine beside it: forecast, typing and its gate, the worker, and one atomic step at the end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx

from vtn_export import __version__
from vtn_export.bundle import Bundle, writing_file
from vtn_export.errors import EngineError, OutputError
from vtn_export.onnx.precision import Kept
from vtn_export.trt import plugin_form, profile, sidecar
from vtn_export.trt.forecast import Forecast, forecast, remedy
from vtn_export.trt.plan import Plan
from vtn_export.trt.process import Listener, run_worker
from vtn_export.trt.sidecar import Sidecar
from vtn_export.trt.typed import TypedGraph, describe_checks, typed_graph
from vtn_export.untrusted import sha256

_EXTERNAL_BYTES = 1_000_000_000
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Built:
    """What one part's build came to. record: None after a dry run."""

    plan: Plan
    record: Sidecar | None
    cached: bool
    forecast: Forecast | None
    kept: Sequence[Kept]
    result: Mapping[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.plan.part,
            "cached": self.cached,
            "engine": None if self.record is None else f"{sidecar.FOLDER}/{self.record.name}.engine",
            "forecast": None if self.forecast is None else self.forecast.to_json(),
            "kept_fp32": [asdict(kept) for kept in self.kept],
            "warnings": list(self.plan.warnings),
            "result": dict(self.result),
            "record": None if self.record is None else self.record.to_json(),
            "seconds": round(self.seconds, 3),
        }


def build(
    bundle: Bundle, plan: Plan, listener: Listener = lambda _event: None, announce: Announce = lambda _line: None
) -> Built:
    """Build one part's engine, or find that it is there already.

    announce: called with lines for the person waiting (forecast, what stays float32), before the
    build. Raises EngineError, AccuracyError, MemoryForecastError, OutputError, PluginError.
    """
    start = time.perf_counter()
    key = plan.key
    name = plan.name(key)
    if not plan.options.dry_run:
        found = None if plan.options.force else _cached(bundle, name, key)
        if found is not None:
            return Built(plan, found, True, None, [], {}, time.perf_counter() - start)
        _prepare(bundle.path / sidecar.FOLDER)
    listener({"event": "stage", "stage": "type and check"})
    graph = typed_graph(
        bundle, plan.part, plan.precision, keep_fp32=plan.options.keep_fp32, calibrate=plan.options.calibrate
    )
    for line in _told(graph):
        announce(line)
    expected = _forecast(bundle, plan, graph, announce)
    with _onnx_file(graph, plan) as path:
        request = _request(bundle, plan, graph, path)
        del graph.model.graph.node[:], graph.model.graph.initializer[:]  # the worker reads the file
        if plan.options.dry_run:
            result = run_worker({**request, "engine": None}, listener)
            return Built(plan, None, False, expected, graph.kept, result, time.perf_counter() - start)
        record, result = _build_and_commit(bundle, plan, name, key, graph, expected, request, listener)
    return Built(plan, record, False, expected, graph.kept, result, time.perf_counter() - start)


def _cached(bundle: Bundle, name: str, key: str) -> Sidecar | None:
    """The engine of this very request, if it is there and whole."""
    path = sidecar.record_path(bundle, name)
    if not path.is_file():
        return None
    try:
        record = sidecar.read(path)
    except EngineError:
        return None
    return record if record.key == key and not sidecar.problems(record, bundle) else None


def _told(graph: TypedGraph) -> Iterator[str]:
    ranged = [kept for kept in graph.kept if kept.reason.startswith("values reach")]
    if ranged:
        yield f"{len(ranged)} nodes stay fp32 for their range:"
        yield from (f"  {kept.node}: {kept.reason}" for kept in ranged)
    if graph.products_kept:
        yield f"every matrix product and convolution stays fp32: nothing of this engine computes in {graph.precision}"
    for check in graph.checks:
        yield f"typed to {graph.precision}: {check.describe()}"


def _forecast(bundle: Bundle, plan: Plan, graph: TypedGraph, announce: Announce) -> Forecast:
    entry = bundle.graph(plan.part)
    expected = forecast(plan.part, entry, graph.weight_bytes, plan.profiles)
    budget = plan.target.memory_budget if plan.target is not None else None
    of = f" of {budget / 2**20:,.0f} MiB that {plan.target.title} has for an engine" if plan.target and budget else ""
    announce(expected.describe() + of)
    if plan.target is not None:
        hint = remedy(entry, graph.weight_bytes, plan.target.memory_budget, plan.profiles)
        plan.target.check_memory(expected.total, plan.part, hint)
    elif plan.gpu is not None and expected.total > plan.gpu.memory:
        announce(f"warning: {plan.gpu.name} has {plan.gpu.memory / 2**20:,.0f} MiB")
    return expected


def _request(bundle: Bundle, plan: Plan, graph: TypedGraph, path: Path) -> dict[str, Any]:
    spec = bundle.graph(plan.part).spec
    nodes = plugin_form.op_nodes(graph.model)
    return {
        "flavor": plan.flavor,
        "onnx": str(path),
        "source": f"{plan.source_file} ({plan.precision})",
        "precision": plan.precision,
        "fp32_products": graph.products_kept and bool(plan.options.keep_fp32),  # by a list of the caller's
        "io": {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)},
        "profiles": [profile.shapes(spec, p) for p in plan.profiles],
        "compute_capabilities": list(plan.compute_capabilities),
        "workspace": plan.options.workspace,
        "opt_level": plan.options.opt_level,
        "tf32": plan.options.tf32,
        "timing_cache": None if plan.options.timing_cache is None else str(plan.options.timing_cache.resolve()),
        "plugin": None if plan.plugin_path is None else str(plan.plugin_path),
        "plugin_instances": [plugin_form.fields_of(node) for node in nodes] if plan.plugin_path is not None else [],
    }


@contextlib.contextmanager
def _onnx_file(graph: TypedGraph, plan: Plan) -> Iterator[Path]:
    """The graph as a file: the bundle's own where nothing changed (parsers take 2 GB and more only from files)."""
    if graph.path is not None and plan.plugin is None:
        yield graph.path.resolve()
        return
    model = graph.model if plan.plugin is None else plugin_form.plugin_form(graph.model)
    with tempfile.TemporaryDirectory(prefix="vtn-trt-") as folder:
        path = Path(folder) / f"{plan.part}.onnx"
        try:
            large = model.ByteSize() > _EXTERNAL_BYTES
            onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror or error}; the typed graph does not fit there") from None
        yield path


def _build_and_commit(
    bundle: Bundle,
    plan: Plan,
    name: str,
    key: str,
    graph: TypedGraph,
    expected: Forecast,
    request: Mapping[str, Any],
    listener: Listener,
) -> tuple[Sidecar, dict[str, Any]]:
    """The engine first, its record last: an engine without a record is nothing, and the next build removes it."""
    record_file = sidecar.record_path(bundle, name)
    with contextlib.ExitStack() as stack:
        with writing_file(sidecar.engine_path(bundle, name)) as temporary:
            result = run_worker({**request, "engine": str(temporary.resolve())}, listener)
            digest, size = sha256(temporary), temporary.stat().st_size
            stack.enter_context(_lock(record_file.parent))
            record_file.unlink(missing_ok=True)
        record = Sidecar(
            name=name,
            part=plan.part,
            key=key,
            engine_sha256=digest,
            engine_bytes=size,
            flavor=plan.flavor,
            version=plan.version,
            compute_capabilities=plan.compute_capabilities,
            gpu=None if plan.gpu is None else plan.gpu.to_json(),
            platform=f"{platform.system().lower()}-{platform.machine()}",
            precision=plan.precision,
            tf32=plan.options.tf32,
            attention=plan.attention,
            kept_fp32=[asdict(kept) for kept in graph.kept],
            accuracy=describe_checks(graph.checks),
            profiles=plan.profiles,
            spec=bundle.graph(plan.part).spec,
            plugin=plan.plugin,
            source_file=plan.source_file,
            source_sha256=plan.source_sha256,
            forecast=expected.to_json(),
            options={
                "target": plan.options.target,
                "workspace": plan.options.workspace,
                "opt_level": plan.options.opt_level,
                "calibrate": None if plan.options.calibrate is None else plan.options.calibrate.name,
                "keep_fp32": list(plan.options.keep_fp32),
            },
            command=plan.command(bundle),
            build={key: value for key, value in result.items() if key != "version"},
            tools=_tools(),
        )
        with writing_file(record_file) as temporary:
            temporary.write_text(json.dumps(record.to_json(), indent=2) + "\n", encoding="utf-8")
    return record, result


def _prepare(folder: Path) -> None:
    """Make the folder, and remove what killed builds have left in it."""
    try:
        folder.mkdir(exist_ok=True)
        with _lock(folder):
            for item in folder.glob(".*.tmp"):
                pid = item.name.split(".")[-2]
                if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                    item.unlink(missing_ok=True)
            for engine in folder.glob("*.engine"):
                if not engine.with_suffix(".json").exists():
                    engine.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror or error}; nothing was changed") from None


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time puts an engine and its record in place."""
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _tools() -> dict[str, str]:
    found = {"vtn-export": __version__, "python": platform.python_version()}
    for name in ("onnx", "onnxruntime", "polygraphy"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
