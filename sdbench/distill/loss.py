"""What a student is trained on: the guided prediction, and how much each row's error counts."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from sdbench.models.pipeline import Scheduler
from sdbench.variants.noise import is_flow


def guided_prediction(
    cond: Float[Tensor, "n ..."],
    uncond: Float[Tensor, "n ..."],
    guidance_scale: Float[Tensor, " n"] | float,
) -> Float[Tensor, "n ..."]:
    """`u + w (c - u)`, whatever the network predicts (epsilon, v, flow).

    Args:
        cond: c.
        uncond: u.
        guidance_scale: w, one for all rows or one for each.

    Source: Ho and Salimans 2022, arXiv 2207.12598, equation 6 with w - 1 for their w.
    """
    if isinstance(guidance_scale, Tensor):
        guidance_scale = guidance_scale.to(cond).reshape(-1, *[1] * (cond.ndim - 1))
    return uncond + guidance_scale * (cond - uncond)


def distillation_loss(
    student: Float[Tensor, "n ..."],
    target: Float[Tensor, "n ..."],
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error between the student's prediction and the guided one, in float32.

    Without weights every row counts the same in the space of the prediction, as in the teacher's
    own training.

    Source: Meng et al. 2023, arXiv 2210.03142, stage one.
    """
    errors = (student.float() - target.float()).square().flatten(1).mean(dim=1)
    return errors.mean() if weights is None else (weights * errors).mean()


def min_snr_weights(
    scheduler: Scheduler, sigma: Float[Tensor, " n"], gamma: float
) -> Float[Tensor, " n"]:
    """Weights under which an error of the clean latent counts by its signal-to-noise ratio.

    It counts at most by gamma.

    Args:
        scheduler: says what the network predicts.
        sigma: noise-to-signal ratio of every row, above 0; the signal-to-noise ratio is `sigma^-2`.
        gamma: 5 in the source.

    Source: Hang et al. 2023, arXiv 2303.09556, section 3.4; for flow matching the same in the space
        of the velocity.
    """
    limited = (sigma**-2).clamp(max=gamma)
    if is_flow(scheduler):
        return limited / (1 + 1 / sigma) ** 2

    # An error of the prediction is in the clean latent sigma times as large for epsilon, and for v
    # as large as the share of noise says.
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return limited * sigma**2
    if kind == "v_prediction":
        return limited / (1 + sigma**-2)
    return limited
