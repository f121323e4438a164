"""Ways of guiding that are decided while the loop runs: by noise level, per image, from a cache, by another formula.

A pipeline guides by `u + w (c - u)` and sdbench does not touch that. A policy says for which images the unconditional
prediction u is evaluated, and what the pipeline gets in its place: `c - offset` for any offset that a method uses for
`c - u`. So every method runs on every pipeline. Fixed masks need no policy; they are in `schedule.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.noise import clean_latent, is_flow
from sdbench.variants.rows import row_index
from sdbench.variants.trace import Listener, Step, Unsupported


@dataclass(frozen=True)
class Loop:
    """What is known when a denoising loop begins.

    Args:
        iterations: of the loop.
        shape: of the latents, images first.
        timesteps: of every iteration, in the scheduler's unit.
        sigmas: noise-to-signal ratio at the start of every iteration.
        scheduler: of the pipeline.
        on_cuda: whether the host runs ahead of the device.
    """

    iterations: int
    shape: tuple[int, ...]
    timesteps: Sequence[float]
    sigmas: Sequence[float]
    scheduler: Any
    on_cuda: bool

    @property
    def images(self) -> int:
        """Of the call."""
        return self.shape[0]


class Policy(Listener):
    """Guides as the pipeline does; others override what they change. An object serves one call after another.

    Attributes:
        shrinks: whether it evaluates other numbers of rows than those of one and of both halves.
    """

    shrinks = False

    def begins(self, loop: Loop) -> None:
        """A loop is about to run; forget the last one."""
        self.loop = loop

    def evaluated(self, step: int) -> list[int] | None:
        """Images whose unconditional prediction is evaluated at a step; None for all. Asked any number of times."""
        return None

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """What the pipeline gets for the unconditional prediction; None for what was evaluated, of all images.

        Args:
            step: index in the loop.
            cond: the conditional prediction.
            uncond: the unconditional one of the images that were evaluated, None without any.
        """
        return cond if uncond is None else None


class Interval(Policy):
    """Guidance at noise levels in (lo, hi] only.

    Source: Kynkäänniemi et al. 2024, arXiv 2404.07724.
    """

    def __init__(self, lo: float, hi: float) -> None:
        """Take bounds of sigma, the noise-to-signal ratio."""
        self.lo, self.hi = lo, hi

    def evaluated(self, step: int) -> list[int] | None:
        """All images within the interval, none outside."""
        return None if self.lo < self.loop.sigmas[step] <= self.hi else []


class Adaptive(Policy):
    """Guidance of each image until its two predictions of the clean latent are nearly parallel.

    The decision is taken on the device, by image. The batch shrinks by the images that stopped as soon as the host
    knows of it: at once on a CPU; on CUDA one step later, so that the host waits for a step that is over, not for the
    one that runs.

    Source: Castillo et al. 2023, arXiv 2312.12487; there the cosine is of the raw predictions, which in noise
    prediction are nearly parallel from the start.
    """

    shrinks = True

    def __init__(self, threshold: float) -> None:
        """Take the cosine above which an image is no longer guided."""
        self.threshold = threshold

    def begins(self, loop: Loop) -> None:
        """Guide every image."""
        super().begins(loop)
        self._stopped: Tensor | None = None
        self._copies: list[Any] = []
        self._active = list(range(loop.images))
        self._predictions: tuple[Tensor, Tensor] | None = None

    def evaluated(self, step: int) -> list[int] | None:
        """The images that are not known to have stopped."""
        late = 1 if self.loop.on_cuda else 0
        while len(self._copies) > late:
            stopped = self._copies.pop(0).tolist()
            self._active = [image for image in self._active if not stopped[image]]
        return self._active

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """Leave the images as they are that are still guided."""
        self._predictions = None if uncond is None else (self._of_active(cond), uncond)
        if uncond is None:
            return cond
        if len(self._active) == len(cond):
            filled = uncond
        else:
            filled = cond.index_copy(0, row_index(tuple(self._active), cond.device), uncond)
        if self._stopped is None:
            return filled
        return torch.where(self._stopped.reshape(-1, *[1] * (cond.ndim - 1)), cond, filled)

    def _of_active(self, rows: Tensor) -> Tensor:
        if len(self._active) == len(rows):
            return rows
        return rows.index_select(0, row_index(tuple(self._active), rows.device))

    def scheduler_begins(self, step: Step) -> None:
        """Decide for each image that was guided: within the step, so that its time is the step's."""
        if self._predictions is None:
            return
        assert step.sample is not None
        sample, channels = self._of_active(step.sample).float(), step.sample.shape[1]
        sigma = torch.full((), self.loop.sigmas[step.index], device=sample.device)

        def clean(prediction: Tensor) -> Tensor:
            prediction = prediction.narrow(1, 0, channels).float()  # learned variances follow it
            return clean_latent(self.loop.scheduler, prediction, sample, sigma).flatten(1)

        cond, uncond = self._predictions
        passed = (
            torch.nn.functional.cosine_similarity(clean(cond), clean(uncond), dim=1)
            > self.threshold
        )
        if len(self._active) < self.loop.images:
            where = row_index(tuple(self._active), passed.device)
            passed = torch.zeros(
                self.loop.images, dtype=torch.bool, device=passed.device
            ).index_copy(0, where, passed)
        self._stopped = passed if self._stopped is None else self._stopped | passed
        self._copies.append(_Copy(self._stopped))


