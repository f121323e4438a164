"""A cached offset: the difference of the two predictions is kept, and refreshed in some steps only.

Source: Lv et al. 2024, arXiv 2410.19355 (CFG-cache of FasterCache), refreshes by a period; Dinh et
al. 2024, arXiv 2408.11194 (compress guidance), in a number of steps, more of them early.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.arguments import NUMBER, matched
from sdbench.variants.policy import Loop, Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Unsupported
from sdbench.variants.variant import Method, Variant


class CachedOffset(Policy):
    """The difference of the two predictions from the last step in which both were evaluated.

    Args:
        refreshed: from the number of iterations to the steps in which both are evaluated; the first
            always is.
        split: weigh low and high frequencies of the difference apart, as FasterCache does.

    Source: Lv et al. 2024, arXiv 2410.19355 (CFG-cache), with the weights of diffusers'
        `FasterCacheConfig`.
    """

    def __init__(self, refreshed: Callable[[int], set[int]], *, split: bool = False) -> None:
        """Keep nothing yet."""
        self.refreshed = refreshed
        self.split = split

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
    """Low and high frequencies of latents, which sum to them.

    Low ones are within a fifth of the shorter side.
    """
    height, width = latents.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(latents.float()), dim=(-2, -1))
    y = torch.arange(height, device=latents.device) - height // 2
    x = torch.arange(width, device=latents.device) - width // 2
    inside = y[:, None] ** 2 + x[None, :] ** 2 <= (min(height, width) // 5) ** 2
    low = torch.fft.ifft2(torch.fft.ifftshift(spectrum * inside, dim=(-2, -1))).real.to(
        latents.dtype
    )
    return low, latents - low


def _cached(name: str, argument: str | None) -> Variant:
    grammar = "cached:PERIOD[,from=STEP][,split], a period of at least 2"
    period, begin, split = matched(argument, r"(\d+)(?:,from=(\d+))?(,split)?", grammar)
    if int(period) < 2:
        raise ValueError(f"expected {grammar}")

    def refreshed(steps: int) -> set[int]:
        start = int(begin or 0)
        return {0, *range(min(start, steps)), *range(start, steps, int(period))}

    return _refreshing(name, refreshed, split=split is not None)


def _compressed(name: str, argument: str | None) -> Variant:
    grammar = "compressed:COUNT[^POWER]"
    count_text, power = matched(argument, rf"([1-9]\d*)(?:\^({NUMBER}))?", grammar)
    count = int(count_text)

    def refreshed(steps: int) -> set[int]:
        if count > steps:
            raise ValueError(f"{count} guided steps do not fit in {steps}")

        # A step that is taken goes to the next one, and what goes beyond the end comes back.
        places: list[int] = []
        for index in range(count):
            place = round(steps * (index / count) ** float(power or 1) - 0.5 + 1e-9)
            places.append(max(place, places[-1] + 1 if places else 0))
        last = steps - 1
        return {min(step, last - (count - 1 - index)) for index, step in enumerate(places)}

    return _refreshing(name, refreshed, split=False)


def _refreshing(name: str, refreshed: Callable[[int], set[int]], *, split: bool) -> Variant:
    """A cached offset; its rule says which steps evaluate both predictions."""

    def rule(steps: int) -> GuidanceSchedule:
        return GuidanceSchedule(tuple(step in refreshed(steps) for step in range(steps)))

    return Variant(name, rule, policy=lambda _: CachedOffset(refreshed, split=split))


METHODS = (
    Method(
        "cached",
        "cached:5|cached:5,from=20|cached:5,split",
        "the predictions' difference refreshed in one step of 5, from a step on; "
        "`split`: by frequency",
        _cached,
        source="Lv et al. 2024, arXiv 2410.19355",
        group="policies",
        examples=("cached:2", "cached:3,from=2,split"),
    ),
    Method(
        "compressed",
        "compressed:20|compressed:20^2",
        "the difference refreshed in 20 steps, more of them early with a power above 1",
        _compressed,
        source="Dinh et al. 2024, arXiv 2408.11194",
        group="policies",
        examples=("compressed:3", "compressed:3^2"),
    ),
)
