"""A small pipeline under sdbench's guidance schedules, held against the oracle."""

from __future__ import annotations

import math
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbench import GuidanceSchedule, guided_by
from tools.pipelines.compare import distance, is_finite, is_same
from tools.pipelines.halves import Halves, UnclearError, halves_of
from tools.pipelines.oracle import reference
from tools.pipelines.outcomes import FAILS, LATE, ORDER, REFUSED, SILENT, UNCLEAR, WORKS
from tools.pipelines.record import Change, Record, parts_of, recording, run, seed
from tools.pipelines.small import Small

TOLERANCE = 1e-4
"""Of latents that come from halves evaluated apart: sums are then taken in another order."""
SHARE = 0.02
"""Of a guided step's work, by which an evaluation may miss what is expected."""

Rule = Callable[[int], GuidanceSchedule]
Changes = Callable[[int], dict[str, Any]]
"""From the number of images to what changes in the arguments of a call."""


def ends(steps: int) -> GuidanceSchedule:
    """Guided on the first step and on the last."""
    return GuidanceSchedule.from_mask([step in (0, steps - 1) for step in range(steps)])


def last_half(steps: int) -> GuidanceSchedule:
    """Guided on the first half."""
    return GuidanceSchedule.last(steps, round(steps / 2))


MASKS: dict[str, Rule] = {"ends": ends, "none": GuidanceSchedule.none, "last:50%": last_half}
CHECKS: dict[str, Rule | None] = {"observed": None, "full": GuidanceSchedule.full, **MASKS}


@dataclass
class Finding:
    """What one check found."""

    outcome: str
    reason: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Anatomy:
    """How a pipeline guides, without sdbench.

    Attributes:
        plain: a guided call.
        halves: how its networks give the two predictions.
        off: one in which the pipeline itself does not guide; None where it has other steps then.
        without: one in which it guides and gets the conditional prediction twice at every step.
    """

    plain: Record
    halves: Sequence[Halves]
    off: Record | None = None
    without: Record | None = None

    @property
    def agreement(self) -> float | None:
        """How far the last two are from each other; None where they cannot be compared."""
        if self.without is None or self.off is None:
            return None
        apart = distance(self.without, self.off)
        return apart if math.isfinite(apart) else None

    @property
    def guided(self) -> list[bool]:
        """The steps that the pipeline itself guides."""
        return [
            any(one.is_guided(calls) for one in self.halves if (calls := step.of(*one.networks)))
            for step in self.plain.taken
        ]

    @property
    def predictors(self) -> list[Halves]:
        """The networks that run last in some step; others only feed them."""
        of = {name: one for one in self.halves for name in one.networks}
        steps = [
            [of[c.network] for c in step.calls if c.network in of] for step in self.plain.taken
        ]
        return [one for one in self.halves if any(own and own[-1] is one for own in steps)]

    @property
    def calls(self) -> int:
        """Of a guided step."""
        step = self.plain.taken[self.guided.index(True)]
        return len(step.of(*self.predictors[0].networks))


@dataclass(frozen=True)
class Subject:
    """A small pipeline and the number of images that it makes."""

    small: Small
    images: int

    def arguments(self, changes: Changes | None = None) -> dict[str, Any]:
        """Of a call; generators are new ones."""
        return self.small.call(self.images) | (changes(self.images) if changes else {})

    def plainly(self, changes: Changes | None = None, answers: Change | None = None) -> Record:
        """A call without sdbench."""
        return run(self.small.pipe, self.arguments(changes), answers)


