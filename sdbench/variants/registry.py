"""The variant grammar: one entry per way of running a pipeline, and how its text is read.

A `Variant` is settings only; `guidance.py` carries out its schedule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule, StepCount, mask_of, mask_text, read_schedule


@dataclass(frozen=True)
class Variant:
    """One way of running a pipeline.

    Args:
        name: its text, which is also its name in the tables.
        rule: the guidance schedule for a loop of a given length.
        num_steps: replaces the study's number of steps.
        guidance_scale: replaces the study's guidance scale.
        student: file whose weights the denoiser gets; empty for the model's own adapter, None for none.
        content: what the name does not say and a stored call depends on, such as what a file held.
    """

    name: str
    rule: ScheduleRule
    num_steps: int | None = None
    guidance_scale: float | None = None
    student: str | None = None
    content: str = ""


@dataclass(frozen=True)
class VariantKind:
    """One entry of the grammar.

    Args:
        name: what stands before the colon.
        grammar: how to write it, for help texts.
        meaning: one line.
        build: from the text after the colon (None without one) to the variant.
        source: paper or project that it comes from, if any.
    """

    name: str
    grammar: str
    meaning: str
    build: Callable[[str, str | None], Variant]
    source: str = ""


VARIANTS: dict[str, VariantKind] = {}


def register_variant(kind: VariantKind) -> None:
    """Add an entry to the grammar.

    Raises:
        ValueError: the name is taken.
    """
    if kind.name in VARIANTS:
        raise ValueError(f"variant '{kind.name}' is already registered")
    VARIANTS[kind.name] = kind


def parse(text: str) -> Variant:
    """Read one variant.

    Raises:
        ValueError: an unknown name (the message lists what exists) or an argument that does not fit.
    """
    together = re.fullmatch(r"(.+)\+(lora(?::.+)?)", text.strip())
    if together:
        return _in_turn(text.strip(), parse(together[1]), parse(together[2]))
    name, colon, argument = text.strip().partition(":")
    if name not in VARIANTS:
        known = ", ".join(kind.grammar for kind in VARIANTS.values())
        raise ValueError(f"unknown variant '{text}'; there are: {known}")
    try:
        return VARIANTS[name].build(text.strip(), argument if colon else None)
    except ValueError as error:
        raise ValueError(f"variant '{text}': {error}") from None


def _pattern(argument: str | None, pattern: str, grammar: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, argument or "")
    if match is None:
        raise ValueError(f"expected {grammar}")
    return match.groups()


def _plain(name: str, argument: str | None, make: ScheduleRule) -> Variant:
    if argument is not None:
        raise ValueError(f"expected no argument, not '{argument}'")
    return Variant(name, make)


def _counted(make: Callable[[int, int], GuidanceSchedule], grammar: str) -> Callable[[str, str | None], Variant]:
    def build(name: str, argument: str | None) -> Variant:
        if not argument:
            raise ValueError(f"expected {grammar}")
        count = StepCount.parse(argument)
        return Variant(name, lambda steps: make(steps, count.of(steps)))

    return build


def _window(name: str, argument: str | None) -> Variant:
    start, length = map(int, _pattern(argument, r"(\d+)\+(\d+)", "window:START+LENGTH"))
    return Variant(name, lambda steps: GuidanceSchedule.window(steps, start, length))


def _every(name: str, argument: str | None) -> Variant:
    (period,) = map(int, _pattern(argument, r"([1-9]\d*)", "every:PERIOD of at least 1"))
    return Variant(name, lambda steps: GuidanceSchedule.every(steps, period))


def _random(name: str, argument: str | None) -> Variant:
    text, seed = _pattern(argument, r"(\d+%?|\d+\.\d+%)@(\d+)", "random:COUNT@SEED")
    count = StepCount.parse(text)
    return Variant(name, lambda steps: GuidanceSchedule.random(steps, count.of(steps), seed=int(seed)))


def _mask(name: str, argument: str | None) -> Variant:
    (bits,) = _pattern(argument, r"([01]+)", "mask: and one 1 (guided) or 0 (unguided) per step")
    schedule = GuidanceSchedule(mask_of(bits))
    return Variant(name, lambda steps: schedule)


def _plan(name: str, argument: str | None) -> Variant:
    if not argument:
        raise ValueError("expected plan:FILE, a schedule that `sdbench plan` wrote")
    schedule, scale = GuidanceSchedule.load(argument), read_schedule(argument).get("guided_scale")
    content = f"{mask_text(schedule.mask)} {scale}"
    return Variant(name, lambda steps: schedule, guidance_scale=scale, content=content)


def _steps(name: str, argument: str | None) -> Variant:
    (count,) = map(int, _pattern(argument, r"([1-9]\d*)", "steps:N of at least 1"))
    return Variant(name, GuidanceSchedule.full, num_steps=count)


def _scale(name: str, argument: str | None) -> Variant:
    (text,) = _pattern(argument, r"(\d+(?:\.\d+)?)", "scale:W, a guidance scale above 1")
    if float(text) <= 1:
        raise ValueError(f"a guidance scale of {text} is no guidance; use 'unguided'")
    return Variant(name, GuidanceSchedule.full, guidance_scale=float(text))


def _lora(name: str, argument: str | None) -> Variant:
    if argument is None:
        return Variant(name, GuidanceSchedule.none, student="")
    return _student(name, argument, of_lora=True)


def _in_turn(name: str, schedule: Variant, student: Variant) -> Variant:
    """The schedule's variant with the student in its unguided steps."""
    if schedule.student is not None:
        raise ValueError(f"variant '{name}': '{schedule.name}' is a student already")
    content = " ".join(filter(None, (schedule.content, student.content)))
    return replace(schedule, name=name, student=student.student, content=content)


