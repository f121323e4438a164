"""A pipeline under another scheduler of diffusers, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sdbench.variants.hooks import replaced
from sdbench.variants.trace import Unsupported

if TYPE_CHECKING:
    from sdbench.models.pipeline import Pipeline, Scheduler

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "deis": "DEISMultistepScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "flow-euler": "FlowMatchEulerDiscreteScheduler",
    "flow-heun": "FlowMatchHeunDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
"""Classes of diffusers by the names that they have here."""


@contextmanager
def under_scheduler(pipe: Pipeline, name: str) -> Iterator[None]:
    """Give a pipeline another scheduler for the length of a block.

    Args:
        pipe: a diffusers pipeline.
        name: in `SCHEDULERS`.

    Raises:
        Unsupported: as `other_scheduler` says.
    """
    with replaced(pipe, "scheduler", other_scheduler(pipe, name)):
        yield


def other_scheduler(pipe: Pipeline, name: str | None) -> Scheduler:
    """A scheduler with the settings of a pipeline's own; the pipeline's own where there is no name.

    Raises:
        Unsupported: diffusers does not count it among those that take the place of the pipeline's.
    """
    own = pipe.scheduler
    if name is None:
        return own
    kinds = {kind.__name__: kind for kind in (type(own), *getattr(own, "compatibles", ()))}
    kind = SCHEDULERS[name]
    if kind not in kinds:
        raise Unsupported(f"{kind} cannot take the place of {type(own).__name__}")
    made: Scheduler = kinds[kind].from_config(own.config)
    return made
