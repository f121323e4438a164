"""Another number format of the denoiser's weights, in all steps or in some.

Quantised and cast denoisers are what people run. How one gets into a pipeline is in `precision.py`
of the folder above; which formats there are is in `models/number_formats.py`.
"""

from __future__ import annotations

from dataclasses import replace

from sdbench.models.number_formats import FORMATS
from sdbench.records.names import split_name
from sdbench.variants.accelerators import ONE_DENOISER
from sdbench.variants.methods import masks
from sdbench.variants.precision import Precision
from sdbench.variants.schedule import GuidanceSchedule, ScheduleRule
from sdbench.variants.variant import Method, Variant

MASKS = {method.name: method for method in masks.METHODS}


def _precision(name: str, argument: str | None) -> Variant:
    form, at, steps = (argument or "").partition("@")
    if form not in FORMATS:
        raise ValueError(f"expected precision:FORMAT; there are: {', '.join(FORMATS)}")
    precision = Precision(form, _kept(steps) if at else None)
    return Variant(name, GuidanceSchedule.full, precision=precision)


def _kept(text: str) -> ScheduleRule:
    """The steps that keep the pipeline's own format: those that a mask would leave guided."""
    kind, argument = split_name(text)
    mask = MASKS[kind].build(text, argument) if kind in MASKS else None
    if mask is None or mask.policy is not None or mask.draws or mask.guides_all:
        raise ValueError(
            f"expected the steps behind the @ as a mask names its unguided ones, such as "
            f"last:50% or first:2, not '{text}'"
        )
    return mask.rule


def _add(first: Variant, precise: Variant) -> Variant:
    if first.precision is not None:
        raise ValueError(f"'{first.name}' has another number format already")
    if first.accelerator is not None:
        raise ValueError(ONE_DENOISER.format(first.accelerator.name))
    return replace(first, precision=precise.precision)


METHODS = (
    Method(
        "precision",
        "precision:bf16|precision:int8wo@last:50%|lora+precision:bf16",
        "the denoiser in another number format, in all steps or in those that a mask names: full "
        f"guidance, or any variant in it ({', '.join(FORMATS)})",
        _precision,
        source="torchao (int8wo, int8dq, float8wo); diffusers' layerwise casting (float8cast)",
        group="accelerators",
        add=_add,
        examples=("precision:float8cast", "precision:int8wo@last:50%"),
        saves_rows=False,
    ),
)
