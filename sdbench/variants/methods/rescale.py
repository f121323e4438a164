"""The guided prediction's spread drawn to the conditional one's, by the pipeline's own argument.

Source: Lin et al. 2023, arXiv 2305.08891, section 3.4.
"""

from __future__ import annotations

from sdbench.variants.arguments import matched
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.variant import Method, Variant


def _rescale(name: str, argument: str | None) -> Variant:
    (text,) = matched(argument, r"(0\.\d+|1(?:\.0+)?)", "rescale:PHI, above 0 and at most 1")
    arguments = {"guidance_rescale": float(text)}
    return Variant(name, GuidanceSchedule.full, arguments=arguments)


METHODS = (
    Method(
        "rescale",
        "rescale:0.7",
        "the guided prediction's spread drawn to the conditional one's: quality only",
        _rescale,
        source="Lin et al. 2023, arXiv 2305.08891",
        group="formulas",
        examples=("rescale:0.7",),
        saves_rows=False,
    ),
)
