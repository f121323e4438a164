"""The variant grammar: one entry per way of running a pipeline, and how its text is read.

A `Variant` is settings only; `guidance.py` carries out its schedule.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from sdbench.variants.schedule import (
    GuidanceSchedule,
    ScheduleRule,
    StepCount,
    mask_of,
    mask_text,
    read_schedule,
)

if TYPE_CHECKING:
    from sdbench.variants.policies import Policy  # brings torch


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
        policy: from the guidance scale to what decides in place of the rule while the loop runs; the rule then says
            only what work is to be expected, as far as it is known.
        accelerator: name and number of another project's method.
        arguments: further arguments of the pipeline's call.
    """

    name: str
    rule: ScheduleRule
    num_steps: int | None = None
    guidance_scale: float | None = None
    student: str | None = None
    content: str = ""
    policy: Callable[[float], Policy] | None = None
    accelerator: tuple[str, float] | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


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
GUIDERS = ("apg", "cfg-zero", "tcfg")
GUIDING = ("tgate",)
CONSTANT_ROWS = ("firstblock", "taylorseer", "pab", "fastercache", "magcache")
ADDED = ("scale", "lora", "deepcache", *GUIDING, *CONSTANT_ROWS)
"""What may stand behind a plus sign."""
_NUMBER = r"\d+(?:\.\d+)?"


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
    if text.count("+") > len(ADDED):
        raise ValueError(f"variant '{text}' adds more than there is to add")
    together = re.fullmatch(rf"(.+)\+((?:{'|'.join(ADDED)})(?::.+)?)", text.strip())
    if together:
        return _together(text.strip(), parse(together[1]), parse(together[2]))
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


def _counted(
    make: Callable[[int, int], GuidanceSchedule], grammar: str
) -> Callable[[str, str | None], Variant]:
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
    return Variant(
        name, lambda steps: GuidanceSchedule.random(steps, count.of(steps), seed=int(seed))
    )


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


def _together(name: str, first: Variant, added: Variant) -> Variant:
    """A variant at another scale, with a student in its unguided steps, or with an accelerator in all of them."""
    reason = _exclusion(first, added)
    if reason is not None:
        raise ValueError(f"variant '{name}': {reason}")
    content = " ".join(filter(None, (first.content, added.content)))
    if added.guidance_scale is not None:
        return replace(first, name=name, guidance_scale=added.guidance_scale)
    if added.accelerator is not None:
        return replace(first, name=name, content=content, accelerator=added.accelerator)
    return replace(first, name=name, student=added.student, content=content)


def _exclusion(first: Variant, added: Variant) -> str | None:
    """Why two variants cannot run together; None where they can."""
    if added.guidance_scale is not None:
        if first.guidance_scale is not None:
            return f"'{first.name}' has a scale of its own"
        if first.student is not None or first.rule == GuidanceSchedule.none:
            return f"'{first.name}' guides no step, or has a student of one scale"
        return None
    if added.accelerator is not None:
        return _exclusion_of_accelerator(first, added.accelerator[0])
    if first.student is not None:
        return f"'{first.name}' is a student already"
    if first.accelerator is not None:
        return "a student stands before an accelerator: lora+deepcache:3"
    if first.policy is not None:
        return f"'{first.name}' compares both predictions, of which a student makes one"
    if first.rule == GuidanceSchedule.full:
        return f"'{first.name}' leaves no step unguided, where the student would run"
    return None


def _exclusion_of_accelerator(first: Variant, accelerator: str) -> str | None:
    if first.accelerator is not None:
        return "two accelerators exclude each other: both replace what the denoiser computes"
    if accelerator in GUIDING and first.name != "cfg":
        return f"{accelerator} decides itself which steps are guided"
    if accelerator in CONSTANT_ROWS and (
        first.policy is not None or first.rule != GuidanceSchedule.full
    ):
        return f"{accelerator} keeps what a call of as many rows computed, so every step must be guided"
    return None


def _interval(name: str, argument: str | None) -> Variant:
    lo, hi = map(
        float, _pattern(argument, rf"({_NUMBER})-({_NUMBER}|inf)", "interval:LO-HI in sigma")
    )
    if not lo < hi:
        raise ValueError(f"an interval of sigma goes up, not from {lo:g} to {hi:g}")
    return _decided(name, lambda policies, _: policies.Interval(lo, hi))


def _step_ag(name: str, argument: str | None) -> Variant:
    if not argument:
        raise ValueError("expected step-ag:N, the first steps that are guided")
    count = StepCount.parse(argument)
    return Variant(name, lambda steps: GuidanceSchedule.last(steps, steps - count.of(steps)))


def _adaptive(name: str, argument: str | None) -> Variant:
    (text,) = _pattern(argument, r"(0\.\d+)", "adaptive:C, a cosine below 1")
    return _decided(name, lambda policies, _: policies.Adaptive(float(text)))


