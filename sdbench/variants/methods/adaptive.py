"""Adaptive guidance: each image is guided until its two predictions are nearly parallel.

Source: Castillo et al. 2023, arXiv 2312.12487.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sdbench.variants.arguments import matched
from sdbench.variants.fitted_scale import is_laid_out_like
from sdbench.variants.noise import clean_latent, tells_clean_latent
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.rows import row_index
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Step, Unsupported
from sdbench.variants.variant import Method, Variant


class Adaptive(Policy):
    """Guidance of each image until its two predictions of the clean latent are nearly parallel.

    The decision is taken on the device, by image. The batch shrinks by the images that stopped as
    soon as the host knows of it: at once on a CPU; on CUDA one step later, so that the host waits
    for a step that is over, not for the one that runs.

    Source: Castillo et al. 2023, arXiv 2312.12487. There the cosine is of the raw predictions,
    which in noise prediction are nearly parallel from the start.
    """

    needs_sigma = True
    shrinks = True

    def __init__(self, threshold: float) -> None:
        """Take the cosine above which an image is no longer guided."""
        self.threshold = threshold

    def begins(self, loop: Loop) -> None:
        """Guide every image.

        Raises:
            Unsupported: what the network predicts is not known.
        """
        super().begins(loop)
        if not tells_clean_latent(loop.scheduler):
            raise Unsupported(
                f"{type(loop.scheduler).__name__} does not say what its network predicts: "
                "adaptive compares clean latents"
            )
        self._stopped: Bool[Tensor, " images"] | None = None
        self._copies: list[Any] = []
        self._active = list(range(loop.images))
        self._predictions: tuple[Float[Tensor, "active ..."], ...] | None = None

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

    def _of_active(self, rows: Float[Tensor, "images ..."]) -> Float[Tensor, "active ..."]:
        if len(self._active) == len(rows):
            return rows
        return rows.index_select(0, row_index(tuple(self._active), rows.device))

    def scheduler_begins(self, step: Step) -> None:
        """Decide for each image that was guided: within the step, whose time it is."""
        if self._predictions is None:
            return
        assert step.sample is not None
        if not is_laid_out_like(self._of_active(step.sample), self._predictions[0]):
            raise Unsupported(
                "the scheduler gets these latents in another layout than the denoiser gives them"
            )
        sample = self._of_active(step.sample).float()
        channels = step.sample.shape[1]
        sigma = torch.full((), self.loop.sigmas[step.index], device=sample.device)

        def clean(prediction: Float[Tensor, "active ..."]) -> Float[Tensor, "active values"]:
            prediction = prediction.narrow(1, 0, channels).float()  # learned variances follow it
            return clean_latent(self.loop.scheduler, prediction, sample, sigma).flatten(1)

        cond, uncond = self._predictions
        cosine = torch.nn.functional.cosine_similarity(clean(cond), clean(uncond), dim=1)
        passed = cosine > self.threshold

        # Images that stopped before were not compared; their places are filled with False.
        if len(self._active) < self.loop.images:
            where = row_index(tuple(self._active), passed.device)
            none = torch.zeros(self.loop.images, dtype=torch.bool, device=passed.device)
            passed = none.index_copy(0, where, passed)
        self._stopped = passed if self._stopped is None else self._stopped | passed
        self._copies.append(_Copy(self._stopped))


class _Copy:
    """A copy on the host that is waited for only when it is read."""

    def __init__(self, tensor: Bool[Tensor, " images"]) -> None:
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self._host.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event() if tensor.is_cuda else None
        if self._event is not None:
            self._event.record()

    def tolist(self) -> list[bool]:
        if self._event is not None:
            self._event.synchronize()
        return list(map(bool, self._host))


def _adaptive(name: str, argument: str | None) -> Variant:
    (text,) = matched(argument, r"(0\.\d+)", "adaptive:C, a cosine below 1")
    return Variant(name, GuidanceSchedule.full, policy=lambda _: Adaptive(float(text)))


METHODS = (
    Method(
        "adaptive",
        "adaptive:0.99",
        "each image guided until the cosine of its two predictions of the clean latent "
        "passes the threshold",
        _adaptive,
        source="Castillo et al. 2023, arXiv 2312.12487",
        group="policies",
        examples=("adaptive:0.9",),
    ),
)
