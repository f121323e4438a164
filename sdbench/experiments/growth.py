"""How far the latents of branches are from the trunk's, step by step: the table `growth`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sdbench.variants.trace import Listener, Step


class Distances(Listener):
    """How far the latents of every branch are from the trunk's, step by step.

    The trunk's own call lays down the path. The distance after k steps is the norm of the
    difference over the norm of the trunk's latents.
    """

    def __init__(self, path: dict[int, Float[Tensor, "pairs values"]]) -> None:
        """Compare with a path that the trunk laid down, or lay it down in the mapping given."""
        self.path = path
        self.by_step: dict[int, Float[Tensor, " rows"]] = {}
        self.iterations = 0
        self.images = 0

    def rows(self, identities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of the table `growth`: each identity with its distance at every step."""
        return [
            {**identity, "step": step, "distance": distance}
            for step, distances in self.by_step.items()
            for identity, distance in zip(identities, distances.tolist(), strict=True)
        ]

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Know which step is the last, and of how many images it is."""
        self.iterations = iterations
        self.images = images

    def scheduler_begins(self, step: Step) -> None:
        """Compare, or keep, the latents that the step starts from."""
        self._compare(step.index, step.sample)

    def scheduler_ends(self, step: Step) -> None:
        """Compare, or keep, the latents that the last step ends with; no other starts from them."""
        if step.index + 1 == self.iterations:
            self._compare(self.iterations, step.result)

    def _compare(self, steps: int, latents: Float[Tensor, "rows ..."] | None) -> None:
        assert latents is not None
        # Squares of half-precision numbers may overflow. Some schedulers get frames as rows.
        sample = latents.detach().float().reshape(self.images, -1)
        trunk = self.path.setdefault(steps, sample)
        branches = len(sample) // len(trunk)
        base = trunk.repeat_interleave(branches, dim=0)
        self.by_step[steps] = (sample - base).norm(dim=1) / base.norm(dim=1)