def _cached(name: str, argument: str | None) -> Variant:
    grammar = "cached:PERIOD[,from=STEP][,split], a period of at least 2"
    period, begin, split = _pattern(argument, r"(\d+)(?:,from=(\d+))?(,split)?", grammar)
    if int(period) < 2:
        raise ValueError(f"expected {grammar}")

    def refreshed(steps: int) -> set[int]:
        start = int(begin or 0)
        return {0, *range(min(start, steps)), *range(start, steps, int(period))}

    return _refreshing(name, refreshed, split=split is not None)


def _compressed(name: str, argument: str | None) -> Variant:
    count, power = _pattern(argument, rf"([1-9]\d*)(?:\^({_NUMBER}))?", "compressed:COUNT[^POWER]")

    def refreshed(steps: int) -> set[int]:
        if int(count) > steps:
            raise ValueError(f"{count} guided steps do not fit in {steps}")
        found: list[int] = []
        for index in range(int(count)):
            place = round(steps * (index / int(count)) ** float(power or 1) - 0.5 + 1e-9)
            found.append(
                max(place, found[-1] + 1 if found else 0)
            )  # a step that is taken goes to the next one
        last = steps - 1
        return {min(step, last - (int(count) - 1 - index)) for index, step in enumerate(found)}

    return _refreshing(name, refreshed, split=False)


def _refreshing(name: str, refreshed: Callable[[int], set[int]], *, split: bool) -> Variant:
    """A cached offset; its rule says which steps evaluate both predictions."""
    decided = _decided(name, lambda policies, _: policies.CachedOffset(refreshed, split=split))
    return replace(
        decided,
        rule=lambda steps: GuidanceSchedule(
            tuple(step in refreshed(steps) for step in range(steps))
        ),
    )


def _schedule(name: str, argument: str | None) -> Variant:
    grammar = "schedule:linear, schedule:cosine or schedule:clamp-linear@W, the least scale"
    kind, least = _pattern(
        argument, rf"(linear|cosine|clamp-linear(?=@))(?:@({_NUMBER}))?", grammar
    )
    if least is not None and kind != "clamp-linear":
        raise ValueError(f"expected {grammar}")

    def make(policies: Any, guidance_scale: float) -> Policy:
        rising = getattr(policies, kind.removeprefix("clamp-"))
        scale = rising if least is None else lambda run, w: max(float(least), rising(run, w))
        return policies.WeightSchedule(scale, guidance_scale)

    return _decided(name, make)


def _guider(name: str, argument: str | None) -> Variant:
    (kind,) = _pattern(
        argument, rf"({'|'.join(GUIDERS)})", f"guider: and one of {', '.join(GUIDERS)}"
    )

    def make(policies: Any, guidance_scale: float) -> Policy:
        return policies.Guider(partial(policies.guider, kind), guidance_scale)

    return _decided(name, make)


def _decided(name: str, make: Callable[[Any, float], Policy]) -> Variant:
    """A variant with a policy, which is made when it runs: policies bring torch."""

    def policy(guidance_scale: float) -> Policy:
        from sdbench.variants import policies

        return make(policies, guidance_scale)

    return Variant(name, GuidanceSchedule.full, policy=policy)


def _rescale(name: str, argument: str | None) -> Variant:
    (text,) = _pattern(argument, r"(0\.\d+|1(?:\.0+)?)", "rescale:PHI, above 0 and at most 1")
    return Variant(name, GuidanceSchedule.full, arguments={"guidance_rescale": float(text)})


