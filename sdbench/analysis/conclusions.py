"""What the suite concludes of guidance, and whether it holds on each model that was studied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from sdbench.analysis.contrast import Contrast, contrast
from sdbench.analysis.sensitivity import GUIDED_BRANCH
from sdbench.analysis.shared import image_differences, shared_pairs
from sdbench.records.store import Results

VERDICTS = HOLDS, UNDECIDED, NOT = ("holds", "undecided", "does not hold")
_FOR = ("nearer", "better")
_AGAINST = ("farther", "worse")


class Evidence(NamedTuple):
    """The results of a model from which its conclusions are drawn.

    Attributes:
        methods: a study with every variant that `COMPARED` names but those of `scales`.
        scales: a study with the variants that have a scale; may be the same one.
        single: the table of a sweep that leaves out guidance at each step alone.
    """

    methods: Results
    scales: Results
    single: pd.DataFrame


@dataclass(frozen=True)
class Compared:
    """A conclusion on variants.

    Args:
        says: the conclusion.
        first: a variant.
        others: it has to be nearer, or better, than each of these.
        metric: in which.
        of_scales: whether the variants stand in `Evidence.scales`.
    """

    says: str
    first: str
    others: tuple[str, ...]
    metric: str = "lpips"
    of_scales: bool = False


LATER_STEPS = "one step without guidance matters less in the second half of the steps"
COMPARED = (
    Compared(
        "last:50% is nearer to full guidance than as many steps at random",
        "last:50%",
        ("random:50%@0..7",),
    ),
    Compared(
        "the student is nearer to full guidance than fewer guided steps with as many evaluations",
        "lora",
        ("steps:10",),
    ),
    Compared(
        "at 70 % of the evaluations fewer guided steps are nearer than any other method",
        "steps:14",
        ("last:60%", "interval:1-20", "tgate:8", "cached:3,from=5", "compressed:8"),
    ),
    Compared(
        "a higher scale on the guided steps brings back alignment that last:50% loses",
        "last:50%+scale:7",
        ("last:50%",),
        "alignment",
        of_scales=True,
    ),
)


def conclusions(models: Mapping[str, Evidence]) -> pd.DataFrame:
    """Every conclusion on every model.

    Args:
        models: the evidence by the model's name.

    Returns:
        One row per conclusion and model: `conclusion`, `model`, `verdict` (holds, does not hold or
        undecided), `first` and `against` (what was compared: of several rivals the one that comes
        nearest to refuting it), `metric`, `found` (the comparison's own verdict, such as "nearer in
        most images"), `difference` (mean of the first less the other), `share` (of the pairs that
        differ, in which the first is nearer or better), both with `_lo` and `_hi`, the ends of 95 %
        intervals over prompts, and `pairs`.

    Raises:
        ValueError: a study lacks a variant or a metric.
    """
    rows = [
        _row(LATER_STEPS, model, "later steps", {"earlier steps": _later_steps(evidence.single)})
        for model, evidence in models.items()
    ]
    for compared in COMPARED:
        for model, evidence in models.items():
            study = evidence.scales if compared.of_scales else evidence.methods
            found = {other: _contrast(study, compared, other) for other in compared.others}
            rows.append(_row(compared.says, model, compared.first, found))
    return pd.DataFrame(rows)


def _later_steps(single: pd.DataFrame) -> Contrast:
    """The mean LPIPS of leaving out one step of the second half, against one of the first.

    Of an odd number of steps the one in the middle is in neither half.
    """
    branches = single[single["kind"] != GUIDED_BRANCH]
    steps = int(branches["start"].max()) + 1
    halves = {
        "first": branches[2 * branches["start"] >= steps + steps % 2],
        "second": branches[2 * branches["start"] < steps - steps % 2],
    }
    pair = ["prompt_id", "seed"]
    means = {name: half.groupby(pair)["lpips"].mean() for name, half in halves.items()}
    return contrast(pd.DataFrame(means).astype(float).dropna(), "lpips")


def _contrast(study: Results, compared: Compared, other: str) -> Contrast:
    sides = (study, compared.first), (study, other)
    values, _ = shared_pairs(*sides, compared.metric)
    images = image_differences(*sides, compared.metric)
    return contrast(values, compared.metric, images=images)


def _row(says: str, model: str, first: str, found: Mapping[str, Contrast]) -> dict[str, object]:
    # The least favourable verdict decides, and of its rivals the one that is most often better.
    verdicts = {name: _verdict(one) for name, one in found.items()}
    verdict = max(verdicts.values(), key=VERDICTS.index)
    deciding = [name for name, own in verdicts.items() if own == verdict]
    against = min(deciding, key=lambda name: found[name].better.estimate)

    one = found[against]
    row: dict[str, object] = {"conclusion": says, "model": model}
    row |= {"verdict": verdict, "first": first}
    row |= {"against": against, "metric": one.metric, "found": one.verdict}
    for name, interval in (("difference", one.difference), ("share", one.better)):
        row |= {name: interval.estimate, f"{name}_lo": interval.lo, f"{name}_hi": interval.hi}
    return row | {"pairs": one.pairs}


def _verdict(found: Contrast) -> str:
    """A difference in the mean alone, or in most images alone, is one too."""
    if found.verdict.startswith(_FOR):
        return HOLDS
    return NOT if found.verdict.startswith(_AGAINST) else UNDECIDED