def judged(small: Small, images: int) -> dict[str, Any]:
    """What a pipeline does under every schedule, as a row of the results.

    Args:
        small: the pipeline.
        images: of its calls.
    """
    subject = Subject(small, images)
    plain = subject.plainly()
    anatomy, unclear = None, ""
    try:
        anatomy = _anatomy(subject, plain)
    except UnclearError as error:
        unclear = str(error)

    before = _attributes(small.pipe)
    found = {name: _checked(subject, name, plain, anatomy, unclear) for name in CHECKS}
    found["restored"] = _restored(subject, plain, before)
    gravest = max(found.values(), key=lambda finding: ORDER.index(finding.outcome))
    named = [n for n, finding in found.items() if finding.outcome == gravest.outcome]
    reason = gravest.reason and f"{', '.join(named)}: {gravest.reason}"

    return {
        "batch": images,
        "outcome": gravest.outcome,
        "reason": reason,
        "calls": anatomy.calls if anatomy else None,
        "order": anatomy.predictors[0].order if anatomy else None,
        "off": anatomy.agreement if anatomy else None,
        "notes": [note for finding in found.values() for note in finding.notes],
        "checks": {name: finding.outcome for name, finding in found.items()},
    }


def _anatomy(subject: Subject, plain: Record) -> Anatomy:
    if not is_finite(plain):
        raise UnclearError("its latents are not finite")
    halves = halves_of(plain, lambda change: subject.plainly(subject.small.another, change))
    anatomy = Anatomy(plain, halves)

    # Where guidance changes nothing, no test could fail.
    without = _reference(subject, anatomy, [not own for own in anatomy.guided])
    if distance(without, plain) < 10 * TOLERANCE:
        raise UnclearError("guidance changes nothing here")
    off = subject.plainly(subject.small.off)
    return Anatomy(plain, halves, off if _has_less_work(off, anatomy) else None, without)


def _has_less_work(off: Record, anatomy: Anatomy) -> bool:
    costs = [sum(sum(work(one, own)) for own in anatomy.halves) for one in (off, anatomy.plain)]
    return off.loops == anatomy.plain.loops and costs[0] < 0.75 * costs[1]


def _reference(subject: Subject, anatomy: Anatomy, guided: Sequence[bool]) -> Record:
    """What the pipeline would make if it guided some steps only."""
    unguided = [step for step, own in enumerate(anatomy.guided) if own and not guided[step]]
    if anatomy.without and len(unguided) == sum(anatomy.guided):
        return anatomy.without
    return reference(subject.small.pipe, subject.arguments, anatomy.halves, unguided)


def _checked(
    subject: Subject, name: str, plain: Record, anatomy: Anatomy | None, unclear: str
) -> Finding:
    """What one schedule does."""
    rule = CHECKS[name]
    arguments = subject.arguments()
    seed()
    with recording(subject.small.pipe) as record, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with guided_by(subject.small.pipe, rule) as trace:
                record.output = subject.small.pipe(**arguments)
        except Exception as error:  # noqa: BLE001 whatever it is, it is what was looked for
            return _raised(error, record, anatomy)

    early = [str(one.message) for one in warned if "ended after" in str(one.message)]
    if early:
        return Finding(FAILS, f"warns that {early[0]}")
    if name not in MASKS:
        return _unchanged(subject, record, plain)
    if anatomy is None:
        return Finding(UNCLEAR, unclear)
    try:
        return _masked(subject, MASKS[name], record, trace.steps, anatomy)
    except UnclearError as error:
        return Finding(UNCLEAR, str(error))


def _raised(error: Exception, record: Record, anatomy: Anatomy | None) -> Finding:
    """Told apart: what sdbench refuses, and what goes wrong."""
    message = (str(error).splitlines() or [""])[0][:300]
    traceback.print_exception(error)
    is_ours = "sdbench" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts
    if not isinstance(error, ValueError) or not is_ours:
        return Finding(FAILS, f"{type(error).__name__}: {message}")

    halves = anatomy.halves if anatomy else []
    networks = [name for one in halves for name in one.networks] or record.repeated
    evaluations = sum(len(step.of(*networks)) for step in record.steps)
    if evaluations:
        return Finding(LATE, f"after {evaluations} evaluations: {message}")
    return Finding(REFUSED, message)


def _unchanged(subject: Subject, record: Record, plain: Record) -> Finding:
    if is_same(record, plain):
        return Finding(WORKS)
    if not is_same(subject.plainly(), plain):
        return Finding(UNCLEAR, "its own calls differ from each other")
    return Finding(SILENT, f"differs from the plain call by {distance(record, plain):.1e}")


