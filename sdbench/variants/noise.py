"""How noisy a step is, whatever the scheduler, and which clean latent a prediction means.

The noise-to-signal ratio `sigma` is the one scale that schedulers share: a latent is `signal * (x0
+ sigma * noise)`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOW_CLASSES = frozenset(
    {
        "FlowMapEulerDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "LTXEulerAncestralRFScheduler",
        "MiniMaxH3Scheduler",
        "PiflowScheduler",
    }
)
"""Diffusers' flow schedulers; those derived from them have any name."""
TOWARDS_DATA = frozenset({"MiniMaxH3Scheduler"})
"""Flow schedulers whose networks predict the velocity towards the data, not towards the noise."""
PREDICTIONS = frozenset({"epsilon", "v_prediction", "flow_prediction", "sample", "original_sample"})
"""Kinds of predictions of which the clean latent is known; the last two are it."""
OTHER_PREDICTIONS = frozenset({"PiflowScheduler"})
"""Schedulers whose networks predict something else: a course of velocities."""
STEPS_BACK = frozenset({"DDIMInverseScheduler"})
"""Schedulers that go from data to noise and name a step by where it ends, not by where it begins.
"""


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler interpolates between data and noise (flow matching).

    Its ancestors and its settings say so. A class of somebody's own is known by what it holds: its
    sigmas are shares of noise, from 0 to 1, and there is no schedule of another kind.
    """
    config = scheduler.config
    if config.get("use_flow_sigmas", False) or config.get("prediction_type") == "flow_prediction":
        return True
    if {ancestor.__name__ for ancestor in type(scheduler).__mro__} & FLOW_CLASSES:
        return True

    # Variance-exploding ones are set up with the range of their sigmas, or with betas.
    has_other = hasattr(scheduler, "alphas_cumprod") or "sigma_max" in config
    if has_other and not hasattr(scheduler, "scale_noise"):
        return False
    sigmas = getattr(scheduler, "sigmas", None)
    if not isinstance(sigmas, Tensor) or sigmas.numel() == 0:
        return False
    return bool(sigmas.min() >= 0) and bool(sigmas.max() <= 1)


def noise_to_signal(
    scheduler: Any, timestep: Any, index: int | None, device: torch.device
) -> Float[Tensor, ""]:
    """Sigma of one step as a scalar on the device, without waiting for the device.

    Args:
        scheduler: a diffusers scheduler in its loop.
        timestep: the timestep given to `scheduler.step`, a number or a tensor; None where it takes
            none.
        index: position in `scheduler.sigmas`, where the scheduler counts its steps.
        device: where the result lives.

    Returns:
        NaN where the scheduler does not say.
    """
    unknown = torch.full((), torch.nan, device=device)
    if index is not None and _lists_sigmas(scheduler):
        sigma = _placed(_listed(scheduler, index), device)
        if not is_flow(scheduler):
            return sigma
        return (1 - sigma) / sigma if _is_inverted(scheduler) else sigma / (1 - sigma)
    if index is not None and _lists_angles(scheduler):
        return _placed(scheduler.betas[index] / scheduler.alphas[index], device)
    if timestep is None:
        return unknown

    time = torch.as_tensor(timestep, device=device).flatten()[:1]
    if hasattr(scheduler, "alphas_cumprod"):
        kept = _kept_signal(scheduler, time.long(), device)
    elif hasattr(scheduler, "_alpha_cumprod"):  # Wuerstchen's: a function of a time in [0, 1]
        kept = scheduler._alpha_cumprod(time, device).squeeze(0).float()
    else:
        return unknown
    return ((1 - kept) / kept).sqrt()


def _kept_signal(
    scheduler: Any, time: Int[Tensor, " step"], device: torch.device
) -> Float[Tensor, ""]:
    """Share of the signal's variance in the latent with which a step begins, abar."""
    abar = scheduler.alphas_cumprod.to(device, non_blocking=True)
    if not {kind.__name__ for kind in type(scheduler).__mro__} & STEPS_BACK:
        return abar.index_select(0, time).squeeze(0).float()
    begin = time - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    kept = abar.index_select(0, begin.clamp(min=0)).squeeze(0)
    return torch.where(begin.squeeze(0) < 0, float(scheduler.initial_alpha_cumprod), kept).float()


def _is_inverted(scheduler: Any) -> bool:
    """Whether a flow scheduler lists shares of data instead of noise, as Mochi's does."""
    return bool(scheduler.config.get("invert_sigmas", False))


def _lists_sigmas(scheduler: Any) -> bool:
    """Whether it holds the sigmas of its steps, and perhaps of the end."""
    sigmas = getattr(scheduler, "sigmas", None)
    if not isinstance(sigmas, Tensor) or scheduler.timesteps is None:
        return False
    return 0 <= len(sigmas) - len(scheduler.timesteps) <= 3


def _listed(scheduler: Any, index: int) -> Float[Tensor, ""]:
    """The scheduler's own sigma of a step."""
    # Every second step of these begins at a point between two of the listed sigmas.
    if index % 2 == 1:
        if hasattr(scheduler, "sigmas_interpol"):
            place = index - 1 if hasattr(scheduler, "sigmas_down") else index
            return scheduler.sigmas_interpol[place].float()
        if hasattr(scheduler, "mid_point_sigma"):
            return (scheduler.sigmas[index - 1] * scheduler.sigmas[index]).sqrt().float()
    return scheduler.sigmas[index].float()


