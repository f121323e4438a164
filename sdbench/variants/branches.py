"""Branches: many guidance schedules of the same images at once, as the rows of one pipeline call.

Rows of one image whose masks agree so far hold the same latent, so each group of them is evaluated once and its
prediction given to all. The trunk, the guided trajectory of an image, is kept step by step: a branch leaves it at its
first unguided step, where both predictions are known already, and a later call with further masks evaluates the trunk
no more. What calls this is the seam in `guidance.py`; which masks are of interest is decided in `study/sensitivity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.rows import first_tensor, map_tensors, select, tensors
from sdbench.variants.schedule import Mask

Half = Literal["uncond", "cond"]
Evaluate = Callable[[Any, Any, int], Any]


@dataclass
class Trunk:
    """The guided trajectory of some images: both predictions at every step that has run, (images, ...) each."""

    cond: dict[int, Float[Tensor, "images ..."]] = field(default_factory=dict)
    uncond: dict[int, Float[Tensor, "images ..."]] = field(default_factory=dict)
    form: Any = None  # an output of the denoiser, to be filled

    def is_known(self, steps: int) -> bool:
        """Whether a loop of this length is known whole."""
        return len(self.uncond) >= steps


class Branches:
    """The masks that the rows of a call follow, and what has to be evaluated for them.

    The call has `images * len(masks)` rows, all masks of the first image first. An object serves one call.

    Args:
        masks: one per branch, all of the loop's length; True where the step is guided.
        images: how many images branch.
        trunk: of the same images. While it is not whole, the mask that guides every step must be among the masks.
        max_rows: the most rows of one denoiser evaluation.

    Attributes:
        rows: denoiser rows that each mask has cost, all images together; what masks share is the first one's.

    Raises:
        ValueError: no mask, masks of different lengths, a mask twice, or a trunk that no mask fills.
    """

    def __init__(self, masks: Sequence[Mask], images: int, trunk: Trunk, *, max_rows: int) -> None:
        """Check that masks and trunk fit each other."""
        if len({len(mask) for mask in masks}) != 1:
            raise ValueError("branches need at least one mask, and all of one length")
        if len(set(masks)) < len(masks):
            raise ValueError("a mask is there twice")
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, not {max_rows}")
        self.masks, self.images, self.trunk, self.max_rows = tuple(masks), images, trunk, max_rows
        self.length = len(masks[0])
        full = (True,) * self.length
        if not trunk.is_known(self.length) and full not in self.masks:
            raise ValueError(
                "the trunk is not known: the mask that guides every step must be among the masks"
            )
        self.rows = [0] * len(masks)
        self._found: dict[
            tuple[Half, int], Tensor
        ] = {}  # of the step in progress, by the first mask of each group

    def evaluations(self, step: int) -> dict[Half, list[int]]:
        """The masks whose row has to be evaluated at a step, for each half; others share theirs or the trunk's."""
        wanted: dict[Half, list[int]] = {"uncond": [], "cond": []}
        for first, members in self._groups(step).items():
            if self._on_trunk(first, step) and step in self.trunk.uncond:
                continue
            wanted["cond"].append(first)
            if any(self.masks[member][step] for member in members):
                wanted["uncond"].append(first)
        return wanted

    def guided(self, step: int) -> bool:
        """Whether any branch is guided at a step."""
        return any(mask[step] for mask in self.masks)

    def evaluate(
        self, step: int, half: Half | None, evaluate: Evaluate, args: Any, kwargs: Any
    ) -> Any:
        """Fill the output of a denoiser call by evaluating as few of its rows as the masks need.

        Args:
            step: index in the loop.
            half: which prediction the call is for, of a pipeline that guides by two calls, the conditional one first;
                None for one call with the unconditional rows before the conditional ones.
            evaluate: runs the denoiser on arguments that have the given number of rows.
            args: of the pipeline's call.
            kwargs: of the pipeline's call.
        """
        rows = self.images * len(self.masks)
        offsets: dict[Half, int] = {"uncond": 0, "cond": rows} if half is None else {half: 0}
        if half != "uncond":
            self._found = {}
        wanted = [(part, first) for part in offsets for first in self.evaluations(step)[part]]
        index = [
            offsets[part] + image * len(self.masks) + first
            for part, first in wanted
            for image in range(self.images)
        ]
        outputs = []
        for start in range(0, len(index), self.max_rows):
            chosen = index[start : start + self.max_rows]
            part_args, part_kwargs = select((args, kwargs), rows * len(offsets), chosen)
            out = self.trunk.form = evaluate(part_args, part_kwargs, len(chosen))
            if sum(1 for _ in tensors(out)) != 1:
                raise ValueError(
                    "the denoiser returns more than one tensor, so its rows cannot be told apart"
                )
            outputs.append(first_tensor(out))
        if wanted:
            self._found |= zip(wanted, torch.cat(outputs).split(self.images), strict=True)
        for _, first in wanted:
            self.rows[first] += self.images
        spread = torch.cat([self._spread(part, step) for part in offsets])
        return map_tensors(self.trunk.form, lambda _: spread)

    def _spread(self, half: Half, step: int) -> Float[Tensor, "rows ..."]:
        """Each row's prediction: its group's; of an unguided row the conditional one in both halves."""
        values: list[Tensor] = [torch.empty(0)] * len(self.masks)
        for first, members in self._groups(step).items():
            for member in members:
                part: Half = half if self.masks[member][step] else "cond"
                values[member] = self._prediction(part, first, step)
        return torch.stack(values, dim=1).flatten(0, 1)

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
