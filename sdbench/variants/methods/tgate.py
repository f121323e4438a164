"""T-GATE: cross-attention is kept from a step on, and guidance ends there.

Source: Zhang et al. 2024, arXiv 2404.02747; the package tgate.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sdbench.models.pipeline import Pipeline
from sdbench.variants.accelerators import accelerator, add_accelerator, import_package, unet_of
from sdbench.variants.trace import Unsupported
from sdbench.variants.variant import Method


@contextmanager
def tgate(pipe: Pipeline, gate_step: float) -> Iterator[None]:
    """Cross-attention is kept from `gate_step` on, and guidance ends there.

    The package is a copy of the pipeline's loop, which takes the place of `__call__`.
    """
    unet = unet_of(pipe, "T-GATE")
    package = import_package("tgate")
    kind = type(pipe)
    loaders = {
        "StableDiffusionPipeline": "TgateSDLoader",
        "StableDiffusionXLPipeline": "TgateSDXLLoader",
    }
    if kind.__name__ not in loaders:
        raise Unsupported(f"T-GATE has no loop for {kind.__name__}")
    if getattr(pipe.scheduler, "order", 1) != 1:
        raise Unsupported(
            f"T-GATE miscounts the steps of {type(pipe.scheduler).__name__}, "
            "which is of second order"
        )
    getattr(package, loaders[kind.__name__])(pipe)
    loop = vars(pipe).pop("tgate")

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for module in unet.modules():
            vars(module).pop("cache", None)  # of the call before
        return loop(*args, gate_step=int(gate_step), **kwargs)

    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    try:
        yield
    finally:
        pipe.__class__ = kind


METHODS = (
    Method(
        "tgate",
        "tgate:10",
        "cross-attention kept and guidance dropped from step 10 on (package tgate)",
        accelerator("tgate", r"([1-9]\d*)", "tgate:STEP of at least 1", tgate, guides=True),
        source="Zhang et al. 2024, arXiv 2404.02747",
        group="accelerators",
        add=add_accelerator,
        examples=("tgate:3",),
        saves_work=None,  # cross-attention is little of a small network
    ),
)
