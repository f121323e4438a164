"""DeepCache: deep UNet features are computed in some evaluations only.

Source: Ma et al. 2023, arXiv 2312.00858; the package DeepCache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sdbench.models.pipeline import Pipeline
from sdbench.variants.accelerators import accelerator, add_accelerator, import_package, unet_of
from sdbench.variants.arguments import PERIOD
from sdbench.variants.hooks import wrapped
from sdbench.variants.rows import Layout, first_tensor
from sdbench.variants.variant import Method


@contextmanager
def deepcache(pipe: Pipeline, interval: float) -> Iterator[None]:
    """Deep features are computed in one evaluation of `interval`.

    The package finds its place by the timestep, which schedulers of second order repeat, knows no
    end of a call, and takes all evaluations to have the same rows. So evaluations are counted here,
    from the start of every loop. Where a schedule drops the unconditional half, the kept features
    are halved with it; where it comes back, they are computed again.
    """
    unet = unet_of(pipe, "DeepCache")
    helper = import_package("DeepCache").DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=int(interval), cache_branch_id=0)
    helper.enable()
    inner = helper.function_dict["unet_forward"]
    kept = 0  # rows of the features that are kept

    def beginning(set_timesteps: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(set_timesteps)
        def begin(*args: Any, **kwargs: Any) -> Any:
            nonlocal kept
            kept = 0
            helper.cur_timestep = -1
            helper.start_timestep = None
            helper.cached_output = {}
            return set_timesteps(*args, **kwargs)

        return begin

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal kept
        rows = len(first_tensor((args, kwargs)))
        helper.cur_timestep += 1
        if kept == 2 * rows:
            helper.cached_output = Layout(kept).halves(helper.cached_output)[1]
        elif kept != rows:
            helper.start_timestep = None  # this evaluation computes everything
        kept = rows
        return inner(*args, **kwargs)

    unet.forward = forward
    with wrapped(pipe.scheduler, "set_timesteps", beginning):
        yield


METHODS = (
    Method(
        "deepcache",
        "deepcache:3|last:20%+deepcache:3",
        "deep UNet features computed in one step of 3 (package DeepCache)",
        accelerator("deepcache", PERIOD, "deepcache:INTERVAL of at least 2", deepcache),
        source="Ma et al. 2023, arXiv 2312.00858",
        group="accelerators",
        add=add_accelerator,
        examples=("deepcache:3",),
        saves_rows=False,
        saves_work=True,
    ),
)
