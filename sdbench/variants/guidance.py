"""Run a stock pipeline under a guidance schedule, or only watch it: `guided_by`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sdbench.models.pipeline import Pipeline, parts_of
from sdbench.variants.course import Course
from sdbench.variants.policy import Policy, policy_of
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.seam import Seam
from sdbench.variants.trace import Listener, Trace


@contextmanager
def guided_by(
    pipe: Pipeline,
    schedule: GuidanceSchedule | ScheduleRule | Policy | None,
    *,
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
) -> Iterator[Trace]:
    """Run a pipeline under a guidance schedule for any number of calls; it is as before afterwards.

    On an unguided step only the conditional rows are evaluated, so the pipeline's own `u + w (c -
    u)` gives exactly `c`. Which rows are the conditional ones is known from the texts or from an
    earlier guided step. Else the first step evaluates both halves, though it be unguided, to find
    out; the trace counts its rows. A schedule counts the iterations that the loop really runs (51
    for PNDM at 50 steps). A step that the pipeline itself leaves unguided (Lumina 2's
    `cfg_trunc_ratio`) stays so; the trace says what ran. A loop may end early, because somebody
    asks the pipeline for that or because the call fails: the next call is as if it had not been.

    Args:
        pipe: a guided diffusers pipeline. Of a combined one, which runs others one after another,
            the schedule holds in the loop of each.
        schedule: which steps are guided, or a rule that makes it from the number of iterations. A
            policy decides while the loop runs. None only observes.
        listeners: get every event, in order.
        sequential: evaluate the two halves of a guided step one after the other where the pipeline
            concatenates them.

    Yields:
        A trace: `steps` holds one row per step that ran, `calls` one per pipeline call.

    Warns:
        RuntimeWarning: when the block is left, if a schedule held in a loop that ended early though
            nobody had set the pipeline's `_interrupt`; not of a failed call with another after it.

    Raises:
        ValueError: a schedule of another length than the loop, before its first evaluation; a
            pipeline without guidance, or that guides in another way; two schedules at once.
    """
    trace = Trace()
    policy = policy_of(schedule)
    seams = [
        Seam(part, policy, Course(part, policy, trace, listeners), sequential=sequential)
        for part in parts_of(pipe)
    ]
    with ExitStack() as undo:
        for seam in seams:
            undo.enter_context(seam.installed())
        yield trace
        for seam in seams:
            seam.finish()
    broken_off = [said for seam in seams for said in seam.course.broken_off]
    if policy.changes and broken_off:
        warnings.warn(", ".join(broken_off), RuntimeWarning, stacklevel=3)
