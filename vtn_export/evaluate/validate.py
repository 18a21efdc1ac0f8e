"""`vtn-export validate`: a form of a bundle against PyTorch's stored numbers, or against another form.

Three sources of inputs: the golden samples, seeded samples of any frame count, and videos
(evaluate/videos.py). A NaN or an infinity is a failure that names its layer, whatever the tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vtn_export.bundle import Bundle
from vtn_export.errors import CheckpointError, EngineError, MemoryForecastError, UsageError
from vtn_export.evaluate.bisect import KeepList
from vtn_export.evaluate.finite import NotFinite, finite_probe, first_in_torch
from vtn_export.evaluate.forms import Bound, Form
from vtn_export.evaluate.layers import LayerReport
from vtn_export.evaluate.metrics import HISTOGRAM_LOG10_EDGES
from vtn_export.evaluate.rule import Compared, OutputCheck, Rule, check_output, pair_bound
from vtn_export.runtime.golden import Sample, bundle_samples
from vtn_export.runtime.inference import require_memory_for_full
from vtn_export.spec import FEATURES, FRAME_INDEX, FRAMES, LENGTHS, LOGITS, Array, Part

SCHEMA, SCHEMA_VERSION = "vtn-export/validate", 1
GOLDEN_OUTPUTS = "golden"

Step = Callable[[str], AbstractContextManager[None]]


@dataclass
class Validation:
    """Everything one run of `validate` found; `to_json` is the document of docs/validate.md."""

    bundle: str
    name: str
    precision: str
    backend: str
    against: str
    emulated: bool
    checks: list[OutputCheck] = field(default_factory=list)
    not_finite: list[NotFinite] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)  # what, why
    unreadable: list[dict[str, str]] = field(default_factory=list)  # videos of a folder: what, why
    layers: list[LayerReport] = field(default_factory=list)
    bisect: KeepList | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        failed = [entry.describe() for entry in self.not_finite]
        return failed + [check.describe() for check in self.checks if not check.passed]

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "bundle": self.bundle,
            "name": self.name,
            "precision": self.precision,
            "backend": self.backend,
            "against": self.against,
            "emulated": self.emulated,
            "passed": self.passed,
            "histogram_log10_edges": list(HISTOGRAM_LOG10_EDGES),
            "checks": [check.to_json() for check in self.checks],
            "not_finite": [entry.to_json() for entry in self.not_finite],
            "skipped": self.skipped,
            "unreadable": self.unreadable,
            "layers": [report.to_json() for report in self.layers],
            "bisect": None if self.bisect is None else asdict(self.bisect),
            "seconds": self.seconds,
        }


class Validator:
    """One form against a reference: another form, or (None) the outputs stored in the bundle."""

    def __init__(
        self,
        form: Form,
        reference: Form | None,
        rule: Rule,
        *,
        step: Step = lambda _name: nullcontext(),
    ) -> None:
        self.form, self.reference, self.rule, self.step = form, reference, rule, step
        self.bundle: Bundle = form.bundle
        self.against = "PyTorch" if reference is None else reference.name
        self.not_finite: list[NotFinite] = []
        self.skipped: list[dict[str, str]] = []

    def golden(self, part: Part) -> list[OutputCheck]:
        """One part on the golden samples (of an engine: on those that its profiles take)."""
        samples = self._covered(part, bundle_samples(self.bundle, part))
        if not samples:  # nothing compared is nothing proved
            raise EngineError(f"engine of {part}: its profiles take none of the golden samples; widen them")
        with self.step(f"golden samples, {part}"):
            checks = self._check(part, "golden", samples)
        if self.form.has_graph:
            with self.step(f"every layer finite, {part}"):
                self._probe(part, samples)
        return checks

    def frames(self, part: Part, counts: Sequence[int], seed: int = 0) -> list[OutputCheck]:
        """Seeded samples of these frame counts, indices that jump; needs a live reference.

        What `full` has no memory for is skipped and said.
        """
        if self.reference is None:
            raise UsageError("--frames: golden outputs exist for the golden samples alone; give --against FORM")
        wanted = []
        for count in counts:
            try:
                if part == "full":
                    require_memory_for_full(self.bundle, count)
                wanted.append(count)
            except MemoryForecastError as error:
                self.skipped.append({"what": f"{part}, {count} frames", "why": str(error)})
        samples = self._covered(part, [seeded_sample(self.bundle, part, count, seed) for count in wanted])
        with self.step(f"{', '.join(str(count) for count in wanted) or 'no'} frames, {part}"):
            return self._check(part, "frames", samples) if samples else []

    def bound(self, part: Part, max_expected: float) -> Bound:
        own = self.form.bound(part)
        return own if self.reference is None else pair_bound(own, self.reference.bound(part), max_expected)

    def look_for_origin(self, part: Part, sample: str, inputs: Mapping[str, Array]) -> None:
        """A result was not finite: name the layer, on whichever side it is."""
        for form in (self.form, self.reference):
            if form is None:
                continue
            if form.is_torch:
                found = first_in_torch(form.model(), lambda form=form: form[part].run(inputs), part, sample)
            else:
                with finite_probe(_graph(form, part), self.bundle.graph(part).spec) as probe:
                    found = probe.first(part, sample, inputs)
            if found is not None:
                self._add(found)
                return
        outputs = self.bundle.graph(part).spec.outputs[0].name
        self._add(NotFinite(part, sample, f"{outputs} ({self.form.name} alone)", "", "NaN or Inf"))

    def _add(self, found: NotFinite) -> None:
        if not any((other.part, other.layer) == (found.part, found.layer) for other in self.not_finite):
            self.not_finite.append(found)

    def _covered(self, part: Part, samples: list[Sample]) -> list[Sample]:
        if self.form.name != "trt":
            return samples
        from vtn_export.trt.session import TrtSession

        session = self.form[part]
        assert isinstance(session, TrtSession)
        covered = [sample for sample in samples if session.covers(sample.inputs)]
        for sample in samples:
            if sample not in covered:
                self.skipped.append({"what": f"{part}: {sample.name}", "why": "no profile of the engine takes it"})
        return covered

    def _check(self, part: Part, source: str, samples: Sequence[Sample]) -> list[OutputCheck]:
        output = self.bundle.graph(part).spec.outputs[0].name
        if not samples:
            return []
        compared = list(self._compared(part, output, samples))
        largest = max(float(np.max(np.abs(one.expected.astype(np.float64)))) for one in compared)
        bound = self.bound(part, largest if math.isfinite(largest) else 1.0)
        for one, sample in zip(compared, samples, strict=True):
            if not (np.isfinite(one.got).all() and np.isfinite(one.expected).all()):
                self.look_for_origin(part, sample.name, sample.inputs)
        return [check_output(part, output, source, compared, bound, self.rule, self.against)]

    def _compared(self, part: Part, output: str, samples: Sequence[Sample]) -> Iterator[Compared]:
        for sample in samples:
            got = self.form[part].run(sample.inputs)[output]
            if self.reference is None:
                expected = sample.expected[output]
            else:
                expected = self.reference[part].run(sample.inputs)[output]
            first = next(iter(sample.inputs.values()))
            yield Compared(sample.name, first.shape[0] if part == "backbone" else first.shape[1], got, expected)

    def _probe(self, part: Part, samples: Sequence[Sample]) -> None:
        with finite_probe(self.form.graph(part), self.bundle.graph(part).spec) as probe:
            for sample in samples:
                found = probe.first(part, sample.name, sample.inputs)
                if found is not None:
                    self._add(found)
                    return


def _graph(form: Form, part: Part) -> Any:
    """The graph in which a layer can be looked for: the form's own, or the bundle's for other runtimes."""
    with Form(form.bundle, form.name if form.has_graph else "ort") as witness:
        return witness.graph(part)


def live_reference(bundle: Bundle, checkpoint: Path | None, threads: int | None) -> Form | None:
    """PyTorch with the bundle's weights, where torch and the weights are here; else None.

    Raises CheckpointError for a checkpoint that is given and is not the bundle's.
    """
    from vtn_export.deps import is_installed

    if not (is_installed("torch") and is_installed("timm")):
        return None
    form = Form(bundle, "torch", checkpoint=checkpoint, threads=threads)
    try:
        form.model()
    except CheckpointError:
        if checkpoint is not None:
            raise
        return None
    return form


def seeded_sample(bundle: Bundle, part: Part, count: int, seed: int = 0) -> Sample:
    """`count` frames for a part: golden frames, or features of their spread; indices that jump; a batch of one."""
    generator = np.random.default_rng([seed, count])
    steps = generator.integers(1, 9, (1, count))
    index = (np.cumsum(steps, axis=1) - steps[:, :1]).astype(np.int32)
    lengths = np.array([count], dtype=np.int32)
    inputs: dict[str, Array]
    if part == "temporal":
        golden = bundle_samples(bundle, "temporal")[-1].inputs[FEATURES]
        features = generator.standard_normal((1, count, golden.shape[-1])) * float(golden.std())
        inputs = {FEATURES: features.astype(np.float32), FRAME_INDEX: index, LENGTHS: lengths}
    else:
        frames = np.concatenate([sample.inputs[FRAMES] for sample in bundle_samples(bundle, "backbone")])
        frames = frames[generator.integers(0, len(frames), count)]
        inputs = {FRAMES: frames}
        if part == "full":
            inputs = {FRAMES: frames[None], FRAME_INDEX: index, LENGTHS: lengths}
    return Sample(f"{count} frames, seed {seed}", inputs, {})


__all__ = ["FEATURES", "LOGITS", "Validation", "Validator", "live_reference", "seeded_sample"]
