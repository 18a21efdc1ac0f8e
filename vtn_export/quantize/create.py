"""Bundle → quantized bundle: clips, calibration, the accuracy gate, and one atomic step at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vtn_export import __version__
from vtn_export.bundle import GOLDEN, LABELS, Bundle, GraphEntry, check_target, write_manifest, writing
from vtn_export.errors import AccuracyError, QuantizeError
from vtn_export.evaluate.labelled import LabelledSet
from vtn_export.onnx.check import Check, require_passed
from vtn_export.onnx.part import write_and_check
from vtn_export.onnx.precision import Kept
from vtn_export.quantize import clips as clip_module
from vtn_export.quantize.calibrate import ClipRunner, Method, Observer, ranges_of, watched
from vtn_export.quantize.candidate import Candidates
from vtn_export.quantize.clips import Clip, Clips
from vtn_export.quantize.gate import Gate, Verdict, fewest_restored
from vtn_export.quantize.layers import Layer, check_excluded, find_layers
from vtn_export.runtime.golden import bundle_samples
from vtn_export.runtime.golden import samples as golden_samples
from vtn_export.spec import FRAME_INDEX, FRAMES, Array, Part, QuantizedPrecision
from vtn_export.trt import typed

RESTORED = "restored: the accuracy gate"  # the reason of a layer that went back to fp16

Step = Callable[[str], AbstractContextManager[Any]]
Bar = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]  # (what, how many) -> advance


@dataclass(frozen=True)
class Options:
    """calibrate: a folder or a video; None is random noise, which nobody gets who has not asked for it.

    max_drop: points of top-1. frames: looked at in a clip; most_clips: see clips.py.
    """

    precision: QuantizedPrecision
    calibrate: Path | None
    method: Method = "max"
    exclude: Sequence[str] = ()
    max_drop: float = 1.0
    labelled: LabelledSet | None = None
    most_clips: int = clip_module.MOST
    frames: int = clip_module.FRAMES


@dataclass(frozen=True)
class Quantized:
    """What was written, and what it came to."""

    bundle: Bundle
    layers: Sequence[str]
    kept: Sequence[Kept]
    verdict: Verdict
    sensitivity: Mapping[str, float]  # empty when every layer could stay quantized
    checks: Sequence[Check]
    clips: Clips


@dataclass(frozen=True)
class _Choice:
    layers: Sequence[str]
    verdict: Verdict
    sensitivity: Mapping[str, float]
    attempts: Sequence[Mapping[str, Any]]


def quantize(
    bundle: Bundle,
    out: Path,
    options: Options,
    *,
    step: Step = lambda _name: nullcontext(),
    bar: Bar = lambda _what, _total: nullcontext(lambda _done: None),
    announce: Callable[[str], None] = lambda _line: None,
) -> Quantized:
    """Write a quantized copy of an fp32 bundle to `out`, whole or not at all.

    announce: called with what the person waiting should know about the clips, before the long work.
    Raises QuantizeError (not an fp32 bundle, nothing to quantize), CalibrationError, DatasetError, UsageError
    (--exclude), OutputError, and AccuracyError when no list of layers keeps within max_drop.
    """
    check_target(out)
    runner = _require_source(bundle, out)
    layers, kept = _layers(bundle, runner, options)
    with tempfile.TemporaryDirectory(prefix="vtn-quantize-") as folder:
        clips = _clips(bundle, options, Path(folder), bar)
        for line in clips.remarks():
            announce(line)
        golden = _golden_clip(bundle)
        largest, references = _calibrate(bundle, runner, layers, options.method, clips, golden, bar)
        candidates = Candidates(bundle, options.precision, layers, largest)
        gate = Gate(bundle, [*clips, golden], references, options.labelled)
        if options.labelled is not None:
            with bar("fp32 on labelled videos", gate.steps) as advance:
                gate.prepare(advance)
        choice = _choose(candidates, gate, runner, options.max_drop, bar)
    kept += [Kept(layer.name, RESTORED) for layer in layers if layer.name not in choice.layers]
    record = _record(bundle, options, clips, choice, kept)
    checks = _write(bundle, out, candidates, options.precision, choice.layers, record, step)
    return Quantized(Bundle.open(out), choice.layers, kept, choice.verdict, choice.sensitivity, checks, clips)


def _require_source(bundle: Bundle, out: Path) -> ClipRunner:
    have = bundle.manifest.precision
    if bundle.manifest.quantization is not None:
        raise QuantizeError(
            f"bundle {bundle.path}: is quantized already ({have}); quantize the fp32 bundle that it was made from"
        )
    if have != "fp32":
        raise QuantizeError(
            f"bundle {bundle.path}: got {have}, whose weights are rounded already; expected an fp32 bundle "
            f"(vtn-export onnx --precision fp32)"
        )
    if out.resolve() == bundle.path.resolve():
        raise QuantizeError(f"--out {out}: is the bundle to quantize; choose another folder")
    return ClipRunner(bundle)


def _layers(bundle: Bundle, runner: ClipRunner, options: Options) -> tuple[list[Layer], list[Kept]]:
    layers: list[Layer] = []
    kept: list[Kept] = []
    models = [typed.load(bundle.graph_path(part)) for part in runner.parts]
    check_excluded(models, options.exclude)
    for model in models:
        found, left = find_layers(model, options.precision, options.exclude)
        layers += found
        kept += left
    if not layers:
        raise QuantizeError(f"bundle {bundle.path}: no layer to quantize to {options.precision} ({kept[0].reason})")
    return layers, kept


def _clips(bundle: Bundle, options: Options, folder: Path, bar: Bar) -> Clips:
    if options.calibrate is None:
        return clip_module.noise_clips(bundle, folder, options.frames)
    videos = clip_module.list_videos(options.calibrate)
    with bar("calibration videos", min(len(videos), options.most_clips)) as advance:
        return clip_module.read_clips(
            bundle, videos, folder, most=options.most_clips, frames=options.frames, progress=advance
        )


def _golden_clip(bundle: Bundle) -> Clip:
    """The real frames that travel with the bundle, as one more clip of the gate."""
    sample = golden_samples(bundle.file(GOLDEN), "full", bundle.manifest.preprocessing, "uint8")[0]
    return Clip(sample.inputs[FRAMES][0], sample.inputs[FRAME_INDEX][0])


def _calibrate(
    bundle: Bundle,
    runner: ClipRunner,
    layers: Sequence[Layer],
    method: Method,
    clips: Clips,
    golden: Clip,
    bar: Bar,
) -> tuple[dict[tuple[str, int], float], list[Array]]:
    """What each scale has to hold, and float32's logits of the clips and of the golden one, from the same runs."""
    observer = Observer(method)
    references = []
    with ExitStack() as stack:
        opened: dict[Part, Any] = {}
        for part in runner.parts:
            model = typed.load(bundle.graph_path(part))
            names = {node.name for node in model.graph.node}
            own = [layer for layer in layers if layer.name in names]
            opened[part] = watched(stack, model, bundle.graph(part).spec, own, observer)
        with bar("calibrate", len(clips)) as advance:
            for clip in clips:
                references.append(runner.logits(opened, clip))
                advance(1)
        observer.active = False
        references.append(runner.logits(opened, golden))
    largest: dict[tuple[str, int], float] = {}
    for part in runner.parts:
        model = typed.load(bundle.graph_path(part))
        names = {node.name for node in model.graph.node}
        largest.update(ranges_of(model, [layer for layer in layers if layer.name in names], observer))
    return largest, references


