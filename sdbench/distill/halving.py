"""Two DDIM steps as one: the prediction with which one step ends where two of the teacher's do.

A latent is `z = alpha x + sigma epsilon`, with `alpha^2 + sigma^2 = 1`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "n ..."]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class Level(NamedTuple):
    """How much signal and how much noise is in a latent.

    Attributes:
        alpha: share of the signal, 0 where there is only noise.
        sigma: share of the noise, 0 in a clean latent.
    """

    alpha: float
    sigma: float


def level(scheduler: Any, timestep: int) -> Level:
    """What is in the latents of a DDIM scheduler at a timestep; before the first, at its end."""
    at_end = timestep < 0
    kept = float(scheduler.final_alpha_cumprod if at_end else scheduler.alphas_cumprod[timestep])
    return Level(kept**0.5, (1 - kept) ** 0.5)


def require_halvable(scheduler: Any) -> None:
    """Refuse a scheduler whose steps are not DDIM's own.

    Raises:
        ValueError: another class, or a setting that changes what a step does.
    """
    name = type(scheduler).__name__
    if name != "DDIMScheduler":
        raise ValueError(f"two steps become one with DDIM alone; the pipeline has {name}")
    changed = [name for name in ("clip_sample", "thresholding") if scheduler.config[name]]
    if changed:
        raise ValueError(f"two steps become one without {changed[0]}, which the scheduler has on")
    kind = scheduler.config["prediction_type"]
    if kind not in PREDICTIONS:
        raise ValueError(f"unknown prediction_type '{kind}'; there are: {', '.join(PREDICTIONS)}")


def clean(kind: str, prediction: Latents, z: Latents, at: Level) -> Latents:
    """The clean latent that a prediction of this kind means, x."""
    if kind == "v_prediction":
        return at.alpha * z - at.sigma * prediction
    return (z - at.sigma * prediction) / at.alpha if kind == "epsilon" else prediction


def noise(kind: str, prediction: Latents, z: Latents, at: Level) -> Latents:
    """The noise that a prediction of this kind means, epsilon."""
    if kind == "v_prediction":
        return at.sigma * z + at.alpha * prediction
    return (z - at.alpha * prediction) / at.sigma if kind == "sample" else prediction


def ddim_step(kind: str, prediction: Latents, z: Latents, at: Level, to: Level) -> Latents:
    """The latent at another level.

    Source: Song et al. 2021, arXiv 2010.02502, equation 12 without noise.
    """
    x = clean(kind, prediction, z, at)
    epsilon = noise(kind, prediction, z, at)
    return to.alpha * x + to.sigma * epsilon


def joining(kind: str, z: Latents, at: Level, end: Latents, to: Level) -> Latents:
    """The prediction with which one DDIM step leads from one latent to another.

    It is finite where the first holds only noise, unless the network predicts that.

    Args:
        kind: what the network predicts, of `PREDICTIONS`.
        z: where the step begins, z_t.
        at: its level.
        end: where it is to end, z_t''.
        to: the level of that, with less noise.

    Source: Salimans and Ho 2022, arXiv 2202.00512, algorithm 2 and appendix G.
    """
    ratio = to.sigma / at.sigma
    x = (end - ratio * z) / (to.alpha - ratio * at.alpha)
    if kind == "v_prediction":
        return (at.alpha * z - x) / at.sigma
    return (z - at.alpha * x) / at.sigma if kind == "epsilon" else x
