"""Limited-interval guidance: guided only at noise levels in (lo, hi].

Source: Kynkäänniemi et al. 2024, arXiv 2404.07724.
"""

from __future__ import annotations

from sdbench.variants.arguments import NUMBER, matched
from sdbench.variants.policy import Policy
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


class Interval(Policy):
    """Guidance at noise levels in (lo, hi] only.

    Source: Kynkäänniemi et al. 2024, arXiv 2404.07724.
    """

    needs_sigma = True

    def __init__(self, lo: float, hi: float) -> None:
        """Take bounds of sigma, the noise-to-signal ratio."""
        self.lo = lo
        self.hi = hi

    def evaluated(self, step: int) -> list[int] | None:
        """All images within the interval, none outside."""
        return None if self.lo < self.loop.sigmas[step] <= self.hi else []


def _interval(name: str, argument: str | None) -> Variant:
    bounds = matched(argument, rf"({NUMBER})-({NUMBER}|inf)", "interval:LO-HI in sigma")
    lo, hi = map(float, bounds)
    if not lo < hi:
        raise ValueError(f"an interval of sigma goes up, not from {lo:g} to {hi:g}")
    return Variant(name, GuidanceSchedule.full, policy=lambda _: Interval(lo, hi))


METHODS = (
    Method(
        "interval",
        "interval:0.28-5.42",
        "guided only where sigma, the noise-to-signal ratio, is in (lo, hi]",
        _interval,
        source="Kynkäänniemi et al. 2024, arXiv 2404.07724",
        group="policies",
        examples=("interval:0.28-5.42",),
    ),
)