def _choose(candidates: Candidates, gate: Gate, runner: ClipRunner, max_drop: float, bar: Bar) -> _Choice:
    """Every layer, or all but the fewest of the most harmful that keep within `max_drop`. Raises AccuracyError."""
    names = [layer.name for layer in candidates.layers]
    verdicts: dict[int, Verdict] = {}
    order: list[str] = []

    def judge(restored: int) -> bool:
        chosen = set(names) - set(order[:restored])
        what = f"accuracy, {restored} of {len(names)} layers restored" if restored else "accuracy"
        with candidates.sessions(runner.parts, chosen) as sessions, bar(what, gate.steps) as advance:
            verdicts[restored] = gate.judge(sessions, advance)
        return verdicts[restored].drop <= max_drop + 1e-9

    def attempts() -> list[dict[str, Any]]:
        return [{"restored": count, "drop": verdicts[count].drop} for count in sorted(verdicts)]

    if judge(0):
        return _Choice(names, verdicts[0], {}, attempts())
    with candidates.switched(runner.parts) as switched, bar("sensitivity, layers", len(names)) as advance:

        def run(clip: Clip, frames: slice, flags: Array) -> Array:
            switched.flags = flags
            return runner.logits(switched, clip, frames)

        scores = gate.sensitivity(run, names, advance)
    order += scores
    restored = fewest_restored(len(names), judge)
    if restored is None:
        last = verdicts[max(verdicts)]
        raise AccuracyError(
            f"{candidates.precision}: {last.describe()} with {max(verdicts)} of {len(names)} layers back in fp16; "
            f"--max-drop allows {max_drop:g}: no bundle was written; try another --method or more clips, or allow more"
        )
    chosen = [name for name in names if name not in set(order[:restored])]
    return _Choice(chosen, verdicts[restored], scores, attempts())


def _record(bundle: Bundle, options: Options, clips: Clips, choice: _Choice, kept: Sequence[Kept]) -> dict[str, Any]:
    """The manifest's `quantization` (docs/quantize.md)."""
    manifest = bundle.manifest
    labelled = options.labelled
    return {
        "method": options.method,
        "source": {
            "name": manifest.name,
            "precision": manifest.precision,
            "graphs": {part: manifest.files[entry.file] for part, entry in manifest.graphs.items()},
        },
        "calibration": clips.to_json(),
        "layers": list(choice.layers),
        "kept": [{"layer": one.node, "reason": one.reason} for one in kept],
        "accuracy": {
            **choice.verdict.to_json(),
            "max_drop": options.max_drop,
            "dataset": None if labelled is None else labelled.source.name,
            "attempts": list(choice.attempts),
        },
        "sensitivity": [{"layer": layer, "error": error} for layer, error in choice.sensitivity.items()],
    }


def _write(
    bundle: Bundle,
    out: Path,
    candidates: Candidates,
    precision: QuantizedPrecision,
    chosen: Sequence[str],
    record: Mapping[str, Any],
    step: Step,
) -> list[Check]:
    checks: list[Check] = []
    graphs: dict[Part, GraphEntry] = {}
    with writing(out) as folder:
        for name in (LABELS, GOLDEN):
            shutil.copyfile(bundle.file(name), folder / name)
        for part, source in bundle.manifest.graphs.items():
            with step(f"write {part}"):
                graph = candidates.graph(part, chosen)
                samples = bundle_samples(bundle, part)
                entry, found = write_and_check(folder, part, graph, source.spec, samples, precision, None)
            graphs[part] = entry
            checks += found
        require_passed(checks)
        tools = {**bundle.manifest.tools, "vtn-export": __version__, "onnxruntime": version("onnxruntime")}
        write_manifest(
            folder,
            replace(bundle.manifest, precision=precision, graphs=graphs, tools=tools, files={}, quantization=record),
        )
    return checks
