"""Whether metrics take images of the size that a pipeline makes, found out before it makes any.

Of a video it is that of its frames.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.quality import find_metric, require_size
from sdbench.models.pipeline import Pipeline
from sdbench.study.call import Call, ready
from sdbench.study.study import Study

Size = tuple[int, int]
"""Height and width in pixels."""


def require_judgeable(
    pipe: Pipeline, study: Study, short: Call, latents: Float[Tensor, "n ..."]
) -> None:
    """Refuse metrics that do not take images of the size that a study will make.

    Args:
        pipe: of the study.
        study: its metrics count, and the size that it asks for.
        short: a call of the pipeline with few steps.
        latents: what that call gave.

    Raises:
        ValueError: which metric takes which images.
    """
    metrics = study.metrics or ()
    decoded = _decoded(pipe, latents)
    if decoded is not None:
        asked = (study.height or decoded[0], study.width or decoded[1])
        sizes = {decoded, asked}
        if not any(find_metric(name)[0].misfit(*size) for name in metrics for size in sizes):
            return

    # Pipelines round a size, or scale the images after they decode them, so one is looked at.
    if metrics:
        with ready(pipe, replace(short, pairs=short.pairs[:1])) as run:
            images = run().images
        require_size(metrics, *images.shape[-2:])


def _decoded(pipe: Pipeline, latents: Float[Tensor, "n ..."]) -> Size | None:
    """The size of the images that latents become; None where they do not tell."""
    # Videos are compressed in time as well, so these pipelines have several factors.
    name = {4: "vae_scale_factor", 5: "vae_scale_factor_spatial"}.get(latents.ndim, "")
    factor: Any = getattr(pipe, name, None)
    if not isinstance(factor, int):
        return None
    return latents.shape[-2] * factor, latents.shape[-1] * factor
