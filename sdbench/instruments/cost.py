"""Work done, by counting: FLOPs of a call and of a denoiser row.

A FLOP count follows from shapes, 2 per multiply-add, whatever the device does with them. Nothing is
timed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_flop,
)

from sdbench.variants.trace import Listener, Step

# Before 2.15 torch had no formula for its fused attention on the CPU.
if torch.ops.aten._scaled_dot_product_flash_attention_for_cpu not in flop_registry:
    register_flop_formula(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, get_raw=True)(
        sdpa_flop
    )


def _fft_flop(
    shape: Sequence[int], dim: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any
) -> int:
    """The usual 5 N log2 N of a complex transform of N values, and half of it of a real one."""
    is_real = tuple(shape) != tuple(out_shape)
    whole = max(shape, out_shape, key=math.prod)
    points = math.prod(whole[place] for place in dim)
    work = 5 * math.prod(whole) * math.log2(points)
    return round(work / 2 if is_real else work)


# Nor has it one for Fourier transforms, by which SeaCache compares steps.
for _transform in (torch.ops.aten._fft_c2c, torch.ops.aten._fft_r2c, torch.ops.aten._fft_c2r):
    if _transform not in flop_registry:
        register_flop_formula(_transform)(_fft_flop)


def _product_flop(
    first: Sequence[int], second: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any
) -> int:
    """2 per multiply-add of a matrix product, whatever its factors are stored in."""
    return 2 * math.prod(out_shape) * first[-1]


# Nor for products of whole numbers, which quantised layers use.
for _product in (torch.ops.aten._int_mm, torch.ops.aten._weight_int8pack_mm):
    if _product not in flop_registry:
        register_flop_formula(_product)(_product_flop)

# Work proportional to the elements touched, counted as zero, that torch does not tag as pointwise
# or reduction.
_LIGHT_OPS = """
_adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices
_log_softmax _softmax _safe_softmax
native_batch_norm native_group_norm native_layer_norm _fused_rms_norm
_local_scalar_dense _to_copy _unsafe_view clone copy_ fill fill_ zero_ lift_fresh resize_
cat constant_pad_nd flip pixel_shuffle pixel_unshuffle repeat roll stack tril triu
embedding gather index index_add index_put index_put_ index_select masked_fill scatter slice_scatter
_unsafe_index
empty_like full_like ones_like rand_like randn_like zeros_like
new_empty new_empty_strided new_full new_ones new_zeros
upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""
# A fake tensor is asked for its device by an operation.
_LIGHT = frozenset(f"aten::{name}" for name in _LIGHT_OPS.split()) | {"prim::device"}
_LIGHT_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy}


class NoFormula(ValueError):
    """Work that cannot be counted: an operation ran that has no FLOP formula."""


class _EveryOpKnown(TorchDispatchMode):
    """Finds an operation that the FLOP counter would silently count as zero.

    Attributes:
        unknown: the first one that ran, empty where there was none.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        """Know of none yet."""
        super().__init__()
        self.unknown = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        has_formula = getattr(func, "_overloadpacket", func) in flop_registry
        if not self.unknown and not has_formula and not is_light(func, args, kwargs):
            self.unknown = str(func)
        return func(*args, **kwargs)


def is_light(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation only touches, moves or makes elements."""
    if not isinstance(func, torch._ops.OpOverload):
        return False  # a higher-order operator
    if func.is_view or _LIGHT_TAGS.intersection(func.tags) or func._schema.name in _LIGHT:
        return True

    # What takes no tensor makes one: arange, randn, ...
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    takes_tensor = any(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return func.namespace == "aten" and not takes_tensor


def denoiser_flop(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one forward call, 2 per multiply-add.

    Matrix products, convolutions, attention and Fourier transforms count.

    Args:
        module: The denoiser, or any other module; it is called once, without gradients.
        *args: Its own arguments.
        **kwargs: Its own keyword arguments.

    Raises:
        NoFormula: After the call, naming an executed operation that has no formula and is not known
            to be light.
    """
    # The counter is entered last, so it decomposes an operation first, and the check sees what is
    # really executed.
    with torch.no_grad(), _EveryOpKnown() as seen, FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)

    if seen.unknown:
        raise NoFormula(
            f"no FLOP formula for {seen.unknown}, so the count would be too low; "
            "give it one with torch.utils.flop_counter.register_flop_formula"
        )
    return counter.get_total_flops()


FULL = 0.999
"""Share of the most work of a row, from which on an evaluation left nothing out."""


class FlopProbe(Listener):
    """Counts the work of every evaluation of a call as it runs, which makes the call slow.

    Attributes:
        flop: 2 per multiply-add; None once an operation ran that has no formula.
    """

    def __init__(self) -> None:
        """Start at zero."""
        self.flop: int | None = 0
        self._per_row: list[float] = []
        self._counting = ExitStack()

    @property
    def full_forwards(self) -> int | None:
        """Evaluations that left no work out, as a cache does; None where work cannot be counted."""
        most = max(self._per_row, default=0.0)
        full = sum(work >= FULL * most for work in self._per_row)
        return None if self.flop is None else full

    def __enter__(self) -> Self:
        """Count while the block runs."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop counting, also where an evaluation failed midway."""
        self._counting.close()

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """Count from here on."""
        self._rows = rows
        self._seen = self._counting.enter_context(_EveryOpKnown())
        self._counter = self._counting.enter_context(FlopCounterMode(display=False))

    def denoiser_ends(self, step: Step) -> None:
        """Add what was counted."""
        self._counting.close()
        if self._seen.unknown:
            self.flop = None
        if self.flop is not None:
            work = self._counter.get_total_flops()
            self.flop += work
            self._per_row.append(flop_per_row(work, self._rows))


def flop_per_row(flop: int, rows: int) -> float:
    """FLOPs of one denoiser row, from those of a call with `rows` rows."""
    if flop < 0 or rows < 1:
        raise ValueError(
            f"flop must not be negative and rows must be at least 1, got {flop} and {rows}"
        )
    return flop / rows
