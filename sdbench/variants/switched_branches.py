"""Branches of the number format: many choices of the steps that run in another one, at once.

The engine is that of `branches.py`, with another switch. Every step is guided. A branch leaves the
trunk at its first step in the other format, whose predictions are not the trunk's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.variants.branches import Branches
from sdbench.variants.policy import HALVES, Half
from sdbench.variants.precision import Switch
from sdbench.variants.schedule import Mask
from sdbench.variants.trace import Listener


class SwitchedBranches(Branches):
    """The masks that the rows of a call follow: True where a step keeps the pipeline's own format.

    The arguments are those of `Branches`.
    """

    def follow(self, switch: Switch) -> Listener:
        """Set this switch from now on; no event of the loop has to."""
        self._switch = switch
        return Listener()

    def is_guided(self, step: int) -> bool:
        """Always."""
        return True

    def evaluations(self, step: int) -> dict[Half, list[int]]:
        """The masks whose row is evaluated at a step, for each half; others share a row."""
        known = step in self.trunk.uncond
        firsts = [
            first for first in self._groups(step) if not (known and self._on_trunk(first, step))
        ]
        return {half: list(firsts) for half in HALVES}

    def settings(self, step: int, half: Half) -> list[bool]:
        """Whether each wanted row is evaluated in the pipeline's own format."""
        firsts = self.evaluations(step)[half]
        return [self.masks[first][step] for first in firsts for _ in range(self.images)]

    def begin_setting(self, setting: bool) -> None:
        """Evaluate in the pipeline's own format, or in the other one."""
        self._switch.is_on = not setting

    def passed(
        self,
        step: int,
        half: Half,
        evaluated: Mapping[Half, Float[Tensor, "evaluated ..."]],
        cond: Float[Tensor, "rows ..."] | None,
    ) -> Float[Tensor, "rows ..."]:
        """Each row's prediction: its group's."""
        self._keep(step, evaluated)
        of_masks = {
            member: self._prediction(half, first, step)
            for first, members in self._groups(step).items()
            for member in members
        }
        in_order = [of_masks[member] for member in range(len(self.masks))]
        return torch.stack(in_order, dim=1).flatten(0, 1)

    def _on_trunk(self, mask: int, step: int) -> bool:
        return all(self.masks[mask][: step + 1])

    def _groups(self, step: int) -> dict[int, list[int]]:
        """Masks that agree up to a step and in it, by the first of each group."""
        groups: dict[Mask, list[int]] = {}
        for index, mask in enumerate(self.masks):
            groups.setdefault(mask[: step + 1], []).append(index)
        return {members[0]: members for members in groups.values()}
