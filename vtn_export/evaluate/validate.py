"""A bundle against PyTorch's numbers: the stored golden samples, and the three modes on a real video."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vtn_export.backends import Sessions
from vtn_export.bundle import Bundle
from vtn_export.deps import is_installed
from vtn_export.errors import CheckpointError
from vtn_export.onnx.check import Check, check_samples, relative_error
from vtn_export.runtime.golden import bundle_samples
from vtn_export.runtime.inference import (
    Classification,
    classify_chunked,
    classify_features,
    classify_full,
    extract_features,
    require_memory_for_full,
)
from vtn_export.runtime.session import Session
from vtn_export.spec import LOGITS, Part
from vtn_export.video import ClipReader

# The three modes run the same arithmetic on other shapes: what is left is the order of sums.
MODES_TOLERANCE = 1e-4


def validate_golden(bundle: Bundle, session: Session, part: Part) -> list[Check]:
    """One graph on the golden samples; the bound is the one its export recorded.

    An engine is judged by its own precision's bound, on the samples that its profiles take.
    """
    entry = bundle.graph(part)
    samples = bundle_samples(bundle, part)
    if session.backend == "trt":
        from vtn_export.trt.session import TrtSession

        assert isinstance(session, TrtSession)
        return session.check(samples, part)
    return check_samples(
        session,
        samples,
        part=part,
        precision=bundle.manifest.precision,
        tolerance=entry.tolerance,
    )


def bound_of(session: Session) -> float:
    """What an engine is judged by; 0 for other backends."""
    from vtn_export.trt.session import TrtSession

    return session.tolerance if isinstance(session, TrtSession) else 0.0


def validate_video(
    bundle: Bundle, sessions: Sessions, video: Path, num_frames: int | None, checkpoint: Path | None = None
) -> list[Check]:
    """The modes that the bundle has, against chunked mode; and chunked mode against PyTorch where it is.

    PyTorch takes part when torch is installed and the weights are at hand (random ones always are).
    """
    manifest = bundle.manifest
    results: dict[str, Classification] = {}

    def reader() -> ClipReader:
        return ClipReader(video, manifest.preprocessing, num_frames)

    with reader() as clip:
        features, _ = extract_features(sessions["backbone"], clip)
    results["features"] = classify_features(sessions["temporal"], features)
    with reader() as clip:
        results["chunked"] = classify_chunked(sessions["backbone"], sessions["temporal"], clip)
    if "full" in manifest.graphs:
        with reader() as clip:
            require_memory_for_full(bundle, len(features.frame_index))
            results["full"] = classify_full(sessions["full"], clip)
    reference = results.pop("chunked")
    name = f"{video.name}: {len(reference.frame_index)} frames"
    tolerance = MODES_TOLERANCE
    if sessions.backend == "trt":  # engines of several shapes round differently: at most as far as they may at all
        tolerance = max(MODES_TOLERANCE, *(bound_of(sessions[part]) for part in manifest.graphs))
    checks = [
        Check(
            f"mode {mode}",
            LOGITS,
            relative_error(result.logits, reference.logits),
            tolerance,
            name,
            "relative error against mode chunked",
        )
        for mode, result in results.items()
    ]
    if sessions.backend != "torch" and is_installed("torch") and is_installed("timm"):
        try:
            checks += _against_torch(bundle, reference, reader, checkpoint, name)
        except CheckpointError:
            if checkpoint is not None:
                raise
            # without the weights there is no PyTorch to compare with; the golden samples stand in
    return checks


def _against_torch(
    bundle: Bundle, got: Classification, reader: Callable[[], ClipReader], checkpoint: Path | None, name: str
) -> list[Check]:
    with Sessions(bundle, "torch", checkpoint=checkpoint) as reference, reader() as clip:
        expected = classify_chunked(reference["backbone"], reference["temporal"], clip)
    manifest = bundle.manifest
    if manifest.precision == "fp32":
        tolerance = MODES_TOLERANCE
    else:  # the bound that the whole model was held against at export
        tolerance = bundle.graph("full" if "full" in manifest.graphs else "temporal").tolerance
    error = relative_error(got.logits, expected.logits)
    return [Check("video", LOGITS, error, tolerance, name, "relative error against PyTorch")]
