"""Which half of a pipeline's evaluations is which: looked up, told by texts, or found in a step.

Nothing may be dropped before that is known. So until then both halves are evaluated, and the first
guided prediction shows it. A step that was to be unguided is then spent: what its scheduler gets is
corrected to what the conditional half alone gives.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.formula import learn_scale
from sdbench.models.modular import guiders_of
from sdbench.models.pipeline import TRUE_SCALE, call_parameters
from sdbench.variants.course import Course
from sdbench.variants.fitted_scale import Fit, fitted, is_swapped, require_order
from sdbench.variants.forms import COND_FIRST, Form, Order, Texts, form_of, usual
from sdbench.variants.loops import Run
from sdbench.variants.policy import Half, Observed, Policy
from sdbench.variants.refusals import (
    refuse_without_guidance,
    require_conditional_first,
    require_exact,
    require_halves_only,
    require_told,
)
from sdbench.variants.rows import Layout, map_tensors, samples, stacked, tensors
from sdbench.variants.trace import Step

_EVERYTHING = Observed()
"""Evaluates both halves."""
_OTHER_LATENTS = (
    "evaluates three times in a step, not always the same latents (self-attention guidance, or a "
    "pass over a reference)"
)


class Telling:
    """Tells the halves of one pipeline apart.

    Args:
        course: of the pipeline's calls.
        policy: decides what is dropped once that may be.

    Attributes:
        texts: what `encode_prompt` returned.
    """

    def __init__(self, course: Course, policy: Policy) -> None:
        """Know what earlier calls showed."""
        self.course = course
        self.policy = policy
        self.texts = Texts()

    @property
    def form(self) -> Form:
        """What is known of the loop in progress."""
        return form_of(self.course.pipe, self.course.loop)

    def reread(self, run: Run, step: Step, layout: Layout) -> None:
        """See that a call is the second of two, where the first one was taken for both halves.

        So it happens where nothing but the latents told their number, and those of two images are
        the same. All of the first call was evaluated then, as nothing was known.
        """
        is_second = run.in_one_call and layout.rows == 2 * self.course.images
        if not self.course.is_inferred or run.is_told or len(step.answered) < 2 or not is_second:
            return
        self.course.latents = (layout.rows, *self.course.latents[1:])
        run.order, run.in_one_call = (), False
        step.answered, step.cond = ("cond",), stacked(samples(step.output))
        step.given = step.uncond = None

    def look_at_third(self, step: Step, args: Any, kwargs: Any) -> None:
        """See whether a third evaluation is of other latents than the halves are.

        Raises:
            ValueError: it is, and halves are to be dropped.
        """
        if self.form.third is None:
            third = stacked(samples((args, kwargs), self.course.latents))
            is_same = torch.equal(third, stacked(step.latents)[-len(third) :])
            self.form.third = "" if is_same else _OTHER_LATENTS
        if self.form.third:
            self.refuse_halves(self.form.third)

    def look_at_second(self, step: Step, args: Any, kwargs: Any) -> None:
        """See whether the second of two calls is of other latents than the first.

        The first may have more tokens than the latents (those of a text). What it says of the
        latents then stands for the second one.

        Raises:
            ValueError: the latents are others, and halves are to be dropped.
        """
        first, second = step.latents, samples((args, kwargs), self.course.latents)
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return
        if first.shape == second.shape:
            return
        part = self._part(first, second)
        if part is None or step.cond is None or step.cond.shape[:2] != first.shape[:2]:
            self.refuse_halves(
                f"evaluates its predictions on latents of other shapes, {tuple(first.shape)} and "
                f"{tuple(second.shape)}, so one cannot stand for the other"
            )
            return
        whole = step.cond.shape
        step.output = map_tensors(step.output, lambda own: own[part] if own.shape == whole else own)
        step.cond = step.cond[part]

    def _part(
        self, first: Float[Tensor, "rows ..."], second: Float[Tensor, "rows ..."]
    ) -> tuple[slice, slice] | None:
        """Where the latents of one call stand among the tokens of another one; None for nowhere."""
        are_tokens = first.ndim == 3 and second.ndim == 3 and first.shape[::2] == second.shape[::2]
        further = first.shape[1] - second.shape[1] if are_tokens else 0
        if further <= 0 or not self.policy.plain:
            return None

        parts = {"last": slice(further, None), "first": slice(None, -further)}
        if not self.form.place:
            rows = first.to(second)
            found = (name for name, own in parts.items() if torch.equal(rows[:, own], second))
            self.form.place = next(found, "elsewhere")
        own = parts.get(self.form.place)
        return None if own is None else (slice(None), own)

    def refuse_halves(self, otherwise: str) -> None:
        """Remember that guidance is of another kind, and refuse to drop halves of it.

        What a call shows holds until another one ends without it.
        """
        self.form.is_of_its_own = otherwise
        if self.course.run is not None:
            self.course.run.is_of_its_own = True
        require_halves_only(self.course.kind, self.policy, otherwise)

    def asked(self, run: Run, step: Step, layout: Layout, arguments: Any) -> tuple[Half, ...]:
        """The halves that a call of the denoiser is for; none where both were answered before.

        Args:
            run: the loop in progress.
            step: likewise.
            layout: of the call's rows.
            arguments: args and kwargs.
        """
        both = layout.rows == 2 * self.course.images
        kept = [name for name in arguments[1] if "cache" in name and _holds_any(arguments[1][name])]
        if both and kept:
            self.refuse_halves(
                f"keeps keys and values of both halves between its steps ({kept[0]})"
            )
        if both and step.answered:
            self.refuse_halves(
                "calls its denoiser for both halves and again in the same step, to change the "
                "latents by what it says"
            )
        if not both and len(step.answered) == 2:
            return ()
        order = self.order(run, layout, arguments)
        if run.in_one_call:
            return order
        return order[len(step.answered) : len(step.answered) + 1]

    def order(self, run: Run, layout: Layout, arguments: Any) -> Order:
        """The order of the halves: known from before, told by the texts, or else the usual one."""
        in_one_call = layout.rows == 2 * self.course.images
        if not run.order or run.in_one_call != in_one_call:
            self._look_up(run, layout, arguments, in_one_call=in_one_call)
        return cast(Order, run.order)

    def _look_up(self, run: Run, layout: Layout, arguments: Any, *, in_one_call: bool) -> None:
        """Settle the order of a loop at its first call of a network."""
        told = self.form.orders.get(in_one_call)
        if not in_one_call and guiders_of(self.course.pipe):
            told = COND_FIRST  # as all of diffusers' guiders ask
        if told is None and self.policy.changes:
            told = self.texts.order(layout, arguments, in_one_call=in_one_call)
            if told is not None:
                self.form.orders[in_one_call] = told
        run.in_one_call, run.is_told = in_one_call, told is not None
        run.order = told or usual(in_one_call=in_one_call)

    def deciding(self, run: Run, step: Step) -> Policy:
        """The policy, or one that evaluates everything while it is not known what may be dropped.

        Raises:
            ValueError: the policy cannot wait, or cannot work with this order.
        """
        if not self.policy.changes:
            return self.policy
        if self.form.is_of_its_own:
            require_halves_only(self.course.kind, self.policy, self.form.is_of_its_own)
        if run.is_told:
            if not run.in_one_call:
                require_conditional_first(self.course.kind, self.policy, step, run.order)
            return self.policy
        if not self.policy.plain:  # it takes part from the first step on
            require_told(self.course.kind, self._evaluates_all(step))
            return self.policy
        step.spent = not self.policy.is_guided(step.index)
        return _EVERYTHING

    def _evaluates_all(self, step: Step) -> bool:
        wanted = self.policy.evaluated(step.index)
        return wanted is None or len(wanted) == self.course.images

    def settle(
        self, run: Run, step: Step, arguments: dict[str, Any]
    ) -> Float[Tensor, "images ..."] | None:
        """Refuse a pipeline without guidance; learn from the first guided step.

        Args:
            run: the loop in progress.
            step: likewise.
            arguments: that the scheduler's step gets.

        Returns:
            What the scheduler gets in a spent step; None for what the pipeline gave it.
        """
        self._require_guidance(step)
        learns = self.policy.changes and not run.is_told
        if not self._tells(step):
            if step.spent and step.guided:
                require_exact(self.course.kind, None, torch.float32)
            return None
        is_known = run.fitted_scale is not None or run.in_one_call in self.form.shown
        if is_known and not learns:
            return None

        guided = arguments["model_output"]
        fit = fitted(guided, step.given, step.cond, arguments.get("sample"))
        if fit is not None:
            run.fitted_scale = fit.scale
        return self._learn(run, step, fit, guided) if learns else None

    def _require_guidance(self, step: Step) -> None:
        """Refuse a pipeline without guidance, which its first step shows.

        Where an earlier loop of the call was guided, a later one need not be (unCLIP makes the
        picture larger in its last one).
        """
        course = self.course
        is_guided = step.requested >= 2 * course.images
        if step.index or not self.policy.changes:
            return
        if is_guided:
            course.guided[course.loop] = True
        elif not any(course.guided.values()):
            refuse_without_guidance(course.kind)

    def _tells(self, step: Step) -> bool:
        """Whether a step was guided by two predictions alone.

        A third evaluation (skip-layer guidance) adds another term: it tells nothing of the rows.
        """
        is_plain = step.guided and step.requested == 2 * self.course.images
        return is_plain and step.given is not None

    def _learn(
        self, run: Run, step: Step, fit: Fit | None, guided: Float[Tensor, "images ..."]
    ) -> Float[Tensor, "images ..."] | None:
        """Tell the halves apart by a guided prediction, for this loop and all later ones."""
        assert step.cond is not None
        assert step.given is not None
        # Without any effect of the prompt there is nothing to mix up.
        is_same = torch.equal(step.given, step.cond)
        swapped = None if fit is None else is_swapped(float(fit.scale))
        run.is_told = is_same or swapped is not None
        if swapped is not None and not is_same:
            self._tell(run, step, swapped=swapped)
        if not step.spent:
            return None

        step.guided, step.uncond, step.given = False, None, step.cond
        if is_same:
            return None
        require_exact(self.course.kind, None if swapped is None else fit, guided.dtype)
        assert fit is not None
        return fit.unguided(guided, swapped=bool(swapped))

    def _tell(self, run: Run, step: Step, *, swapped: bool) -> None:
        """Keep the order that a step has shown."""
        if swapped:
            require_told(self.course.kind, self.policy.plain)
            run.order = tuple(reversed(run.order))
            step.cond, step.given = step.given, step.cond
            step.uncond = step.given
            assert run.fitted_scale is not None
            run.fitted_scale = 1 - run.fitted_scale
        self.form.orders[run.in_one_call] = cast(Order, run.order)

    def loop_over(self) -> None:
        """Learn from a loop that was only observed; refuse what contradicts the order.

        It is done after the loop, which must not wait for the device.
        """
        run = self.course.run
        if run is None:
            return
        if run.index >= run.iterations > 0 and not run.is_of_its_own:
            self.form.is_of_its_own = ""
        if run.fitted_scale is None:
            return

        scale = float(run.fitted_scale)
        run.fitted_scale = None  # it has been heard
        swapped = is_swapped(scale)
        if run.is_told and self.policy.changes:
            require_order(self.course.kind, scale)
        if swapped is not None:
            self._keep(run, swapped=swapped)
        self._learn_scale(1 - scale if swapped else scale)

    def _keep(self, run: Run, *, swapped: bool) -> None:
        """Keep what a loop has shown of the order."""
        if self.policy.plain:
            self.form.shown.add(run.in_one_call)
        if not run.is_told:
            order = tuple(reversed(run.order)) if swapped else run.order
            self.form.orders[run.in_one_call] = cast(Order, order)
            run.is_told = True

    def _learn_scale(self, scale: float) -> None:
        """Find which number the pipeline takes for w, where its own guidance was seen."""
        pipe = self.course.pipe
        own = getattr(pipe, "guidance_scale", None)
        is_own = self.policy.plain and TRUE_SCALE not in call_parameters(pipe)
        is_own = is_own and self.course.scheduler is getattr(pipe, "scheduler", None)
        if is_own and isinstance(own, int | float):
            learn_scale(pipe, own=own, formula=scale)


def _holds_any(tree: Any) -> bool:
    """Whether there are tensors in nested arguments."""
    return any(True for _ in tensors(tree))
