"""What a variant is, and a method that makes variants: settings only, without torch.

The text form is read in `grammar.py`; each method is a file of `methods/`; `adapters.py` puts a
variant on a pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from sdbench.records.names import BASELINE
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule

if TYPE_CHECKING:
    from sdbench.models.pipeline import Pipeline  # brings torch
    from sdbench.variants.policy import Policy
    from sdbench.variants.precision import Precision

Group = Literal["masks", "policies", "formulas", "students", "accelerators", "controls"]
GROUPS: tuple[Group, ...] = (
    "masks",
    "policies",
    "formulas",
    "students",
    "accelerators",
    "controls",
)
"""In this order methods are listed."""


@dataclass(frozen=True)
class Accelerator:
    """A method that saves work inside an evaluation, where schedules save evaluations.

    Args:
        name: of the method.
        attach: on a pipeline, for the length of a block.
        guides: it decides itself which steps are guided, so no schedule goes with it.
        constant_rows: it keeps what a call with the same number of rows computed, so every step
            must be guided.
        takes_turns: all its state is on the pipeline and its modules, or in what `attach` made, so
            that another call may run between two of its steps.
    """

    name: str
    attach: Callable[[Pipeline], AbstractContextManager[None]] = field(compare=False)
    guides: bool = False
    constant_rows: bool = False
    takes_turns: bool = True


@dataclass(frozen=True)
class Variant:
    """One way of running a pipeline. Two are equal where their names and contents are.

    Args:
        name: its text, which is also its name in the tables.
        rule: the guidance schedule for a loop of a given length.
        kind: name of the method, which stands before the colon; filled in by the grammar.
        argument: what stands behind the colon, None without one; filled in by the grammar.
        num_steps: replaces the study's number of steps; the loop still begins at the noise level
            where the study's begins.
        stock_start: it begins where the scheduler begins so many steps instead.
        scheduler: takes the place of the pipeline's own, by its name in `other_scheduler.py`.
        guidance_scale: replaces the study's guidance scale.
        student: file whose weights the denoiser gets; empty for the model's own adapter, None for
            none.
        made_for: digests of the pipeline's parts, as `identity` gives them, where the variant was
            found for one pipeline.
        content: what the name does not say and a stored call depends on, such as what a file held.
        policy: from the guidance scale to what decides instead of the rule while the loop runs. The
            rule then says only what work is to be expected, as far as it is known.
        precision: number format of the denoiser, where it is not the pipeline's.
        accelerator: another project's method.
        guider: takes the place of the policy where a pipeline has a guider of its own.
        arguments: further arguments of the pipeline's call.
        of_share: whether the name counts steps as a share of the loop.
        is_control: whether it is what others are compared with.
        needs_no_time: what it costs is another variant's cost by construction: other masks of as
            many unguided steps, or full guidance at another scale. A study with controls asks it
            for images alone.
        draws: variants by number, where the name stands for several that are drawn alike. A call
            runs one of them, in turn, and quality is the mean over all. Everything else that stands
            here is the first one's.
    """

    name: str
    rule: ScheduleRule = field(compare=False)
    kind: str = ""
    argument: str | None = None
    num_steps: int | None = None
    stock_start: bool = False
    scheduler: str | None = None
    guidance_scale: float | None = None
    student: str | None = None
    made_for: Mapping[str, str] = field(default_factory=dict, compare=False)
    content: str = ""
    policy: Callable[[float], Policy] | None = field(default=None, compare=False)
    precision: Precision | None = field(default=None, compare=False)
    accelerator: Accelerator | None = None
    guider: Accelerator | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict, compare=False)
    of_share: bool = False
    is_control: bool = False
    needs_no_time: bool = False
    draws: Mapping[int, Variant] = field(default_factory=dict, compare=False)

    @property
    def is_baseline(self) -> bool:
        """Whether all others are compared with it."""
        return self.name == BASELINE

    @property
    def guides_all(self) -> bool:
        """Whether its rule guides every step."""
        return self.rule == GuidanceSchedule.full

    @property
    def guides_none(self) -> bool:
        """Whether its rule guides no step."""
        return self.rule == GuidanceSchedule.none

    @property
    def has_rows_of_its_own(self) -> bool:
        """Whether a denoiser row is other work than one of the baseline's.

        An accelerator's is, one in another number format, and a student's that takes turns with the
        teacher: its layers then run next to the weights.
        """
        takes_turns = self.student is not None and not self.guides_none
        return self.accelerator is not None or self.precision is not None or takes_turns

    @property
    def pins_start(self) -> bool:
        """Whether a loop of its own length begins at the baseline's first noise level."""
        return self.num_steps is not None and not self.stock_start

    def __str__(self) -> str:
        """Its name."""
        return self.name


@dataclass(frozen=True)
class Method:
    """One entry of the grammar: a kind of variant.

    Args:
        name: what stands before the colon.
        grammar: how to write it, for help texts; several ways have `|` between them.
        meaning: one line.
        build: from the whole text, and the text after the colon (None without one), to the variant.
        source: paper or project that it comes from, if any.
        group: where it is listed.
        add: how it stands behind a plus sign: from the variant before the sign and its own to both
            together, or a ValueError with the reason. None where it cannot.
        examples: texts that run in a loop of 8 steps, by which its contract is tried
            (`sdbench.testing.check_variant`). PATH and FILE in them stand for a student's folder
            and a plan.
        saves_rows: whether it evaluates fewer rows than full guidance in a loop of the same length.
        saves_work: whether a row of it takes less work; None where that depends on the network.
        transformers_only: whether it is unsupported on a UNet.
    """

    name: str
    grammar: str
    meaning: str
    build: Callable[[str, str | None], Variant]
    source: str = ""
    group: Group = "masks"
    add: Callable[[Variant, Variant], Variant] | None = None
    examples: tuple[str, ...] = ()
    saves_rows: bool = True
    saves_work: bool | None = False
    transformers_only: bool = False
