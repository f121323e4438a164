"""What a student learns from: calls of the denoiser with conditional rows, and the guided prediction for each row.

The calls are recorded from the pipeline itself, so whatever its denoiser takes (pooled embeddings, sizes, packed
latents) is there without code per family. Everything depends on the seed and the step alone, so that a resumed run sees
what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from diffusers import DDPMScheduler
from jaxtyping import Float, UInt8
from torch import Tensor

from sdbench.distill.captions import Captioned, Captions
from sdbench.distill.loss import guided_prediction
from sdbench.variants.guidance import (
    call_replaced,
    denoiser_of,
    denoisers_of,
    guidance_arguments,
    guided_by,
)
from sdbench.variants.noise import is_flow
from sdbench.variants.rows import UNBATCHED, first_tensor, halves, map_tensors
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, Step

Teaching = Callable[[], AbstractContextManager[Any]]
"""Makes a block in which the pipeline is the teacher's and nothing is recorded for gradients."""


@dataclass(frozen=True)
class Scales:
    """The guidance scales that a student learns: one (`lo` is `hi`), or all between two, in no steps."""

    lo: float
    hi: float

    def trajectory(self, rng: np.random.Generator) -> float:
        """The scale of a trajectory of the teacher, above 1."""
        return self.hi - (self.hi - self.lo) * float(rng.random())

    def rows(self, rng: np.random.Generator, count: int) -> Float[Tensor, " count"]:
        """The scale that each row is taught."""
        return torch.from_numpy(self.hi - (self.hi - self.lo) * rng.random(count)).float()


class Examples(NamedTuple):
    """Rows to learn from.

    Attributes:
        args: of the denoiser's call, conditional rows only.
        kwargs: of the same call.
        cond: the teacher's conditional prediction of every row.
        uncond: its unconditional one.
        sigma: noise-to-signal ratio of every row.
        scale: w of every row, on the CPU.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    cond: Float[Tensor, "rows ..."]
    uncond: Float[Tensor, "rows ..."]
    sigma: Float[Tensor, " rows"]
    scale: Float[Tensor, " rows"]

    @property
    def target(self) -> Float[Tensor, "rows ..."]:
        """The guided prediction of every row."""
        return guided_prediction(self.cond, self.uncond, self.scale)


class Source(Protocol):
    """Gives the batch of every training step; the teacher runs under `teaching`."""

    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of one step, which depends on nothing else."""
        ...


