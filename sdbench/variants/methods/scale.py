"""Another guidance scale: a control, or one that was tuned for fewer guided steps."""

from __future__ import annotations

from dataclasses import replace

from sdbench.variants.arguments import NUMBER, matched
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def _scale(name: str, argument: str | None) -> Variant:
    (text,) = matched(argument, rf"({NUMBER})", "scale:W, a guidance scale above 1")
    if float(text) <= 1:
        raise ValueError(f"a guidance scale of {text} is no guidance; use 'unguided'")
    return Variant(name, GuidanceSchedule.full, guidance_scale=float(text), needs_no_time=True)


def _add(first: Variant, scaled: Variant) -> Variant:
    if first.guidance_scale is not None:
        raise ValueError(f"'{first.name}' has its own scale")
    if first.student is not None or first.guides_none:
        raise ValueError(f"'{first.name}' guides no step, or has a student of one scale")
    return replace(first, guidance_scale=scaled.guidance_scale)


METHODS = (
    Method(
        "scale",
        "scale:3.5|last:50%+scale:6",
        "another scale: with full guidance a control, with fewer guided steps "
        "a scale tuned for them",
        _scale,
        group="controls",
        add=_add,
        examples=("scale:3.5",),
        saves_rows=False,
    ),
)
