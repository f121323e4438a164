"""`sdbench rank`: variants in the order of a metric, or two of them pair by pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sdbench.cli.console import command, console
from sdbench.cli.differing import IMAGES, print_differing
from sdbench.cli.options import Metric, Results, compared
from sdbench.cli.values import positive, variant_names

if TYPE_CHECKING:
    from sdbench.records.store import Results as StudyResults

_Pair = Annotated[
    str | None, compared(help="compare only these two variants, separated by a comma")
]
_With = Annotated[
    Path | None, compared("--with", help="folder of another study, which has the second variant")
]
_Margin = Annotated[
    str | None, compared(help="test equivalence: the largest difference that does not matter")
]
_Shared = Annotated[
    bool, compared("--shared", help="use only the captions and seeds that both variants have")
]


@command
def rank(
    results: Results,
    metric: Metric = "lpips",
    pair: _Pair = None,
    other: _With = None,
    margin: _Margin = None,
    shared: _Shared = False,
) -> None:
    """Rank a study's variants by a metric, and say which differences are clear.

    With --pair, compare two variants on the same captions and seeds.
    """
    from sdbench.analysis.ranking import ranking
    from sdbench.analysis.stability import WATCHED
    from sdbench.analysis.tables import PAIRS
    from sdbench.instruments.quality import find_metric
    from sdbench.records.store import read
    from sdbench.report.tables import mark_legend, ranking_note, ranking_text

    kind, _ = find_metric(metric)
    if pair is not None:
        _compare(results, other or results, pair, kind.name, margin, some=shared)
        return
    if other is not None or margin is not None or shared:
        raise ValueError(
            "--with, --margin and --shared need --pair: name the two variants to compare"
        )

    pairs = read(results, columns=PAIRS | WATCHED)
    _print_disturbance(pairs)
    ranked = ranking(pairs, kind.name, higher_is_better=bool(kind.higher_is_better))
    console.print(ranking_text(ranked, kind.name))
    for line in (ranking_note(ranked), *mark_legend(ranked)):
        console.print(line, markup=False, highlight=False)


def _print_disturbance(study: StudyResults) -> None:
    """What disturbed a study's calls, and that it does not matter here."""
    from sdbench.analysis.stability import disturbance

    if told := disturbance(study):
        console.print(
            f"DISTURBED: {told}. Images, and so ranks, are not affected.",
            style="bold",
            highlight=False,
        )


def _compare(
    folder: Path, other: Path, pair: str, metric: str, margin: str | None, *, some: bool
) -> None:
    """Print how two variants compare, each of its own study."""
    from sdbench.analysis.contrast import contrast
    from sdbench.analysis.shared import image_differences, shared_pairs
    from sdbench.records.store import read

    names = variant_names(pair)
    if len(names) != 2:
        raise ValueError(f"--pair takes two variants, separated by a comma, not '{pair}'")
    first, second = names
    studies = (read(folder), first), (read(other), second)
    for study, _ in studies[:1] if other == folder else studies:
        _print_disturbance(study)
    print_differing(studies[0][0], studies[1][0], so=IMAGES)
    values, left_out = shared_pairs(*studies, metric, some=some)
    allowed = None if margin is None else positive("--margin", margin)
    images = image_differences(*studies, metric)
    found = contrast(values, metric, margin=allowed, images=images)
    console.print(found.sentence(first, second), soft_wrap=True)
    if left_out:
        console.print(f"Both have the caption and seed of {left_out}; the others are left out.")
