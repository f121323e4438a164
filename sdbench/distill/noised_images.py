"""Captioned images as a source of examples: encoded, noised, and seen once by the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from sdbench.distill.captions import Captioned
from sdbench.distill.examples import Examples, Scales, Teaching
from sdbench.distill.pipeline_call import EnoughSeen, call_pipeline
from sdbench.models.pipeline import Pipeline, Scheduler, denoiser_of
from sdbench.variants.noise import is_flow
from sdbench.variants.rows import Layout, first_tensor, map_tensors

DenoiserCall = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments and keyword arguments of a denoiser."""


class Images:
    """Captioned images through the autoencoder, at random noise levels.

    The teacher sees each of them once.

    Args:
        pipe: a pipeline that evaluates both predictions in one call, on the autoencoder's own
            latents.
        captioned: draws prompts and images.
        scales: w, or its range.
        rows: of a batch.
        seed: of images, noise and noise levels; several numbers where several processes share the
            work.
        arguments: further arguments of the pipeline's call.
    """

    def __init__(
        self,
        pipe: Pipeline,
        captioned: Captioned,
        *,
        scales: Scales,
        rows: int,
        seed: Sequence[int],
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Run nothing yet."""
        self.pipe = pipe
        self.captioned = captioned
        self.scales = scales
        self.rows = rows
        self.seed = tuple(seed)
        self.arguments = arguments

    @torch.no_grad()
    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of a training step.

        Raises:
            ValueError: a pipeline that this source does not serve.
        """
        rng = np.random.default_rng([*self.seed, step])
        prompts, images = self.captioned(rng, self.rows)
        call = self._recorded_call(list(prompts))
        latents = self._latents(images)
        self._require_same_latents(first_tensor(call), latents, images)

        # The noise is drawn on the CPU, so that it is the same on every device.
        generator = torch.Generator("cpu").manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        level = torch.from_numpy(rng.random(self.rows)).to(latents.device, torch.float32)
        noisy, timesteps, sigma = noised(self.pipe.scheduler, latents, noise, level)

        args, kwargs = self._with_inputs(call, noisy, timesteps)
        with teaching():
            uncond, cond = first_tensor(denoiser_of(self.pipe)(*args, **kwargs)).chunk(2)

        # Learned variances follow the prediction.
        channels = latents.shape[1]
        cond = cond.narrow(1, 0, channels)
        uncond = uncond.narrow(1, 0, channels)
        args, kwargs = Layout(2 * self.rows).halves((args, kwargs))[1]
        return Examples(args, kwargs, cond, uncond, sigma, self.scales.rows(rng, self.rows))

    def _recorded_call(self, prompts: list[str]) -> DenoiserCall:
        """What the pipeline gives its denoiser in the first step for these prompts."""
        calls: list[DenoiserCall] = []

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls.append((args, kwargs))
            raise EnoughSeen

        hook = denoiser_of(self.pipe).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(EnoughSeen):
                self._call(prompts)
        finally:
            hook.remove()
        return calls[0]

    def _call(self, prompts: list[str]) -> None:
        call_pipeline(
            self.pipe,
            prompts,
            None,  # only the embeddings are kept of the call
            guidance_scale=self.scales.hi,
            num_steps=2,
            output_type="latent",
            arguments=self.arguments,
        )

    def _latents(
        self, images: UInt8[np.ndarray, "n height width 3"]
    ) -> Float[Tensor, "n channels height width"]:
        """The images as the autoencoder's latents, in the unit of the denoiser."""
        vae = self.pipe.components["vae"]
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        latents: Float[Tensor, "n channels height width"] = vae.encode(pixels).latent_dist.mode()
        return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def _require_same_latents(
        self,
        sample: Float[Tensor, "rows ..."],
        latents: Float[Tensor, "n channels height width"],
        images: UInt8[np.ndarray, "n height width 3"],
    ) -> None:
        """Refuse a denoiser that takes something else than both halves of these latents."""
        expected = (2 * self.rows, *latents.shape[1:])
        if sample.shape == expected:
            return

        name = type(self.pipe).__name__
        if sample.shape[:2] == expected[:2]:
            height, width = images.shape[1:3]
            raise ValueError(f"{name} makes images of another size than {height} x {width}")
        raise ValueError(
            f"{name} does not take the autoencoder's latents, both halves in one call; "
            "learn from trajectories"
        )

    def _with_inputs(
        self,
        call: DenoiserCall,
        noisy: Float[Tensor, "n channels height width"],
        timesteps: Float[Tensor, " n"],
    ) -> DenoiserCall:
        """A recorded call with other latents and timesteps, the same in both of its halves."""
        args, kwargs = call
        sample = first_tensor(call)
        timestep: Shaped[Tensor, "*shape"] = args[1] if len(args) > 1 else kwargs["timestep"]

        # Some denoisers count from 0 to 1.
        unit = float(timestep.flatten()[0]) / float(self.pipe.scheduler.timesteps[0])
        doubled_timesteps = (timesteps * unit).to(timestep.dtype).repeat(2)
        doubled = noisy.to(sample).repeat(2, *[1] * (noisy.ndim - 1))

        replacements = {id(sample): doubled, id(timestep): doubled_timesteps}
        changed: DenoiserCall = map_tensors(
            call, lambda tensor: replacements.get(id(tensor), tensor)
        )
        return changed


def noised(
    scheduler: Scheduler,
    latents: Float[Tensor, "n ..."],
    noise: Float[Tensor, "n ..."],
    level: Float[Tensor, " n"],
) -> tuple[Float[Tensor, "n ..."], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Latents with the noise that the denoiser was trained on, and where that is on its time axis.

    Args:
        scheduler: of the pipeline; its training schedule counts, not the one it samples with.
        latents: clean ones.
        noise: standard normal, of the same shape.
        level: in [0, 1): how far along the time axis.

    Returns:
        The noisy latents as the denoiser takes them, the timesteps in the scheduler's unit, and
        sigma.

    Raises:
        ValueError: the scheduler neither interpolates nor has a table of its training's noise.
    """
    count = scheduler.config["num_train_timesteps"]
    if is_flow(scheduler):
        share = (level * (count - 1) + 1) / count  # of noise, never 0
        wide = share.reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - wide) * latents + wide * noise, share * count, share / (1 - share)

    # Its own table: another class made from its config has other defaults for what was not given.
    trained = getattr(scheduler, "alphas_cumprod", None)
    if trained is None:
        name = type(scheduler).__name__
        raise ValueError(f"{name} has no table of noise to train on: use trajectories as data")
    timesteps = (level * count).long()
    kept = trained.to(level.device)[timesteps].float()
    wide = kept.to(latents.dtype).reshape(-1, *[1] * (latents.ndim - 1))
    noisy = wide**0.5 * latents + (1 - wide) ** 0.5 * noise
    return noisy, timesteps.float(), ((1 - kept) / kept).sqrt()
