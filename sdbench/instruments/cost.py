"""Work done and work saved, by counting: FLOPs of a call, network evaluations, ideal and predicted saving.

A FLOP count follows from shapes, 2 per multiply-add, whatever the device does with them. Nothing is timed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

# Work proportional to the elements touched, counted as zero, that torch does not tag as pointwise or reduction.
_LIGHT_OPS = """
_adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices
_log_softmax _softmax _safe_softmax native_batch_norm native_group_norm native_layer_norm _fused_rms_norm
_local_scalar_dense _to_copy _unsafe_view clone copy_ fill fill_ zero_ lift_fresh resize_
cat constant_pad_nd flip pixel_shuffle pixel_unshuffle repeat roll stack tril triu
embedding gather index index_add index_put index_put_ index_select masked_fill scatter slice_scatter _unsafe_index
empty_like full_like ones_like rand_like randn_like zeros_like
new_empty new_empty_strided new_full new_ones new_zeros
upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_nearest3d
"""
_LIGHT = frozenset(f"aten::{name}" for name in _LIGHT_OPS.split())
_LIGHT_TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.view_copy}


class _EveryOpKnown(TorchDispatchMode):
    """Refuses an operation that the FLOP counter would silently count as zero."""

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "_overloadpacket", func) not in flop_registry and not _is_light(func, args, kwargs):
            raise ValueError(
                f"no FLOP formula for {func}, so the count would be too low; "
                "give it one with torch.utils.flop_counter.register_flop_formula"
            )
        return func(*args, **kwargs)


def _is_light(func: Any, args: tuple, kwargs: dict) -> bool:
    """Whether an operation only touches, moves or makes elements."""
    if not isinstance(func, torch._ops.OpOverload):
        return False  # a higher-order operator
    if func.is_view or _LIGHT_TAGS.intersection(func.tags) or func._schema.name in _LIGHT:
        return True
    leaves = torch.utils._pytree.tree_leaves((args, kwargs))
    return func.namespace == "aten" and not any(isinstance(leaf, torch.Tensor) for leaf in leaves)  # arange, randn, ...


def denoiser_flop(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """FLOPs of one forward call, 2 per multiply-add; matrix products, convolutions and attention count.

    Args:
        module: The denoiser, or any other module; it is called once, without gradients.
        *args: Its own arguments.
        **kwargs: Its own keyword arguments.

    Raises:
        ValueError: Naming an executed operation that has no formula and is not known to be light.
    """
    # The counter is entered last, so it decomposes an operation first and the check sees what is really executed.
    with torch.no_grad(), _EveryOpKnown(), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return counter.get_total_flops()


def flop_per_row(flop: int, rows: int) -> float:
    """FLOPs of one denoiser row, from those of a call with `rows` rows."""
    if flop < 0 or rows < 1:
        raise ValueError(f"flop must not be negative and rows must be at least 1, got {flop} and {rows}")
    return flop / rows


def nfe(mask: Sequence[bool]) -> int:
    """Denoiser rows per image: 2 for a guided step (True), 1 for an unguided one."""
    if len(mask) == 0:
        raise ValueError("the mask has no steps")
    return sum(2 if guided else 1 for guided in mask)


def ideal_saving(mask: Sequence[bool]) -> float:
    """Share of the fully guided rows that a mask does not evaluate, from 0 to 1/2."""
    return 1 - nfe(mask) / (2 * len(mask))


def predicted_saving(unguided_fraction: float, denoise_share: float, ratio: float) -> float:
    """Share of a call's time that unguided steps should save.

    Args:
        unguided_fraction: Unguided steps over all steps, 0 to 1.
        denoise_share: Time of the denoising loop over time of the whole fully guided call, 0 to 1.
        ratio: R, time of a guided step over time of an unguided one; 2 if rows were all that cost time.

    Source:
        fraction * share * (1 - 1/R), consistent with the slope of Golnari et al. 2023, arXiv 2305.09847.
    """
    for name, value in (("unguided_fraction", unguided_fraction), ("denoise_share", denoise_share)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {value}")
    if not 0 < ratio < float("inf"):
        raise ValueError(f"ratio must be positive and finite, got {ratio}")
    return unguided_fraction * denoise_share * (1 - 1 / ratio)
