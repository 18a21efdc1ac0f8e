"""PyTorch as a machine that rounds: float32 arithmetic, every op's output rounded to a 16-bit type.

The yardstick for a typed graph. PyTorch's own CPU half precision runs at under 1 GFLOP/s and
accumulates in ways that no GPU does; rounding the parameters and each op's result is what a typed
graph with float32 accumulation does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from vtn_export.model.attention import op_observer
from vtn_export.model.vtn import Normalise, RewrittenVTN
from vtn_export.spec import Precision

TORCH_TYPE: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def _round(value: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 values rounded to the type's precision. Beyond its range: to its digits, not to infinity.

    This is a yardstick for rounding. If it overflowed with the graph, it would excuse the overflow.
    """
    rounded = value.to(dtype).to(torch.float32)
    # bf16 ends where float32 does; looking there too took 21 instead of 12 CPU seconds for 8 frames of vit_b_vtn
    # (aminmax reads once; isinf().any() made three passes, a quarter of the whole)
    if dtype == torch.float16 and rounded.numel() and not _all_finite(rounded):
        beyond = rounded.isinf() & value.isfinite()
        digits = 1 - int(math.log2(torch.finfo(dtype).eps))
        mantissa, exponent = torch.frexp(value)
        rounded = torch.where(beyond, torch.ldexp((mantissa * 2**digits).round(), exponent - digits), rounded)
    return rounded


def _all_finite(value: Tensor) -> bool:
    low, high = value.aminmax()
    return math.isfinite(low) and math.isfinite(high)


class _RoundingMode(TorchDispatchMode):
    """Rounds every float32 result; views and copies are exact, so rounding them again changes nothing."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.paused = 0

    def round(self, value: Any) -> Any:
        return _round(value, self.dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value

    def __torch_dispatch__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # a view must stay a view of its base; its values are rounded already
        if self.paused or func._schema.is_mutable or any(a.alias_info for a in func._schema.returns):
            return result
        if isinstance(result, (tuple, list)):
            return type(result)(self.round(value) for value in result)
        return self.round(result)

    @contextmanager
    def pause(self) -> Iterator[None]:
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1


def rounded_copy(model: RewrittenVTN, precision: Precision) -> RewrittenVTN:
    """A copy with parameters rounded to the type, but for those of the parts that stay float32."""
    twin = copy.deepcopy(model)
    dtype = TORCH_TYPE[precision]
    exempt = {id(p) for module in _float32_modules(twin) for p in module.parameters()}
    with torch.no_grad():
        for parameter in twin.parameters():
            if id(parameter) not in exempt:
                parameter.copy_(_round(parameter, dtype))
    return twin


@contextmanager
def rounding(model: RewrittenVTN, precision: Precision) -> Iterator[None]:
    """While active, `model` (a `rounded_copy`) rounds every op's output; float32 parts are left alone."""
    mode = _RoundingMode(TORCH_TYPE[precision])

    def observer(op: Callable[[], Tensor]) -> Tensor:
        with mode.pause():
            result = op()
        return mode.round(result)

    handles = []
    for module in _float32_modules(model):
        if isinstance(module, nn.LayerNorm):
            continue  # computed in float32 inside one op; its output is rounded where it leaves

        def enter(_module: nn.Module, _inputs: Any) -> None:
            mode.paused += 1

        def leave(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            mode.paused -= 1

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    token = op_observer.set(observer)
    try:
        # the math kernel shows scores, softmax and product as the exported graph has them
        with sdpa_kernel(SDPBackend.MATH), mode:
            yield
    finally:
        op_observer.reset(token)
        for handle in handles:
            handle.remove()


def _float32_modules(model: RewrittenVTN) -> list[nn.Module]:
    """LayerNorms, the normalisation of pixels, and the last linear layer, as in the typed graphs."""
    head = list(model.mlp_head.children())
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    pixels = [module for module in model.modules() if isinstance(module, Normalise)]
    return [*norms, *pixels, head[-1]]
