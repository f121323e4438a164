"""What people saw in a blind test: sentences, tables, and a summary in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import pandas as pd
from rich.table import Table

from sdbench.analysis.perception.detection import SEEN
from sdbench.analysis.perception.foretold import CHANGED
from sdbench.analysis.perception.people import RULE
from sdbench.analysis.perception.perceive import Perceived
from sdbench.records.computed import PERCEPTION, SCORE, SUMMARY, THRESHOLD
from sdbench.records.names import TEST
from sdbench.report.tables.cells import (
    MISSING,
    add_row,
    empty_table,
    interval_text,
    markdown_lines,
)

PERCENT = PERCEPTION["share"].format
TINY = 0.001


def perception_words(found: Perceived) -> list[str]:
    """What the answers say, in sentences; first who answered."""
    words = [*filter(None, [simulated_note(found)]), *_people_words(found)]
    if not found.people["kept"].any():
        return [*words, "Nobody is left, so nothing is said of any variant."]
    if found.mode == "preference":
        return words + _preference_words(found)
    tests = found.variants[found.variants["kind"] == TEST]
    words += [_variant_words(row) for _, row in tests.iterrows()]
    if tests["mixed"].isna().all():
        words.append(
            "A mixed model needs 6 people and 6 pairs, so the intervals speak of these people and "
            "these images alone."
        )
    return words + [line for _, row in found.foretold.iterrows() for line in _foretold(row)]


def simulated_note(found: Perceived) -> str:
    """That programs answered; empty where people did."""
    if not found.simulated:
        return ""
    whose = f"{found.simulated} of {len(found.people)} who answered are programs"
    return f"SIMULATED: {whose}, not people. Their answers say nothing about human eyes."


def perception_table(found: Perceived) -> Table:
    """One row per variant and kind of catch trial, or per two variants, for a terminal."""
    head, rows = _cells(found)
    shown = empty_table(head, left=(head[0], "verdict", "against"), no_wrap=(head[0],))
    for row in rows:
        add_row(shown, row)
    return shown


def perception_legend(found: Perceived) -> str:
    """What the columns of the table mean."""
    if found.mode == "preference":
        return (
            "wins: share of answers in which the first variant's image fits the caption better; "
            "exact interval. p: two-sided, exact, corrected by Holm."
        )
    lines = [f"{column.heading}: {column.meaning}" for column in PERCEPTION.values()]
    return "\n".join(
        [
            *lines,
            "p: that the share is above 50 %, exact (twice the tail), corrected by Holm.",
            "clear, identical: the catch trials. [lo,hi]: 95 % interval.",
        ]
    )


def perception_markdown(found: Perceived) -> str:
    """A summary: sentences, the table, people, and what foretells their answers."""
    parts = ["\n".join(f"- {line}" for line in perception_words(found))]
    head, rows = _cells(found)
    if rows:
        parts.append(_markdown(head, rows))
    if len(found.scores):
        parts.append(_markdown(("variant", "score"), _score_rows(found.scores)))
    parts.append(
        _markdown(
            ("person", "kept", "clear", "identical", "chose A %", "time s"),
            [_person(row) for _, row in found.people.iterrows()],
        )
    )
    if len(found.by_person):
        parts += ["Right answers of each person in %, and d':", _of_people(found.by_person)]
    return "\n\n".join(parts)


def _of_people(table: pd.DataFrame) -> str:
    """One row per person, one column per variant."""
    names = list(dict.fromkeys(table["variant"]))
    lines = []
    for person, own in table.groupby("person", sort=False):
        by_variant = {row["variant"]: row for _, row in own.iterrows()}
        cells = [
            f"{interval_text(by_variant[name], 'share', PERCENT)}; {_dprime(by_variant[name])}"
            if name in by_variant
            else MISSING
            for name in names
        ]
        lines.append([str(person), *cells])
    return _markdown(("person", *names), lines)


def _people_words(found: Perceived) -> list[str]:
    people = found.people
    out = people[~people["kept"]]
    who = ("person", "people")
    if people["simulated"].all():
        who = ("simulated observer", "simulated observers")
    answered = f"{_counted(len(people), *who)} answered"
    trials = f"{people['tests'].iloc[0]} trials of variants and {_catch(people)} catch trials each"
    names = ", ".join(
        f"{row['person']} ({row['clear_right']} of {row['clear']})" for _, row in out.iterrows()
    )
    left = f"{len(out)} left out" + (f": {names}" if names else "")
    return [f"{answered} {trials}; {left}. The rule, fixed beforehand: {RULE}."]


def _catch(people: pd.DataFrame) -> int:
    return int(people["clear"].iloc[0] + people["identical"].iloc[0])


def _variant_words(row: pd.Series[Any]) -> str:
    """What was shown of a variant."""
    right = f"right in {interval_text(row, 'share', PERCENT)} % of {row['trials']} answers"
    most = PERCENT.text(row["noticed_hi"])
    if row["verdict"] == SEEN:
        seen = f"noticed in {interval_text(row, 'noticed', PERCENT)} % of the trials"
        line = f"{row['variant']} is seen: {right} (p {_p(row['p'])}), d' {_dprime(row)}; {seen}."
        line += _beside(row)
    else:
        line = (
            f"{row['variant']} is not shown to be seen: {right} (p {_p(row['p'])}). "
            f"It was noticed in {most} % of the trials at most. "
            f"{_detectable(row)}{_beside(row)}"
        )
    if math.isfinite(row["mixed"]):
        line += f" The typical person on a typical pair: {interval_text(row, 'mixed', PERCENT)} %."
    return line


def _beside(row: pd.Series[Any]) -> str:
    """How a variant lies next to both kinds of catch trials."""
    if math.isnan(row["p_clear"]) or math.isnan(row["p_identical"]):
        return ""
    return (
        f" Right less often than with clear images: p {_p(row['p_clear'])}; more often than with "
        f"identical ones: p {_p(row['p_identical'])}."
    )


def _detectable(row: pd.Series[Any]) -> str:
    if math.isnan(row["detectable"]):
        return "So few answers can show nothing."
    share = PERCENT.text(row["detectable"])
    return f"A true share from {share} % on would have been found, with 80 % power."


def _foretold(row: pd.Series[Any]) -> list[str]:
    """How well a metric foretells what was seen."""
    lines = []
    if row["metric"] == CHANGED:
        both = [interval_text(row, f"noticed_{name}", PERCENT) for name in (CHANGED, "unchanged")]
        if MISSING not in both and "nan" not in "".join(both):
            lines.append(
                f"Changed images (LPIPS above the threshold) were noticed in {both[0]} % of the "
                f"trials, unchanged ones in {both[1]} %."
            )
        return lines
    name = SUMMARY[row["metric"]].label if row["metric"] in SUMMARY else row["metric"].upper()
    if math.isfinite(row.get("threshold", math.nan)):
        lines.append(f"Half notice a difference at {name} {_threshold(row)}.")
    if math.isfinite(row["foretells"]):
        share = PERCENT.text(row["foretells"])
        lines.append(
            f"A right answer has the greater {name} than a wrong one in {share} % of such pairs; "
            "50 % would foretell nothing."
        )
    return lines


def _threshold(row: pd.Series[Any]) -> str:
    lo, hi = row["threshold_lo"], row["threshold_hi"]
    ends = f"[{THRESHOLD.text(lo) if lo else 'open'},{_open(hi)}]"
    return f"{THRESHOLD.text(row['threshold'])} {ends}"


def _open(value: float) -> str:
    return THRESHOLD.text(value) if math.isfinite(value) else "open"


def _preference_words(found: Perceived) -> list[str]:
    lines = []
    for _, row in found.wins.iterrows():
        share = interval_text(row, "share", PERCENT)
        told = "clearly " if row["p"] < 0.05 else "not clearly "
        better = "more" if row["share"] > 0.5 else "less"
        lines.append(
            f"{row['variant']} fits the caption better than {row['against']} in {share} % of "
            f"{row['trials']} answers (p {_p(row['p'])}): {told}{better} often than half."
        )
    if len(found.scores) and found.scores["score"].isna().any():
        lines.append(
            "No Bradley-Terry score: some variants won or lost every trial, so a score has no end."
        )
    elif len(found.scores):
        listed = ", ".join(f"{name} {score}" for name, score in _score_rows(found.scores))
        lines.append(f"Bradley-Terry scores (log-odds against {found.reference}): {listed}.")
    return lines


def _cells(found: Perceived) -> tuple[tuple[str, ...], list[list[str]]]:
    """Headings and rows of the table."""
    if found.mode == "preference":
        head = ("variant", "against", "answers", "wins %", "p")
        return head, [
            [
                row["variant"],
                row["against"],
                str(row["trials"]),
                interval_text(row, "share", PERCENT),
                _p(row["p"]),
            ]
            for _, row in found.wins.iterrows()
        ]
    columns = ("variant", *(column.heading for column in PERCEPTION.values()), "p", "verdict")
    return columns, [_variant(row) for _, row in found.variants.iterrows()]


def _variant(row: pd.Series[Any]) -> list[str]:
    is_test = row["kind"] == TEST
    cells = [str(row["variant"]), str(row["trials"])]
    cells += [interval_text(row, name, PERCENT) for name in ("share", "noticed")]
    cells.append(_dprime(row) if is_test else MISSING)
    cells.append(_or_missing(row, "mixed"))
    cells.append(_or_missing(row, "detectable"))
    return [*cells, _p(row["p"]) if is_test else MISSING, str(row["verdict"]) or MISSING]


def _or_missing(row: pd.Series[Any], name: str) -> str:
    return MISSING if pd.isna(row[name]) else interval_text(row, name, PERCENT)


def _dprime(row: pd.Series[Any]) -> str:
    """d'; where all answers are right it has no upper end, and its lower one is said."""
    form = PERCEPTION["dprime"].format
    if math.isinf(row["dprime"]):
        return f"above {form.text(row['dprime_lo'])} (all right)"
    if math.isinf(row["dprime_hi"]):
        return f"{form.text(row['dprime'])} [{form.text(row['dprime_lo'])},open]"
    return interval_text(row, "dprime", form)


def _person(row: pd.Series[Any]) -> list[str]:
    name = f"{row['person']} (simulated)" if row["simulated"] else str(row["person"])
    return [
        name,
        "yes" if row["kept"] else "left out",
        f"{row['clear_right']} of {row['clear']}",
        f"{row['identical_right']} of {row['identical']}",
        PERCENT.text(row["chose_a"]),
        f"{row['response_s']:.1f}",
    ]


def _score_rows(scores: pd.DataFrame) -> list[list[str]]:
    return [
        [
            str(row["variant"]),
            SCORE.text(row["score"])
            if row["score"] == row["score_lo"]
            else interval_text(row, "score", SCORE),
        ]
        for _, row in scores.iterrows()
    ]


def _markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    return markdown_lines([names, ["---"] * len(names), *rows])


def _p(p: float) -> str:
    return f"< {TINY}" if p < TINY else f"{p:.3f}"


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
