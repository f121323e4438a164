"""Whether a call's numbers are numbers: where latents, or pixels, stopped being finite.

NaN latents decode to NaN pixels, which are stored as black: an image like any other, and equal to
every other image that failed. So a call is asked before anything judges it.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor

from sdbench.variants.trace import Listener, Step

WHERE = {
    "image": ("pixels", "images"),
    "video": ("pixels", "videos"),
    "audio": ("sound", "clips"),
    "latent": ("returned latents", "images"),
}
"""What values of an output are called, and what has them, by the kind of the output."""


class NotFinite(ValueError):
    """A call whose latents or pixels are NaN or infinite: the message says where, and how many."""


class FiniteProbe(Listener):
    """Counts what is not finite in the predictions and in the latents of every step.

    The counts stay on the device until they are asked for.
    """

    def __init__(self) -> None:
        """Start without counts."""
        self._decoded: list[tuple[Int64[Tensor, ""], int]] = []
        self._counts: list[tuple[int, list[Int64[Tensor, ""]], Int64[Tensor, ""], int]] = []

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Forget the last call."""
        self._counts = []
        self._decoded = []

    def step_ends(self, step: Step) -> None:
        """Count."""
        assert step.result is not None
        predictions = [part for part in (step.cond, step.given) if part is not None]
        self._counts.append(
            (
                step.index,
                [_not_finite(part) for part in predictions],
                _not_finite(step.result),
                step.result.numel(),
            )
        )

    def decoded(self, pixels: Float[Tensor, "n ..."]) -> None:
        """Count what is not finite in what the decoder gave, before it is cut to [0, 1]."""
        self._decoded.append((_not_finite(pixels), pixels.numel()))

    def require(self, output: Float[Tensor, "n ..."], *, kind: str) -> None:
        """Refuse what a call returned, unless all of it is finite.

        Args:
            output: what was made, or latents.
            kind: a name of `WHERE`.

        Raises:
            NotFinite: it is not, or the latents of a step were not.
        """
        for index, predictions, latents, values in self._counts:
            if int(latents):
                culprit = "denoiser" if any(map(int, predictions)) else "scheduler"
                raise NotFinite(
                    f"not finite: {int(latents)} of {values} values of the latents after step "
                    f"{index}, by the {culprit}"
                )

        # Infinite pixels are gone once they are cut to [0, 1].
        cut = sum(int(count) for count, _ in self._decoded)
        if cut:
            values = sum(count for _, count in self._decoded)
            raise NotFinite(
                f"not finite: {cut} of {values} values of the {WHERE[kind][0]}, by the decoder"
            )

        broken = int(_not_finite(output))
        if broken:
            count = int((~output.isfinite()).flatten(1).any(dim=1).sum())
            where, samples = WHERE[kind]
            raise NotFinite(
                f"not finite: {broken} of {output.numel()} values of the {where}, in {count} of "
                f"{len(output)} {samples}"
            )


def not_numbers(steps: list[dict[str, Any]]) -> str | None:
    """Which figures of which steps are not numbers although the call's images are; None for none.

    Args:
        steps: rows of the table `steps`; a missing figure is None.
    """
    found: dict[str, list[int]] = {}
    for row in steps:
        for name, value in row.items():
            if isinstance(value, float) and math.isnan(value):
                found.setdefault(name, []).append(row["step"])
    said = [
        f"{name} at {len(places)} of {len(steps)} steps, the first of them {places[0]}"
        for name, places in found.items()
    ]
    return f"not a number: {'; '.join(said)}" if said else None


def _not_finite(tensor: Float[Tensor, "n ..."]) -> Int64[Tensor, ""]:
    return (~tensor.isfinite()).sum()
