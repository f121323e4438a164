"""Branches: many guidance schedules of the same images at once, as the rows of one pipeline call.

Rows of one image whose masks agree so far hold the same latent. So each group of them is evaluated
once, and its prediction is given to all. The trunk, the guided trajectory of an image, is kept step
by step. A branch leaves it at its first unguided step, where both predictions are known already. A
later call with further masks does not evaluate the trunk again. Which masks are of interest is
decided in `experiments/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.policy import Half, Loop, Policy, require_length
from sdbench.variants.schedule import Mask
from sdbench.variants.trace import Step


@dataclass
class Trunk:
    """The guided trajectory of some images: both predictions at every step that has run."""

    cond: dict[int, Float[Tensor, "images ..."]] = field(default_factory=dict)
    uncond: dict[int, Float[Tensor, "images ..."]] = field(default_factory=dict)
    form: Any = None  # an output of the denoiser, to be filled

    def is_known(self, steps: int) -> bool:
        """Whether a loop of this length is known whole."""
        return len(self.uncond) >= steps


class Branches(Policy):
    """The masks that the rows of a call follow, and what has to be evaluated for them.

    The call has `images * len(masks)` rows, all masks of the first image first. An object serves
    one call.

    Args:
        masks: one per branch, all of the loop's length; True where the step is guided.
        images: how many images branch.
        trunk: of the same images. While it is not whole, the mask that guides every step must be
            among the masks.
        max_rows: the most rows of one denoiser evaluation.

    Attributes:
        rows: denoiser rows that each mask has cost, all images together; what masks share is the
            first one's.

    Raises:
        ValueError: no mask, masks of different lengths, a mask twice, or a trunk that no mask
            fills.
    """

    isolated = True

    def __init__(self, masks: Sequence[Mask], images: int, trunk: Trunk, *, max_rows: int) -> None:
        """Check that masks and trunk fit each other."""
        if len({len(mask) for mask in masks}) != 1:
            raise ValueError("branches need at least one mask, and all of one length")
        if len(set(masks)) < len(masks):
            raise ValueError("a mask is there twice")
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")

        self.masks = tuple(masks)
        self.images = images
        self.trunk = trunk
        self.max_rows = max_rows
        self.length = len(masks[0])
        full = (True,) * self.length
        if not trunk.is_known(self.length) and full not in self.masks:
            raise ValueError(
                "the trunk is not known: the mask that guides every step must be among the masks"
            )
        self.rows = [0] * len(masks)
        self._has_begun = False
        # Of the step in progress: masks whose rows were asked for, and predictions by the first
        # mask of each group.
        self._step = -1
        self._wanted: dict[Half, list[int]] = {}
        self._found: dict[tuple[Half, int], Float[Tensor, "images ..."]] = {}

    def evaluations(self, step: int) -> dict[Half, list[int]]:
        """The masks whose row is evaluated at a step, for each half; others share a row."""
        wanted: dict[Half, list[int]] = {"uncond": [], "cond": []}
        for first, members in self._groups(step).items():
            if self._on_trunk(first, step) and step in self.trunk.uncond:
                continue
            wanted["cond"].append(first)
            if any(self.masks[member][step] for member in members):
                wanted["uncond"].append(first)
        return wanted

    def begins(self, loop: Loop) -> None:
        """Hold the masks against the loop.

        Raises:
            ValueError: masks of another length, a call with other rows than one for each image and
                mask, or a second call.
        """
        if self._has_begun:
            raise ValueError("these branches have run: each call needs its own")
        super().begins(loop)
        require_length(self.length, loop)
        if loop.images != self.images * len(self.masks):
            raise ValueError(f"the call has {loop.images} rows, not one for each image and mask")
        self._has_begun = True

    def is_guided(self, step: int) -> bool:
        """Whether any branch is guided at a step."""
        return any(mask[step] for mask in self.masks)

    def wanted(self, step: int, half: Half) -> list[int]:
        """One row of every group for each image: the first mask's, then the next one's."""
        firsts = self.evaluations(step)[half]
        self._wanted[half] = firsts
        return [image * len(self.masks) + first for first in firsts for image in range(self.images)]

    def denoiser_ends(self, step: Step) -> None:
        """Keep the output, which is filled where a later call evaluates nothing."""
        self.trunk.form = step.output

    @property
    def form(self) -> Any:
        """An output of the denoiser, to be filled."""
        return self.trunk.form

    def passed(
        self,
        step: int,
        half: Half,
        evaluated: Mapping[Half, Float[Tensor, "evaluated ..."]],
        cond: Float[Tensor, "rows ..."] | None,
    ) -> Float[Tensor, "rows ..."]:
        """Each row's prediction: its group's. An unguided row has the conditional one twice."""
        self._keep(step, evaluated)
        predictions: dict[int, Float[Tensor, "images ..."]] = {}
        for first, members in self._groups(step).items():
            for member in members:
                source: Half = half if self.masks[member][step] else "cond"
                predictions[member] = self._prediction(source, first, step)
        in_order = [predictions[member] for member in range(len(self.masks))]
        return torch.stack(in_order, dim=1).flatten(0, 1)

    def _keep(self, step: int, evaluated: Mapping[Half, Float[Tensor, "evaluated ..."]]) -> None:
        """Sort what was evaluated by half and group."""
        if step != self._step:
            self._step = step
            self._found = {}
        for half, rows in evaluated.items():
            if half not in self._wanted:  # kept when the other half was asked for
                continue
            firsts = self._wanted.pop(half)
            for first, prediction in zip(firsts, rows.split(self.images), strict=True):
                self._found[half, first] = prediction
                self.rows[first] += self.images

    def _prediction(self, half: Half, first: int, step: int) -> Float[Tensor, "images ..."]:
        if not self._on_trunk(first, step):
            return self._found[half, first]
        kept: dict[int, Tensor] = getattr(self.trunk, half)
        if step not in kept:
            kept[step] = self._found[half, first].clone()  # a copy, not a view that holds every row
        return kept[step]

    def _on_trunk(self, mask: int, step: int) -> bool:
        return all(self.masks[mask][:step])

    def _groups(self, step: int) -> dict[int, list[int]]:
        """Masks that agree before a step, by the first of each group."""
        groups: dict[Mask, list[int]] = {}
        for index, mask in enumerate(self.masks):
            groups.setdefault(mask[:step], []).append(index)
        return {members[0]: members for members in groups.values()}