class Trajectories:
    """The teacher's own guided trajectories: needs prompts and nothing else, for any guided pipeline.

    They come in rounds of one whole trajectory and others, of other prompts, that end after half of its steps, a
    quarter and so on down to one: guidance changes the noisiest latents most, and they decide what an image shows. The
    rows of a round are shuffled, so that a batch holds many noise levels. Of a range of scales a trajectory is guided
    by one, and each of its rows is taught another.

    Args:
        pipe: a guided pipeline.
        captions: draws prompts.
        scales: w, or its range.
        num_steps: of a trajectory.
        rows: prompts of a pipeline call, and rows of a batch.
        seed: of prompts, noise and order; several numbers where several processes share the work.
        arguments: further arguments of the pipeline's call.
    """

    def __init__(
        self,
        pipe: Any,
        captions: Captions,
        *,
        scales: Scales,
        num_steps: int,
        rows: int,
        seed: Sequence[int],
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Run nothing yet."""
        self.pipe, self.captions, self.scales, self.rows = pipe, captions, scales, rows
        self.seed = tuple(seed)
        self.arguments = {
            **(arguments or {}),
            "num_inference_steps": num_steps,
            "output_type": "latent",
        }
        self._round = -1
        self._steps: list[Examples] = []

    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of a training step; the teacher runs where it begins a new trajectory."""
        if not self._steps:
            self._record(0, teaching)
        length = len(self._steps)
        number, index = divmod(step, length)
        if number != self._round:
            self._record(number, teaching)
        order = np.random.default_rng([*self.seed, number, 1]).permutation(length * self.rows)
        picked = order[index * self.rows : (index + 1) * self.rows]
        scale = self.scales.rows(np.random.default_rng([*self.seed, number, 2, index]), self.rows)
        return _picked(self._steps, [divmod(int(pick), self.rows) for pick in picked], scale)

    def _record(self, number: int, teaching: Teaching) -> None:
        rng = np.random.default_rng([*self.seed, number, 0])
        self._round, self._steps = number, self._trajectory(rng, teaching, length=None)
        length = len(self._steps)
        while length > 1:
            length = (length + 1) // 2
            self._steps += self._trajectory(rng, teaching, length=length)

    def _trajectory(
        self, rng: np.random.Generator, teaching: Teaching, *, length: int | None
    ) -> list[Examples]:
        """The steps of one pipeline call, which ends after `length` of them."""
        prompts = list(self.captions(rng, self.rows))
        noise = [
            torch.Generator("cpu").manual_seed(int(seed))
            for seed in rng.integers(2**62, size=self.rows)
        ]
        guidance = guidance_arguments(self.pipe, self.scales.trajectory(rng), rows=self.rows)
        recorder = _Recorder(length)
        with suppress(_Seen), ExitStack() as undo:
            undo.enter_context(teaching())
            for denoiser in denoisers_of(self.pipe):
                undo.enter_context(call_replaced(denoiser, recorder.recording))
            undo.enter_context(guided_by(self.pipe, GuidanceSchedule.full, listeners=[recorder]))
            self.pipe(**{"prompt": prompts, "generator": noise} | guidance | self.arguments)
        return recorder.steps


class _Recorder(Listener):
    """Keeps what the denoiser is given in every step, and the two predictions that it makes of it."""

    def __init__(self, length: int | None) -> None:
        self.steps: list[Examples] = []
        self.length = length
        self._given: list[tuple[Any, Any]] = []

    def recording(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Beneath the seam, so that only what is evaluated is seen; ends the pipeline's call after the last step."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if len(self.steps) == self.length:
                raise _Seen
            self._given.append((args, kwargs))
            return original(*args, **kwargs)

        return call

    def step_ends(self, step: Step) -> None:
        """Keep the conditional rows: the second half of one call, or the first of two calls."""
        if step.cond is None or step.uncond is None:
            raise ValueError(
                f"the pipeline leaves step {step.index} unguided by itself: there is nothing to learn there"
            )
        assert step.sample is not None
        assert step.sigma is not None
        rows, given = len(step.sample), self._given[0]
        concatenated = len(first_tensor(given)) == 2 * rows
        args, kwargs = halves(given, 2 * rows)[1] if concatenated else given
        self._given = []
        channels = step.sample.shape[1]  # learned variances follow the prediction
        cond, uncond = (part.narrow(1, 0, channels) for part in (step.cond, step.uncond))
        sigma = step.sigma.expand(rows)
        self.steps.append(
            Examples(args, kwargs, cond, uncond, sigma, torch.full_like(sigma, torch.nan))
        )


class Images:
    """Captioned images through the autoencoder, at random noise levels; the teacher sees each of them once.

    Args:
        pipe: a pipeline that evaluates both predictions in one call, on the autoencoder's own latents.
        captioned: draws prompts and images.
        scales: w, or its range.
        rows: of a batch.
        seed: of images, noise and noise levels; several numbers where several processes share the work.
        arguments: further arguments of the pipeline's call.
    """

    def __init__(
        self,
        pipe: Any,
        captioned: Captioned,
        *,
        scales: Scales,
        rows: int,
        seed: Sequence[int],
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Run nothing yet."""
        self.pipe, self.captioned, self.scales, self.rows = pipe, captioned, scales, rows
        self.seed = tuple(seed)
        self.arguments = {**(arguments or {}), "num_inference_steps": 2, "output_type": "latent"}

    @torch.no_grad()
    def at(self, step: int, *, teaching: Teaching) -> Examples:
        """The batch of a training step.

        Raises:
            ValueError: a pipeline that this source does not serve.
        """
        rng = np.random.default_rng([*self.seed, step])
        prompts, images = self.captioned(rng, self.rows)
        args, kwargs = self._given(list(prompts))
        latents = self._latents(images)
        sample = first_tensor((args, kwargs))
        if sample.shape[:2] == (2 * self.rows, latents.shape[1]) and sample.shape != (
            2 * self.rows,
            *latents.shape[1:],
        ):
            height, width = images.shape[1:3]
            raise ValueError(
                f"{type(self.pipe).__name__} makes images of another size than {height} x {width}"
            )
        if sample.shape != (2 * self.rows, *latents.shape[1:]):
            raise ValueError(
                f"{type(self.pipe).__name__} does not take the autoencoder's latents, both halves in one call; "
                "learn from trajectories"
            )
        generator = torch.Generator("cpu").manual_seed(int(rng.integers(2**62)))
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        level = torch.from_numpy(rng.random(self.rows)).to(latents.device, torch.float32)
        noisy, timesteps, sigma = noised(self.pipe.scheduler, latents, noise, level)
        place = args[1] if len(args) > 1 else kwargs["timestep"]
        unit = float(place.flatten()[0]) / float(
            self.pipe.scheduler.timesteps[0]
        )  # some denoisers count from 0 to 1
        timesteps = (timesteps * unit).to(place.dtype).repeat(2)
        doubled = noisy.to(sample).repeat(2, *[1] * (noisy.ndim - 1))
        new = {id(sample): doubled, id(place): timesteps}
        args, kwargs = map_tensors((args, kwargs), lambda tensor: new.get(id(tensor), tensor))
        with teaching():
            uncond, cond = first_tensor(denoiser_of(self.pipe)(*args, **kwargs)).chunk(2)
        cond, uncond = (part.narrow(1, 0, latents.shape[1]) for part in (cond, uncond))
        args, kwargs = halves((args, kwargs), 2 * self.rows)[1]
        return Examples(args, kwargs, cond, uncond, sigma, self.scales.rows(rng, self.rows))

    def _given(self, prompts: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the pipeline would give its denoiser for these prompts."""
        seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def stop(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append((args, kwargs))
            raise _Seen

        guidance = guidance_arguments(self.pipe, self.scales.hi, rows=self.rows)
        hook = denoiser_of(self.pipe).register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(_Seen):
                self.pipe(**{"prompt": prompts} | guidance | self.arguments)
        finally:
            hook.remove()
        return seen[0]

    def _latents(
        self, images: UInt8[np.ndarray, "n height width 3"]
    ) -> Float[Tensor, "n channels height width"]:
        vae = self.pipe.vae
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
        latents: Tensor = vae.encode(pixels).latent_dist.mode()
        return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


class _Seen(Exception):
    """Ends a pipeline call of which enough was seen."""


def noised(
    scheduler: Any,
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
        The noisy latents as the denoiser takes them, the timesteps in the scheduler's unit, and sigma.
    """
    count = scheduler.config.num_train_timesteps
    if is_flow(scheduler):
        share = (level * (count - 1) + 1) / count  # of noise, never 0
        wide = share.reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - wide) * latents + wide * noise, share * count, share / (1 - share)
    trained = DDPMScheduler.from_config(scheduler.config)
    timesteps = (level * count).long()
    kept = trained.alphas_cumprod.to(level.device)[timesteps]
    return (
        trained.add_noise(latents, noise, timesteps),
        timesteps.float(),
        ((1 - kept) / kept).sqrt(),
    )


def _picked(
    steps: Sequence[Examples], picks: Sequence[tuple[int, int]], scale: Float[Tensor, " rows"]
) -> Examples:
    """Single rows of recorded steps as one batch, taught these scales; every pick is (step, row)."""
    calls = [steps[step] for step, _ in picks]
    cond, uncond, sigma = (
        torch.stack([getattr(steps[step], name)[row] for step, row in picks])
        for name in ("cond", "uncond", "sigma")
    )
    args, kwargs = gathered(
        [(call.args, call.kwargs) for call in calls], [row for _, row in picks], rows=len(picks)
    )
    return Examples(args, kwargs, cond, uncond, sigma, scale)


def gathered(trees: Sequence[Any], picks: Sequence[int], *, rows: int) -> Any:
    """One row of each of several alike nested arguments, joined; a scalar tensor (a timestep) becomes one per row."""
    first = trees[0]
    if isinstance(first, Tensor):
        if first.ndim == 0:
            return torch.stack(list(trees))
        return (
            torch.stack([tree[row] for tree, row in zip(trees, picks, strict=True)])
            if len(first) == rows
            else first
        )
    if isinstance(first, dict):
        return {
            key: value
            if key in UNBATCHED
            else gathered([tree[key] for tree in trees], picks, rows=rows)
            for key, value in first.items()
        }
    if isinstance(first, list | tuple):
        return type(first)(gathered(parts, picks, rows=rows) for parts in zip(*trees, strict=True))
    return first
