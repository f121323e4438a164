"""How noisy a step is, whatever the scheduler, and which clean latent a prediction means.

The noise-to-signal ratio `sigma` is the one scale that schedulers share: a latent is `signal * (x0
+ sigma * noise)`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def is_flow(scheduler: Any) -> bool:
    """Whether the scheduler interpolates between data and noise (flow matching)."""
    config = scheduler.config
    flow_sigmas = config.get("use_flow_sigmas", False)
    return (
        type(scheduler).__name__.startswith("FlowMatch")
        or flow_sigmas
        or config.get("prediction_type") == "flow_prediction"
    )


def noise_to_signal(
    scheduler: Any, timestep: Any, index: int | None, device: torch.device
) -> Float[Tensor, ""]:
    """Sigma of one step as a scalar on the device, without waiting for the device.

    Args:
        scheduler: a diffusers scheduler in its loop.
        timestep: the timestep given to `scheduler.step`, a number or a scalar tensor.
        index: position in `scheduler.sigmas`, where the scheduler counts its steps.
        device: where the result lives.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if index is not None and isinstance(sigmas, Tensor) and len(sigmas) >= len(scheduler.timesteps):
        # Most schedulers keep sigmas on the host, flow matching on the device; neither way waits.
        on_device = sigmas.device == device
        sigma = (
            sigmas[index].float()
            if on_device
            else torch.full((), float(sigmas[index]), device=device)
        )
        return sigma / (1 - sigma) if is_flow(scheduler) else sigma
    position = torch.as_tensor(timestep, device=device).reshape(1).long()
    kept = (
        scheduler.alphas_cumprod.to(device, non_blocking=True)
        .index_select(0, position)
        .squeeze(0)
        .float()
    )
    return ((1 - kept) / kept).sqrt()


def noise_levels(scheduler: Any, timestep: Any, iterations: int) -> tuple[list[float], list[float]]:
    """Timestep and sigma of every iteration of a loop.

    A loop may begin within the scheduler's steps. Schedulers that count say where; of others the
    timestep does.

    Args:
        scheduler: a diffusers scheduler at the start of its loop.
        timestep: with which the denoiser begins, a number or a tensor.
        iterations: of the loop.
    """
    timesteps = scheduler.timesteps.tolist()
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:
        first = float(torch.as_tensor(timestep).flatten()[0])
        begin = timesteps.index(first) if first in timesteps else 0

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
    """
    if is_flow(scheduler):
        return sample - prediction / (1 + 1 / sigma)
    variance_preserving = getattr(scheduler, "init_noise_sigma", 1.0) == 1.0
    # Both are finite where there is only noise: sigma = inf.
    signal = (1 + sigma**2).rsqrt()
    noise = (1 + sigma**-2).rsqrt()

    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind == "epsilon":
        return sample - prediction * (noise if variance_preserving else sigma)
    if kind == "v_prediction":
        unit = sample if variance_preserving else sample * signal
        return unit * signal - prediction * noise
    return prediction  # "sample": the network predicts the clean latent itself
