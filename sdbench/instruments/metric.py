"""What a metric of images is. The metrics are in `metrics/`, scoring is in `quality.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

Pixels: TypeAlias = Float[Tensor, "n 3 height width"]
Scores: TypeAlias = Float[Tensor, " n"]
Features: TypeAlias = Float[Tensor, "n features"]


@dataclass(frozen=True)
class Metric:
    """How to judge images.

    Attributes:
        name: Its key in `METRICS` and its column in the images table.
        compute: `(images, against)` => one number per image; images are float32, N,3,H,W, in
            [0, 1]. `against` is the reference images, of the same kind, or the list of prompts.
        needs: What `against` is.
        higher_is_better: The direction.
        provenance: What the number depends on besides the images: network, package version,
            digest of weights.
        option: What a name must add after a colon, such as the CLIP model, passed on to `compute`
            and `provenance` as a last argument; empty if nothing.
        meaning: One line.
        place: Where it stands among the metrics of `metrics/`, lowest first.
        smallest_side: Pixels along the shorter side of the smallest images that it takes.
        only_side: Pixels along each side, where it reads images of one size alone.
        features: Of images, with a gradient, where the metric is their squared distance.
    """

    name: str
    compute: Callable[..., Scores]
    needs: Literal["reference", "prompt"]
    higher_is_better: bool
    provenance: Callable[..., dict[str, str]]
    option: str = ""
    meaning: str = ""
    place: int = 100
    smallest_side: int = 1
    only_side: int | None = None
    features: Callable[[Pixels], Features] | None = None

    def misfit(self, height: int, width: int) -> str:
        """Why it does not take images of a size in pixels, in one line; empty where it does."""
        size = f"{height} x {width} pixels (height x width)"
        if self.only_side is not None and {height, width} != {self.only_side}:
            return f"{self.name} reads images of {self.only_side} pixels a side alone, not {size}"
        if min(height, width) < self.smallest_side:
            return (
                f"{self.name} needs images of at least {self.smallest_side} pixels a side, "
                f"not {size}"
            )
        return ""


def of_package(package: str, **settings: str) -> Callable[[], dict[str, str]]:
    """The provenance of a metric that a package computes: its version, and settings as given."""
    return lambda: {"package": f"{package} {version(package)}", **settings}
