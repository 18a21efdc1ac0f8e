"""Every tolerance of the tests, in one table, each with its reason.

Errors are `max|a - b| / max(1, max|b|)` (tests/oracle.py: `error`) unless the reason says otherwise.
"""

from __future__ import annotations

from typing import NamedTuple


class Tolerance(NamedTuple):
    value: float
    reason: str


TOLERANCES: dict[str, Tolerance] = {
    "plain_vs_rewrite": Tolerance(1e-5, "the same algebra in another order, float32: about 80 ulp at 1"),
    "hugging_face": Tolerance(2e-5, "both sides float32; theirs adds finfo.min masks and pads to the window"),
    "float64": Tolerance(1e-11, "exact algebra: only float64 rounding is left, through three layers"),
    "op_fp32": Tolerance(5e-6, "scores, softmax and sums of at most 2w + 1 + n terms in float32"),
    "op_fp16": Tolerance(1e-3, "one rounding of the inputs' product sums to fp16 at values below 1: 2^-11, doubled"),
    "op_bf16": Tolerance(8e-3, "one rounding to bf16 at values below 1: 2^-8, doubled"),
    "graph_fp32": Tolerance(1e-5, "the product's own promise for a float32 graph against the float64 model"),
    "composition": Tolerance(1e-6, "the full graph holds its halves' nodes; only ONNX Runtime's fusions may differ"),
    "pruned_vit": Tolerance(1e-5, "the last block for one row: the same sums in another order, float32"),
    "modes": Tolerance(1e-4, "what the product promises for the three ways to infer, logits"),
}


def tolerance(name: str) -> float:
    """The value of one entry."""
    return TOLERANCES[name].value