def _accelerator(kind: str, pattern: str, grammar: str) -> Callable[[str, str | None], Variant]:
    def build(name: str, argument: str | None) -> Variant:
        (number,) = _pattern(argument, pattern, grammar)
        return Variant(name, GuidanceSchedule.full, accelerator=(kind, float(number)))

    return build


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
        "last",
        "last:20%|last:10",
        "last steps unguided",
        _counted(GuidanceSchedule.last, "last:N"),
        _SELECTIVE,
    ),
    VariantKind(
        "first",
        "first:20%|first:10",
        "first steps unguided",
        _counted(GuidanceSchedule.first, "first:N"),
    ),
    VariantKind(
        "window", "window:10+13", "13 steps from index 10 on unguided", _window, _SELECTIVE
    ),
    VariantKind("every", "every:2", "one step in two unguided", _every),
    VariantKind(
        "random",
        "random:10@7",
        "10 steps drawn with seed 7 unguided: a control for placement",
        _random,
    ),
    VariantKind("mask", "mask:1100...", "1 guided, 0 unguided, one digit per step", _mask),
    VariantKind(
        "lora",
        "lora|lora:PATH|last:50%+lora",
        "a distilled student, the model's own or any, in one pass; `+lora`: in the unguided steps of a schedule",
        _lora,
        "Golnari 2023, arXiv 2312.06899",
    ),
    VariantKind(
        "full",
        "full:PATH",
        "a student whose every weight was distilled: the control",
        _full,
        "Meng et al. 2023, arXiv 2210.03142",
    ),
    VariantKind(
        "interval",
        "interval:0.28-5.42",
        "guided only where sigma, the noise-to-signal ratio, is in (lo, hi]",
        _interval,
        "Kynkäänniemi et al. 2024, arXiv 2404.07724",
    ),
    VariantKind(
        "step-ag",
        "step-ag:40%",
        "guided in the first steps only: last:60%",
        _step_ag,
        "arXiv 2506.08351",
    ),
    VariantKind(
        "adaptive",
        "adaptive:0.99",
        "each image guided until the cosine of its two predictions of the clean latent passes the threshold",
        _adaptive,
        "Castillo et al. 2023, arXiv 2312.12487",
    ),
    VariantKind(
        "cached",
        "cached:5|cached:5,from=20|cached:5,split",
        "the predictions' difference refreshed in one step of 5, from a step on; `split`: by frequency",
        _cached,
        "Lv et al. 2024, arXiv 2410.19355",
    ),
    VariantKind(
        "compressed",
        "compressed:20|compressed:20^2",
        "the difference refreshed in 20 steps, more of them early with a power above 1",
        _compressed,
        "Dinh et al. 2024, arXiv 2408.11194",
    ),
    VariantKind(
        "schedule",
        "schedule:linear|schedule:cosine|schedule:clamp-linear@2",
        "a scale that rises over the steps with w as its mean, the last never below 2: quality only",
        _schedule,
        "Wang et al. 2024, arXiv 2404.13040",
    ),
    VariantKind(
        "rescale",
        "rescale:0.7",
        "the guided prediction's spread drawn to the conditional one's: quality only",
        _rescale,
        "Lin et al. 2023, arXiv 2305.08891",
    ),
    VariantKind(
        "guider",
        "|".join(f"guider:{kind}" for kind in GUIDERS),
        "a guider of diffusers in the place of the formula: quality only",
        _guider,
        "arXiv 2410.02416, 2503.18886, 2503.18137",
    ),
    VariantKind(
        "deepcache",
        "deepcache:3|last:20%+deepcache:3",
        "deep UNet features computed in one step of 3 (package DeepCache)",
        _accelerator("deepcache", r"([2-9]|[1-9]\d+)", "deepcache:INTERVAL of at least 2"),
        "Ma et al. 2023, arXiv 2312.00858",
    ),
    VariantKind(
        "tgate",
        "tgate:10",
        "cross-attention kept and guidance dropped from step 10 on (package tgate)",
        _accelerator("tgate", r"([1-9]\d*)", "tgate:STEP of at least 1"),
        "Zhang et al. 2024, arXiv 2404.02747",
    ),
    VariantKind(
        "firstblock",
        "firstblock:0.05",
        "a transformer's step skipped where its first block changes little (diffusers)",
        _accelerator("firstblock", rf"({_NUMBER})", "firstblock:THRESHOLD"),
        "github.com/chengzeyi/ParaAttention",
    ),
    VariantKind(
        "taylorseer",
        "taylorseer:5",
        "a transformer's blocks computed in one step of 5 and foretold between (diffusers)",
        _accelerator("taylorseer", r"([2-9]|[1-9]\d+)", "taylorseer:INTERVAL of at least 2"),
        "Liu et al. 2025, arXiv 2503.06923",
    ),
    VariantKind(
        "pab",
        "pab:2",
        "a transformer's attention computed in one step of 2 (diffusers)",
        _accelerator("pab", r"([2-9]|[1-9]\d+)", "pab:PERIOD of at least 2"),
        "Zhao et al. 2024, arXiv 2408.12588",
    ),
    VariantKind(
        "fastercache",
        "fastercache:2",
        "a transformer's attention reused in one step of 2; its other half is `cached:N,split` (diffusers)",
        _accelerator("fastercache", r"([2-9]|[1-9]\d+)", "fastercache:PERIOD of at least 2"),
        "Lv et al. 2024, arXiv 2410.19355",
    ),
    VariantKind(
        "magcache",
        "magcache:0.06",
        "a transformer's steps skipped by magnitudes calibrated beforehand, of which diffusers has Flux's",
        _accelerator("magcache", rf"({_NUMBER})", "magcache:THRESHOLD"),
        "Ma et al. 2025, arXiv 2506.09045",
    ),
    VariantKind("plan", "plan:FILE", "a schedule that `sdbench plan` found", _plan),
    VariantKind(
        "scale",
        "scale:3.5|last:50%+scale:6",
        "another scale: with full guidance a control, with fewer guided steps a scale tuned anew",
        _scale,
    ),
    VariantKind(
        "steps", "steps:35", "full guidance with fewer steps: the control at equal work", _steps
    ),
):
    register_variant(_kind)
