"""The judge: error measures, bounds, and that nothing hides a NaN or an infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vtn_export.errors import AccuracyError
from vtn_export.onnx.check import (
    Check,
    absolute_error,
    check_samples,
    relative_error,
    require_passed,
    typed_tolerance,
)
from vtn_export.runtime.golden import Sample

Array = np.ndarray[Any, np.dtype[Any]]


def _row(*values: float) -> Array:
    return np.array([values], dtype=np.float32)


def test_measures() -> None:
    assert relative_error(_row(1.5, 0), _row(1, 0)) == 0.5
    assert relative_error(_row(0.25), _row(0.125)) == 0.125  # below 1 the error is absolute
    assert relative_error(_row(101), _row(100)) == pytest.approx(0.01)
    assert absolute_error(_row(101), _row(100)) == 1
    assert math.isnan(relative_error(_row(1, 2), _row(1)))


@pytest.mark.parametrize(
    ("got", "expected"),
    [(_row(math.nan), _row(1)), (_row(1), _row(math.nan)), (_row(math.inf), _row(math.inf)), (_row(math.inf), _row(1))],
)
@pytest.mark.parametrize("measure", [relative_error, absolute_error])
def test_no_number_never_passes(measure: Any, got: Array, expected: Array) -> None:
    assert not measure(got, expected) <= 1e30


@pytest.mark.parametrize("rounded", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_bound_stays_finite(rounded: float, precision: Any) -> None:
    """A model that overflows in PyTorch's own rounding must not set the bound for its graph."""
    ulp = {"fp16": 2**-9, "bf16": 2**-6}[precision]
    assert typed_tolerance(rounded, [_row(0.1), _row(-3.0)], precision) == 2 * ulp
    assert typed_tolerance(0.25, [_row(3.0)], precision) == 0.5 + 2 * ulp


class _Fixed:
    """A session that answers from a list."""

    def __init__(self, answers: list[Array]) -> None:
        self.answers = answers

    def run(self, _inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"logits": self.answers.pop(0)}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_worst_sample_is_kept(place: int, bad: float) -> None:
    answers = [_row(1.0), _row(1.0), _row(1.0)]
    answers[place] = _row(bad)
    samples = [Sample(f"sample {i}", {}, {"logits": _row(1.0)}) for i in range(3)]
    (check,) = check_samples(_Fixed(answers), samples, part="full", precision="fp32", tolerance=1e-5)  # type: ignore[arg-type]
    assert not check.passed and check.worst_sample == f"sample {place}"
    with pytest.raises(AccuracyError, match=f"full: logits: relative error {bad}.*sample {place}"):
        require_passed([check])


def test_failure_names_output_error_and_what_would_have_passed() -> None:
    good = Check("temporal", "logits", 1e-6, 1e-5, "a", "relative error")
    bad = Check("backbone", "features", 3.25e-3, 1e-5, "frames 1..2", "relative error")
    require_passed([good])
    with pytest.raises(AccuracyError) as caught:
        require_passed([good, bad, bad])
    message = str(caught.value)
    assert message.count("backbone: features: relative error 0.00325, beyond tolerance 1e-05") == 2
    assert "the smallest that passes is 0.00325" in message and "temporal" not in message
    assert caught.value.exit_code == 1