class _Copy:
    """A copy on the host that is waited for only when it is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[bool]:
        if self._event is not None:
            self._event.synchronize()
        return list(map(bool, self._host))


class CachedOffset(Policy):
    """The difference of the two predictions from the last step in which both were evaluated.

    Args:
        refreshed: from the number of iterations to the steps in which both are evaluated; the first always is.
        split: weigh low and high frequencies of the difference apart, as FasterCache does.

    Source: Lv et al. 2024, arXiv 2410.19355 (CFG-cache), with the weights of diffusers' `FasterCacheConfig`.
    """

    def __init__(self, refreshed: Callable[[int], set[int]], *, split: bool = False) -> None:
        """Keep nothing yet."""
        self.refreshed, self.split = refreshed, split

    def begins(self, loop: Loop) -> None:
        """Forget the last call's difference.

        Raises:
            Unsupported: frequencies of latents that are packed into tokens.
        """
        super().begins(loop)
        if self.split and len(loop.shape) < 4:
            raise Unsupported(
                "frequencies are those of an image, but these latents are packed into tokens"
            )
        self._steps = self.refreshed(loop.iterations) | {0}
        self._parts: tuple[Tensor, ...] = ()

    def evaluated(self, step: int) -> list[int] | None:
        """All images where the difference is refreshed, none elsewhere."""
        return None if step in self._steps else []

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """The evaluated prediction, or the conditional one and the kept difference."""
        if uncond is not None:
            self._parts = frequencies(uncond - cond) if self.split else (uncond - cond,)
            return None
        if self.split:  # the gains add up from step to step, until the next refresh
            level = self.loop.timesteps[step]
            low, high = self._parts
            self._parts = (
                low * (LOW_GAIN if 99 < level < 901 else 1.0),
                high * (HIGH_GAIN if level < 301 else 1.0),
            )
        return cond + sum(self._parts)


LOW_GAIN = HIGH_GAIN = 1.1


def frequencies(latents: Float[Tensor, "n ... height width"]) -> tuple[Tensor, Tensor]:
    """Low and high frequencies of latents, which sum to them; low ones are within a fifth of the shorter side."""
    height, width = latents.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(latents.float()), dim=(-2, -1))
    y = torch.arange(height, device=latents.device) - height // 2
    x = torch.arange(width, device=latents.device) - width // 2
    inside = y[:, None] ** 2 + x[None, :] ** 2 <= (min(height, width) // 5) ** 2
    low = torch.fft.ifft2(torch.fft.ifftshift(spectrum * inside, dim=(-2, -1))).real.to(
        latents.dtype
    )
    return low, latents - low


class WeightSchedule(Policy):
    """A guidance scale of its own for every step.

    Args:
        scale: from the share of the steps that have run, in [0, 1], and w to the scale of the step.
        guidance_scale: w that the pipeline is asked for.

    Source: Wang et al. 2024, arXiv 2404.13040.
    """

    def __init__(self, scale: Callable[[float, float], float], guidance_scale: float) -> None:
        """Evaluate nothing yet."""
        self.scale, self.guidance_scale = scale, guidance_scale

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """The prediction that makes the pipeline's own formula guide by this step's scale."""
        assert uncond is not None
        run = step / max(1, self.loop.iterations - 1)
        factor = (self.scale(run, self.guidance_scale) - 1) / (self.guidance_scale - 1)
        return cond - factor * (cond - uncond)


def linear(run: float, guidance_scale: float) -> float:
    """From no guidance on, with w as its mean."""
    return 1 + (guidance_scale - 1) * 2 * run


def cosine(run: float, guidance_scale: float) -> float:
    """From no guidance on along half a wave, with w as its mean."""
    return 1 + (guidance_scale - 1) * (1 - math.cos(math.pi * run))


class Guider(Policy):
    """Another formula for the two predictions, by a guider of diffusers.

    Args:
        make: from the guidance scale, and whether the scheduler matches flows, to a `BaseGuidance`.
        guidance_scale: w that the pipeline is asked for.
    """

    def __init__(self, make: Callable[[float, bool], Any], guidance_scale: float) -> None:
        """Make no guider yet: each loop gets its own."""
        self.make, self.guidance_scale = make, guidance_scale

    def begins(self, loop: Loop) -> None:
        """Start with a guider that knows nothing."""
        super().begins(loop)
        self._guider = self.make(self.guidance_scale, is_flow(loop.scheduler))

    def unconditional(
        self,
        step: int,
        cond: Float[Tensor, "images ..."],
        uncond: Float[Tensor, "evaluated ..."] | None,
    ) -> Float[Tensor, "images ..."] | None:
        """The prediction of which the pipeline's own formula makes the guider's."""
        assert uncond is not None
        self._guider.set_state(step=step, num_inference_steps=self.loop.iterations, timestep=None)
        channels = self.loop.shape[1]
        learned = (
            cond.ndim > 3 and cond.shape[1] == 2 * channels
        )  # a variance that the formula is not about
        c, u = (part.narrow(1, 0, channels) if learned else part for part in (cond, uncond))
        given = c - (self._guider.forward(c, u).pred - c) / (self.guidance_scale - 1)
        return torch.cat([given, uncond.narrow(1, channels, channels)], dim=1) if learned else given


def guider(kind: str, guidance_scale: float, flow: bool) -> Any:
    """A guider of diffusers.

    Args:
        kind: "apg" (adaptive projected guidance, only what is orthogonal to the conditional prediction), "cfg-zero"
            (CFG-Zero*, with its zero first step where flows are matched) or "tcfg" (tangential damping).
        guidance_scale: w.
        flow: whether the scheduler matches flows.
    """
    from diffusers.guiders import (
        AdaptiveProjectedGuidance,
        ClassifierFreeZeroStarGuidance,
        TangentialClassifierFreeGuidance,
    )

    with _no_notice():
        if kind == "apg":
            return AdaptiveProjectedGuidance(guidance_scale=guidance_scale, eta=0.0)
        if kind == "cfg-zero":
            return ClassifierFreeZeroStarGuidance(
                guidance_scale=guidance_scale, zero_init_steps=int(flow)
            )
        return TangentialClassifierFreeGuidance(guidance_scale=guidance_scale)


@contextmanager
def _no_notice() -> Iterator[None]:
    """Guiders say at each construction that their interface may change."""
    log = logging.getLogger("diffusers.guiders.guider_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
