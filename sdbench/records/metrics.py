"""What the analysis has to know of a metric: its range, and beyond which value an image changed.

How a metric is computed is in `sdbench.instruments`. One that is not here, such as a user's own,
has medians alone: without a range no interval of a mean holds.
"""

import math
from typing import NamedTuple

from sdbench.records.columns import FLICKER, WORST

FEW = 6
"""The fewest prompts of any interval: of fewer not even a median has one of 95 %."""
MANY = 64
"""The fewest prompts of the interval of a mean that a few images decide."""


class Scale(NamedTuple):
    """How the values of a metric lie.

    Attributes:
        bounds: the least and the largest value; infinite where it has none.
        changed: an image whose value is worse than this counts as another one than the reference;
            None where there is no reference, or no such value.
        prompts: the fewest whose mean has an interval.
        higher_is_better: its direction.
    """

    bounds: tuple[float, float] = (-math.inf, math.inf)
    changed: float | None = None
    prompts: int = MANY
    higher_is_better: bool = False

    @property
    def differences(self) -> tuple[float, float]:
        """The bounds of the difference of two values."""
        least, most = self.bounds
        return (least - most, most - least)


# LPIPS of a picture to any other stays below 1; only noise against a flat picture exceeds it.
SCALES = {
    "lpips": Scale((0, 1), changed=0.0125),
    "flip": Scale((0, 1), changed=0.12),
    "ssim": Scale((-1, 1), changed=0.965, higher_is_better=True),
    "psnr": Scale((0, math.inf), higher_is_better=True),
    "alignment": Scale((0, 1), prompts=FEW, higher_is_better=True),
    "clip_score": Scale((0, 100), higher_is_better=True),
    "image_reward": Scale(higher_is_better=True),
}
"""By the metric's name.

`changed` is where images whose alignment differs from the baseline's are told best from those whose
alignment does not (Youden's J, rounded): `python -m benchmarks.changed` prints it for the stored
tables of 256 images.
"""
OF_FLICKER = Scale((0, 1))
"""A mean LPIPS, too: no metric of an image, but of what lies between two."""


def scale_of(metric: str) -> Scale:
    """The scale of a metric; without bounds where it is not registered here.

    The worst frame of a video has that of its metric, without the threshold, which is for images.
    """
    if metric == FLICKER:
        return OF_FLICKER
    name = metric.removesuffix(WORST)
    scale = SCALES.get(name, Scale())
    return scale if name == metric else scale._replace(changed=None)