def _full(name: str, argument: str | None) -> Variant:
    if not argument:
        raise ValueError("expected full:PATH, a student that `sdbench distill --method full` wrote")
    return _student(name, argument, of_lora=False)


def _student(name: str, path: str, *, of_lora: bool) -> Variant:
    from sdbench.models.students import EMBEDDING_FILE  # brings torch
    from sdbench.variants.adapters import weights_file

    file = weights_file(path, of_lora=of_lora)
    parts = [part for part in (file, file.with_name(EMBEDDING_FILE)) if part.is_file()]
    content = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    return Variant(name, GuidanceSchedule.none, student=str(file), content=content)


_SELECTIVE = "Golnari et al. 2023, arXiv 2305.09847"
for _kind in (
    VariantKind(
        "cfg",
        "cfg",
        "the baseline: every step guided",
        lambda name, argument: _plain(name, argument, GuidanceSchedule.full),
        "Ho and Salimans 2022, arXiv 2207.12598",
    ),
    VariantKind(
        "unguided",
        "unguided",
        "no step guided",
        lambda name, argument: _plain(name, argument, GuidanceSchedule.none),
    ),
    VariantKind(
        "last", "last:20%|last:10", "last steps unguided", _counted(GuidanceSchedule.last, "last:N"), _SELECTIVE
    ),
    VariantKind("first", "first:20%|first:10", "first steps unguided", _counted(GuidanceSchedule.first, "first:N")),
    VariantKind("window", "window:10+13", "13 steps from index 10 on unguided", _window, _SELECTIVE),
    VariantKind("every", "every:2", "one step in two unguided", _every),
    VariantKind("random", "random:10@7", "10 steps drawn with seed 7 unguided: a control for placement", _random),
    VariantKind("mask", "mask:1100...", "1 guided, 0 unguided, one digit per step", _mask),
    VariantKind(
        "lora",
        "lora|lora:PATH|last:50%+lora",
        "a distilled student, one pass per step; +lora: in the unguided steps of a schedule",
        _lora,
        "Golnari 2023, arXiv 2312.06899",
    ),
    VariantKind(
        "full", "full:PATH", "a student whose every weight was distilled", _full, "Meng et al. 2023, arXiv 2210.03142"
    ),
    VariantKind("plan", "plan:FILE", "a schedule that `sdbench plan` found", _plan),
    VariantKind("scale", "scale:3.5", "full guidance at another scale: a control", _scale),
    VariantKind("steps", "steps:35", "full guidance with fewer steps: the control at equal work", _steps),
):
    register_variant(_kind)