def _masked(subject: Subject, rule: Rule, record: Record, steps: Any, anatomy: Anatomy) -> Finding:
    """Hold a call on a schedule against what is expected of it: steps, work and latents."""
    guided = [bool(flag) for flag in steps["guided"]]
    expected = _expected(rule, anatomy)
    if guided not in expected:
        return Finding(SILENT, f"guides {_text(guided)}, expected {_text(expected[0])}")

    wrong, notes = _costs(record, steps, guided, anatomy)
    if wrong:
        return Finding(SILENT, wrong)
    apart = distance(record, _reference(subject, anatomy, guided))
    if apart > TOLERANCE:
        return Finding(SILENT, f"differs from the oracle by {apart:.1e}", notes)
    return Finding(WORKS, "", notes)


def _expected(rule: Rule, anatomy: Anatomy) -> list[list[bool]]:
    """The steps that a rule guides, if each loop has its own schedule, or all have one."""
    loops = anatomy.plain.loops
    masks = [[flag for length in loops for flag in rule(length).mask], [*rule(sum(loops)).mask]]
    return [
        [own and flag for own, flag in zip(anatomy.guided, mask, strict=True)] for mask in masks
    ]


def work(record: Record, halves: Halves) -> list[int]:
    """What the predictions of every step cost."""
    calls = [step.of(*halves.networks) for step in record.taken]
    return [sum(call.work for call in own if halves.predicts(call)) for own in calls]


def _costs(
    record: Record, steps: Any, guided: Sequence[bool], anatomy: Anatomy
) -> tuple[str, list[str]]:
    """What is wrong with the work of the steps, and what is to be noted."""
    notes: list[str] = []
    for halves in anatomy.halves:
        found, both = work(record, halves), work(anatomy.plain, halves)
        if len(found) != len(both):
            return f"runs {len(found)} steps, not {len(both)}", notes

        for step in _unexpected(found, halves, guided, anatomy):
            share = found[step] / max(both[step], 1)
            text = f"step {step} costs {share:.2f} of a guided one"
            if halves not in anatomy.predictors:
                notes.append(f"{halves.networks[0]}: {text}")
            elif _is_told(steps, step, guided, share):
                notes.append(f"{text}, as the trace says")
            else:
                return text, notes
    return "", notes


def _unexpected(
    found: Sequence[int], halves: Halves, guided: Sequence[bool], anatomy: Anatomy
) -> list[int]:
    """The steps whose work is not that of the predictions which they need."""
    both = work(anatomy.plain, halves)
    half = [halves.alone(step.of(*halves.networks)) for step in anatomy.plain.taken]
    alone = work(anatomy.off, halves) if anatomy.off else half

    wrong = []
    for step, own in enumerate(anatomy.guided):
        is_dropped = own and not guided[step]
        allowed = (alone[step], half[step]) if is_dropped else (both[step],)
        if all(abs(found[step] - cost) > SHARE * both[step] for cost in allowed):
            wrong.append(step)
    return wrong


def _is_told(steps: Any, step: int, guided: Sequence[bool], share: float) -> bool:
    """Whether the order had to be found by one evaluation more, which the trace counts."""
    rows = steps["rows"].to_numpy()
    is_first = not any(guided[: step + 1])
    return is_first and share <= 1 + SHARE and rows[step] > rows[step + 1 :].min()


def _text(flags: Sequence[bool]) -> str:
    return "".join("01"[flag] for flag in flags)


def _attributes(pipe: Any) -> dict[str, set[str]]:
    """The names of what a pipeline and its parts hold."""
    parts = {"pipeline": pipe, **parts_of(pipe)}
    return {name: {*vars(part)} for name, part in parts.items() if hasattr(part, "__dict__")}


def _restored(subject: Subject, plain: Record, before: dict[str, set[str]]) -> Finding:
    after = _attributes(subject.small.pipe)
    new = {name: held - before.get(name, set()) for name, held in after.items()}
    left = [f"{name}.{attribute}" for name, more in new.items() for attribute in more]
    if left:
        return Finding(SILENT, f"leaves {', '.join(sorted(left))}")
    return _unchanged(subject, subject.plainly(), plain)
