"""Which branches a sweep follows: kinds of masks, and what they switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sdbench.experiments.branching import Branch
from sdbench.models.number_formats import FORMATS
from sdbench.variants.schedule import Mask, mask_of

GUIDANCE = "guidance"
"""What masks switch by default."""
Runs = list[tuple[int, int]]
"""(start, length) of some consecutive steps."""


def _singles(steps: int, window: int, stride: int) -> Runs:
    return [(start, 1) for start in range(0, steps, stride)]


def _windows(steps: int, window: int, stride: int) -> Runs:
    return [(start, window) for start in range(0, steps - window + 1, stride)]


def _ends(steps: int, window: int, stride: int) -> Runs:
    return [(steps - count, count) for count in range(stride, steps + 1, stride)]


def _beginnings(steps: int, window: int, stride: int) -> Runs:
    return [(0, count) for count in range(stride, steps + 1, stride)]


def _intervals(steps: int, window: int, stride: int) -> Runs:
    return [
        (start, count)
        for start in range(0, steps, stride)
        for count in range(stride, steps - start + 1, stride)
    ]


KINDS: dict[str, Callable[[int, int, int], Runs]] = {
    "single": _singles,
    "window": _windows,
    "last": _ends,
    "first": _beginnings,
    "interval": _intervals,
    "estimate": _singles,
}
"""The runs of a kind, from the loop's steps, the window's length and the stride."""


def branches_of(
    kind: str, steps: int, *, length: int | None = None, stride: int = 1
) -> list[Branch]:
    """The branches of one kind.

    Args:
        kind: "single" drops each step by itself, "window" a run of `length` steps wherever it fits,
            "last" and "first" every number of steps at that end, "interval" all steps outside of a
            run, for every run; "estimate" is "single", by the first-order model.
        steps: of the loop.
        length: of the window; a quarter of the steps by default.
        stride: starts, lengths and ends are multiples of it.

    Raises:
        ValueError: an unknown kind, a stride or a length that does not fit, a length that the kind
            has no use for.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; there are: {', '.join(KINDS)}")
    if not 1 <= stride <= steps:
        raise ValueError(f"stride must be between 1 and {steps}, not {stride}")
    if length is not None and kind != "window":
        raise ValueError(f"length is the window's; kind '{kind}' has none")
    window = max(1, round(steps / 4)) if length is None else length
    if not 1 <= window <= steps:
        raise ValueError(f"length must be between 1 and {steps}, not {length}")

    # An interval is where guidance stays; the runs of other kinds are where it goes.
    inside = kind == "interval"
    branches = [
        Branch(kind, start, count, _mask_of_run(start, count, steps, inside=inside))
        for start, count in KINDS[kind](steps, window, stride)
    ]
    return [branch for branch in branches if not branch.is_trunk]


def _mask_of_run(start: int, length: int, steps: int, *, inside: bool) -> Mask:
    """Guided inside of a run, or outside of it."""
    return tuple((start <= step < start + length) == inside for step in range(steps))


@dataclass(frozen=True)
class BranchChoice:
    """Which branches a sweep follows.

    Args:
        kind: as `branches_of` takes it.
        length: of the window.
        stride: as `branches_of` takes it.
        masks: a list of masks instead of a kind.
        max_rows: of one denoiser evaluation, and branches of one call. By default what fits in half
            of the free memory, at most 64.
        growth: keep how far the latents are from the baseline's at every step, too.
        switch: what is switched where a mask has a 0: "guidance" is off, or the step is in another
            number format, such as "precision:bf16".
    """

    kind: str = "single"
    length: int | None = None
    stride: int = 1
    masks: tuple[str, ...] = ()
    max_rows: int | None = None
    growth: bool = False
    switch: str = GUIDANCE

    def __post_init__(self) -> None:
        """Refuse a switch that is none, or that the kind has no use for."""
        if self.form is not None and self.is_estimate:
            raise ValueError("an estimate is of guidance; it knows no other switch")

    @property
    def form(self) -> str | None:
        """Name of the number format that is switched; None where guidance is.

        Raises:
            ValueError: neither is.
        """
        if self.switch == GUIDANCE:
            return None
        form = self.switch.removeprefix("precision:")
        if form == self.switch or form not in FORMATS:
            forms = ", ".join(f"precision:{name}" for name in FORMATS)
            raise ValueError(f"unknown switch '{self.switch}'; there are: {GUIDANCE}, {forms}")
        return form

    @property
    def is_estimate(self) -> bool:
        """Whether the branches are estimated, and none of them runs."""
        return self.kind == "estimate" and not self.masks

    def branches(self, steps: int) -> list[Branch]:
        """The branches for a loop of this length, those with common beginnings side by side.

        Raises:
            ValueError: as `branches_of`; a mask that does not fit the loop, or that guides every
                step.
        """
        if self.masks:
            chosen = [Branch("mask", None, None, _mask(text, steps)) for text in self.masks]
        else:
            chosen = branches_of(self.kind, steps, length=self.length, stride=self.stride)

        if len({branch.mask for branch in chosen}) < len(chosen):
            raise ValueError("a mask is there twice")
        if self.growth and self.is_estimate:
            raise ValueError("an estimate follows no branch, so it has no growth to keep")
        if not chosen:
            raise ValueError(
                f"no mask of kind '{self.kind}' leaves a step unguided in {steps} steps"
            )
        return sorted(chosen, key=lambda branch: branch.mask, reverse=True)


def _mask(text: str, steps: int) -> Mask:
    mask = mask_of(text)
    if len(mask) != steps:
        raise ValueError(f"mask '{text}' has {len(text)} steps but the loop runs {steps}")
    if "0" not in text:
        raise ValueError(f"mask '{text}' guides every step: that is the baseline")
    return mask
