"""What a report is made of. Results come from JSON files, or are measured here by a short protocol."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtn_export.backends import Backend
from vtn_export.bundle import Bundle
from vtn_export.errors import (
    BackendError,
    CheckpointError,
    MemoryForecastError,
    MissingDependencyError,
    ShapeError,
    UsageError,
)
from vtn_export.evaluate.bench import Notify, Plan, bench
from vtn_export.evaluate.documents import LOOSE, NUMBER, read_document
from vtn_export.runtime.inference import require_memory_for_full
from vtn_export.spec import Part

Step = Callable[[str], AbstractContextManager[None]]

_ERRORS = {
    **dict.fromkeys(("max_abs", "mean_abs", "max_rel", "mean_rel", "agreement"), LOOSE),
    "count": int,
    "exact": int,
    "not_finite": int,
    "histogram": [int],
}
_CHECK = {
    **dict.fromkeys(("part", "output", "source", "measure", "worst_sample"), str),
    "measured": LOOSE,
    "tolerance": LOOSE,
    "passed": bool,
    "cosine": LOOSE,
    **dict.fromkeys(("top1", "top5", "kl"), (LOOSE, None)),
    "errors": _ERRORS,
}
_LAYERS = {
    **dict.fromkeys(("part", "form", "precision", "measure"), str),
    "first_beyond": (str, None),
    "layers": [{"layer": str, "error": LOOSE, "bound": LOOSE, "largest": LOOSE, "fp16_share": LOOSE, "beyond": bool}],
}
VALIDATE_SHAPE = {
    **dict.fromkeys(("bundle", "name", "precision", "backend", "against"), str),
    "emulated": bool,
    "passed": bool,
    "histogram_log10_edges": [NUMBER],
    "checks": [_CHECK],
    "layers": [_LAYERS],
    "not_finite": [{"part": str, "layer": str}],
}
EVAL_SHAPE = {
    "labels": [str],
    "videos": int,
    "top1": (NUMBER, None),
    "top5": (NUMBER, None),
    "top1_interval": ([NUMBER], None),
    "confusion": [[int]],
}


@dataclass(frozen=True)
class Protocol:
    """How much is measured where no results are given."""

    duration: float
    min_runs: int
    frames: tuple[int, ...]
    chunks: tuple[int, ...]
    mode_frames: tuple[int, ...]
    layers: bool


SHORT = Protocol(1.0, 10, (16, 64, 128, 250), (1, 4, 16), (8, 16, 32), layers=True)
QUICK = Protocol(0.1, 5, (8, 32, 64), (1, 2, 4), (4, 8, 12), layers=False)


@dataclass
class Sources:
    """Documents by their schemas; `missing` says, for what is not there, why and what to do."""

    bundle: Bundle
    bench: dict[str, Any] | None = None
    validate: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def remarks(self) -> list[str]:
        """Given results that are of another bundle: allowed, as of an older export, but said."""
        manifest, found = self.bundle.manifest, []
        if self.bench is not None:
            theirs = self.bench["bundle"]["files"]
            differ = sorted(name for name in manifest.files if theirs.get(name) != manifest.files[name])
            if differ:
                found.append(f"the bench result is of other files than the bundle's: {', '.join(differ)}")
        if self.validate is not None:
            for key, own in (("name", manifest.name), ("precision", manifest.precision)):
                if self.validate[key] != own:
                    found.append(f"the validate result is of another {key}: {self.validate[key]}, not {own}")
        return found


def read_validate(path: Path) -> dict[str, Any]:
    """A result of `validate --json`. Raises ShapeError."""
    made_by = "vtn-export validate --json > FILE"
    return read_document(path, "vtn-export/validate", 1, VALIDATE_SHAPE, made_by=made_by)


def read_eval(path: Path) -> dict[str, Any]:
    """A result of `eval --json`. Raises ShapeError, also where the confusion matrix is not classes × classes."""
    found = read_document(path, "vtn-export/eval", 1, EVAL_SHAPE, made_by="vtn-export eval --json > FILE")
    classes, matrix = len(found["labels"]), found["confusion"]
    if len(matrix) != classes or any(len(row) != classes for row in matrix):
        raise ShapeError(f"{path}: malformed: confusion is not {classes} × {classes}, as its labels are")
    return found


def measure_bench(
    bundle: Bundle,
    backend: Backend,
    protocol: Protocol,
    *,
    video: Path,
    threads: int | None = None,
    checkpoint: Path | None = None,
    notify: Notify = lambda _: None,
) -> dict[str, Any]:
    """`bench` by the short protocol: every part, and the modes on the sample video as far as memory goes."""
    have = bundle.manifest.graphs
    parts: tuple[Part, ...] = tuple(part for part in ("backbone", "temporal") if part in have)
    modes = [mode for mode, needed in (("chunked", 2), ("full", 3)) if len(have) >= needed and len(parts) == 2]
    frames = protocol.mode_frames
    if "full" in modes:
        frames = tuple(count for count in frames if _fits(bundle, count)) or frames[:1]
        modes = modes if _fits(bundle, frames[0]) else ["chunked"]
    options = {"chunks": protocol.chunks, "batches": (1,), "streams": 1}
    options |= {"duration": protocol.duration, "min_runs": protocol.min_runs}
    plan = Plan(parts=parts or tuple(have), modes=(), frames=protocol.frames, **options)  # type: ignore[arg-type]
    result = bench(bundle, plan, backend, video=video, threads=threads, checkpoint=checkpoint, notify=notify)
    if modes:
        plan = Plan(parts=(), modes=modes, frames=frames, **options)  # type: ignore[arg-type]
        more = bench(bundle, plan, backend, video=video, threads=threads, checkpoint=checkpoint, notify=notify)
        result["results"] += more["results"]
        result["load_seconds"] = {**more["load_seconds"], **result["load_seconds"]}
    return result


def measure_validation(
    bundle: Bundle, backend: Backend, *, layers: bool, checkpoint: Path | None, threads: int | None, step: Step | None
) -> tuple[dict[str, Any], str | None]:
    """The golden samples of every part, and the layers where PyTorch and its weights are here.

    Returns the document of `validate` and why there are no layers (None where there are).
    """
    from vtn_export.evaluate.forms import Form
    from vtn_export.evaluate.layers import compare_layers
    from vtn_export.evaluate.rule import Rule
    from vtn_export.evaluate.validate import Validation, Validator

    step = step or (lambda _name: nullcontext())
    manifest = bundle.manifest
    why = None
    with Form(bundle, backend, checkpoint=checkpoint, threads=threads) as form:
        found = Validation(
            str(bundle.path), manifest.name, manifest.precision, backend, "golden", emulated=form.emulated
        )
        validator = Validator(form, None, Rule(), step=step)
        for part in manifest.graphs:
            found.checks += validator.golden(part)
        found.not_finite += validator.not_finite
        if layers:
            halves: tuple[Part, ...] = ("backbone", "temporal")
            try:
                for part in [half for half in halves if half in manifest.graphs] or list(manifest.graphs):
                    with step(f"layers, {part}"):
                        found.layers.append(compare_layers(form, part))
            except (
                BackendError,
                CheckpointError,
                MissingDependencyError,
                UsageError,
            ) as error:  # int8: no layers of its own
                why = str(error)
        else:
            why = "not measured with --quick"
    return found.to_json(), why


def _fits(bundle: Bundle, frames: int) -> bool:
    try:
        require_memory_for_full(bundle, frames)
    except MemoryForecastError:
        return False
    return True
