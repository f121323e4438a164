"""What a pipeline shows before a study: whether it can be studied, and how it guides.

Two guided steps tell which half of an evaluation is the conditional one, how its rows are read, and
which number the pipeline takes for the guidance scale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline, denoisers_of, parts_of, schedulers_of
from sdbench.models.settings import caches
from sdbench.variants.loops import random_state
from sdbench.variants.variant import Variant


def require_one_loop(pipe: Pipeline) -> None:
    """Refuse a pipeline that runs several loops in a call (a prior, then a decoder).

    Raises:
        ValueError: it does; a table of steps has one loop for each call.
    """
    if len(parts_of(pipe)) > 1 or len(schedulers_of(pipe)) > 1:
        raise ValueError(
            f"{type(pipe).__name__} runs several loops in a call, but a study measures one: study "
            "the pipeline of each loop by itself, or use guided_by"
        )


def require_no_cache(pipe: Pipeline) -> None:
    """Refuse a denoiser that has a cache on, however it was put there.

    Raises:
        ValueError: the baseline would be accelerated itself.
    """
    for denoiser in denoisers_of(pipe):
        if found := ", ".join(caches(denoiser)):
            raise ValueError(
                f"the {type(denoiser).__name__} has a cache enabled ({found}), so the baseline "
                "would be accelerated, too: disable it, or open the pipeline again, and name the "
                "cache as a variant"
            )


def require_noise_of_images(pipe: Pipeline, call: Callable[[], Any]) -> None:
    """Refuse a pipeline whose images depend on others: noise that is drawn for all at once.

    Args:
        pipe: whose call it is.
        call: runs it, with a generator for every image.

    Raises:
        ValueError: the call moved torch's global generator on.
    """
    before = random_state(pipe.device)
    call()
    if not torch.equal(before, random_state(pipe.device)):
        raise ValueError(
            f"{type(pipe).__name__} with {type(pipe.scheduler).__name__} draws noise from torch's "
            "global generator, not from each image's own: images would depend on their batch "
            "and on earlier calls, so variants could not be compared"
        )


def require_made_for(pipe: Pipeline, variant: Variant) -> None:
    """Refuse a recipe that was found for a pipeline with another scheduler or denoiser.

    Raises:
        ValueError: it says which, and what the recipe is for.
    """
    if not variant.made_for:
        return
    own = identity(pipe)
    for part in ("pipeline", "scheduler", "unet", "transformer"):
        asked, there = variant.made_for.get(part), own.get(part)
        if asked != there:
            raise ValueError(
                f"the recipe was found for the {part} '{asked}', and this pipeline has '{there}': "
                "search again with `sdbench budget`"
            )
