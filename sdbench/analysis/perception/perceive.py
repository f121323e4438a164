"""`sdbench.perceive`: from files of answers to what people see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from sdbench.analysis.perception.answered import answer_table
from sdbench.analysis.perception.detection import detections
from sdbench.analysis.perception.foretold import curves, foretold
from sdbench.analysis.perception.people import by_person, kept_answers, people
from sdbench.analysis.perception.preference import scores, wins
from sdbench.analysis.perception.psychometric import Curve
from sdbench.records.answers import read_answers
from sdbench.records.names import BASELINE, TEST
from sdbench.records.store import Results, read


@dataclass(frozen=True)
class Perceived:
    """What the answers of a blind test say.

    Attributes:
        answers: the table of that name, everybody's.
        people: one row per person, as `people` gives them.
        reference: the variant that all others are compared with.
        by_person: one row per person and variant; empty in a test of preference.
        variants: one row per variant and kind of catch trial; empty in a test of preference.
        wins: one row per two variants; empty unless the test is of preference.
        scores: one row per variant, likewise.
        foretold: how well each metric foretells what was seen; empty in a test of preference.
        curves: psychometric curves by metric, likewise.
    """

    answers: pd.DataFrame
    people: pd.DataFrame
    reference: str = BASELINE
    by_person: pd.DataFrame = field(default_factory=pd.DataFrame)
    variants: pd.DataFrame = field(default_factory=pd.DataFrame)
    wins: pd.DataFrame = field(default_factory=pd.DataFrame)
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)
    foretold: pd.DataFrame = field(default_factory=pd.DataFrame)
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def mode(self) -> str:
        """What the test asked."""
        return str(self.answers["mode"].iloc[0])

    @property
    def simulated(self) -> int:
        """How many of those who answered are programs."""
        return int(self.people["simulated"].sum())


def perceive(answers: Sequence[str | Path], study: str | Path | Results) -> Perceived:
    """Judge the answers of a blind test.

    Args:
        answers: files that the page wrote, one per person, all of one page.
        study: the study that the page was made from, or its folder. Its images need not be stored
            any more.

    Raises:
        ValueError: a file is missing, changed, cut off, or of another page or study; or two are of
            one person.
    """
    results = study if isinstance(study, Results) else read(study)
    table = answer_table(results, [read_answers(Path(path)) for path in answers])
    return judged(table, str(results.study.get("reference", BASELINE)))


def judged(answers: pd.DataFrame, reference: str = BASELINE) -> Perceived:
    """Judge a table of answers.

    Where everybody is left out, only `answers` and `people` say something.

    Args:
        answers: the table of that name, of one page.
        reference: the variant that all others are compared with.
    """
    found = Perceived(answers, people(answers), reference)
    kept = kept_answers(answers)
    if found.mode == "preference":
        if kept.empty:
            return found
        table = wins(kept)
        return replace(found, wins=table, scores=scores(table, reference))

    found = replace(found, by_person=by_person(answers))
    if kept.empty:
        return found
    tests = kept[kept["kind"] == TEST]
    drawn = curves(tests)
    return replace(found, variants=detections(kept), foretold=foretold(tests, drawn), curves=drawn)