def _lists_angles(scheduler: Any) -> bool:
    """Whether a latent is `alphas * x0 + betas * noise`, as in IPNDM."""
    return hasattr(scheduler, "ets") and not hasattr(scheduler, "alphas_cumprod")


def _placed(sigma: Float[Tensor, ""], device: torch.device) -> Float[Tensor, ""]:
    # Most schedulers keep sigmas on the host, flow matching on the device; neither way waits.
    return sigma if sigma.device == device else torch.full((), float(sigma), device=device)


def first_step(scheduler: Any, timestep: Any) -> int:
    """Where in the scheduler's steps a loop begins; it may be within them.

    Schedulers that count say so. Of others the timestep does.

    Args:
        scheduler: a diffusers scheduler at the start of its loop.
        timestep: with which the denoiser begins, a number or a tensor; None where that is not
            known.
    """
    begin = getattr(scheduler, "begin_index", None)
    if begin is not None or timestep is None:
        return begin or 0
    timesteps = torch.as_tensor(scheduler.timesteps).tolist()
    first = float(torch.as_tensor(timestep).flatten()[0])
    return timesteps.index(first) if first in timesteps else 0


def noise_levels(scheduler: Any, timestep: Any, iterations: int) -> tuple[list[float], list[float]]:
    """Timestep and sigma of every iteration of a loop.

    Args:
        scheduler: a diffusers scheduler at the start of its loop.
        timestep: as `first_step` takes it.
        iterations: of the loop.
    """
    timesteps = torch.as_tensor(scheduler.timesteps).tolist()
    begin = first_step(scheduler, timestep)
    steps = range(begin, begin + iterations)
    host = torch.device("cpu")
    sigmas = [noise_to_signal(scheduler, timesteps[step], step, host) for step in steps]
    return [float(timesteps[step]) for step in steps], [float(sigma) for sigma in sigmas]


def clean_latent(
    scheduler: Any,
    prediction: Float[Tensor, "n ..."],
    sample: Float[Tensor, "n ..."],
    sigma: Float[Tensor, ""],
) -> Float[Tensor, "n ..."]:
    """The latent without noise that a prediction implies, up to a factor of the step.

    With `x = s * (x0 + sigma * eps)` the common factor `s` (1 or `1 / sqrt(1 + sigma^2)` or `1 / (1
    + sigma)`) and, for v and flow prediction, the slope are fixed by the kind of prediction.
    Schedulers that precondition the network (EDM's, consistency models') do it themselves.

    Returns:
        NaN where the scheduler does not say what its network predicts (`tells_clean_latent`).

    Source: Karras et al. 2022, arXiv 2206.00364, table 1, for the preconditioned ones.
    """
    kind = _prediction_kind(scheduler)
    if kind is None:
        return torch.full_like(sample, torch.nan)
    if hasattr(scheduler, "precondition_outputs"):
        return scheduler.precondition_outputs(sample, prediction, sigma)
    if hasattr(scheduler, "get_scalings_for_boundary_condition"):
        skip, out = scheduler.get_scalings_for_boundary_condition(sigma)
        return skip * sample + out * prediction
    if kind == "flow_prediction":
        return sample - (-prediction if _points_to_data(scheduler) else prediction) / (
            1 + 1 / sigma
        )

    # Both are finite where there is only noise: sigma = inf.
    if is_flow(scheduler):
        signal, noise = 1 / (1 + sigma), 1 / (1 + 1 / sigma)
    else:
        signal, noise = (1 + sigma**2).rsqrt(), (1 + sigma**-2).rsqrt()
    exploding = getattr(scheduler, "init_noise_sigma", 1.0) != 1.0
    if kind == "epsilon":
        return sample - prediction * (sigma if exploding else noise)
    if kind == "v_prediction":
        unit = sample * signal if exploding else sample
        return unit * signal - prediction * noise
    return prediction  # "sample": the network predicts the clean latent itself


def tells_clean_latent(scheduler: Any) -> bool:
    """Whether the scheduler says what its network predicts, so that `clean_latent` knows."""
    return _prediction_kind(scheduler) is not None


def _prediction_kind(scheduler: Any) -> str | None:
    """What the network predicts, one of `PREDICTIONS`; None where that is something else."""
    if {kind.__name__ for kind in type(scheduler).__mro__} & OTHER_PREDICTIONS:
        return None
    config = scheduler.config
    if is_flow(scheduler) and not config.get("use_flow_sigmas", False):
        return "flow_prediction"
    usual = "v_prediction" if _lists_angles(scheduler) else "epsilon"
    kind = config.get("prediction_type", usual)
    return kind if kind in PREDICTIONS else None


def _points_to_data(scheduler: Any) -> bool:
    """Whether the network of a flow scheduler predicts the velocity towards the data."""
    kinds = {kind.__name__ for kind in type(scheduler).__mro__}
    return bool(kinds & TOWARDS_DATA) or _is_inverted(scheduler)
