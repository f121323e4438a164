"""Tests what README, results and notebooks say of two variants: `python tools/claims.py`.

`results/claims.toml` holds the claims. What their tests find is written to `results/claims.md`; a
test fails where that is stale, or where a claim's words are not in the file that it names.
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import sdbench
from sdbench.analysis.contrast import LEVEL, Contrast, TimeContrast, contrast, time_contrast
from sdbench.analysis.shared import image_differences, shared_pairs
from sdbench.analysis.timing import holm
from sdbench.records.files import read_json, read_table
from sdbench.records.store import Results

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
WRITTEN = RESULTS / "claims.md"
TIMES = {"loop": "denoise_s", "call": "latency_s"}
SAME = "no clear difference"
EQUIVALENT = "equivalent"
PLAIN = ("nearer", "farther", "better", "worse", "faster", "slower")
BORNE_OUT = "borne out"
NOT_CLEAR = ("undecided", "identical")
HEAD = """# What is said of two variants, and what tests say

Each sentence of the README, the results and the notebooks that compares two variants, with the
paired tests that have to bear it out, on the same captions and seeds: {count} in all. Written by
`python tools/claims.py` from `claims.toml`.

A difference counts where the mean and most pairs agree, in every test of the claim, at 5 % and
corrected by Holm for the claims of the same file. "In most images" is said of the images alone, by
the 95 % interval of their share, and "by the mean alone" of the mean. "No clear difference" is a
test that shows none (of many, some will by chance), and "equivalent" one that shows that the mean
difference lies within the margin.
"""


@dataclass(frozen=True)
class Test:
    """One comparison of a claim.

    Args:
        study: folder below the results.
        first: variant.
        second: variant.
        other: the folder of the second.
    """

    study: str
    first: str
    second: str
    other: str


@dataclass(frozen=True)
class Claim:
    """What a file says, and what has to hold.

    Args:
        file: below the root.
        says: its words.
        metric: a column of the images, or a key of `TIMES`.
        verdict: that all of the tests must have.
        tests: comparisons.
        margin: of equivalence.
        judged: unguided steps, where the study is a plan's table of controls.
        some: on the pairs that both studies have.
    """

    file: str
    says: str
    metric: str
    verdict: str
    tests: tuple[Test, ...]
    margin: float | None
    judged: int | None
    some: bool


class Outcome(NamedTuple):
    """What the tests of a claim found.

    Attributes:
        found: of each test.
        sentences: likewise.
        p: the largest of the tests', corrected for the claims of the same file.
    """

    found: list[Contrast | TimeContrast]
    sentences: list[str]
    p: float


def claims(text: str) -> list[Claim]:
    """The claims of a file."""
    return [_claim(entry) for entry in tomllib.loads(text)["claim"]]


def _claim(entry: dict[str, Any]) -> Claim:
    # What is a list has one test per place, what is not stands at every place.
    named = [entry["study"], entry["first"], entry["second"], entry.get("with", entry["study"])]
    length = max(len(one) if isinstance(one, list) else 1 for one in named)
    columns = [one if isinstance(one, list) else [one] * length for one in named]
    return Claim(
        file=entry["file"],
        says=entry["says"],
        metric=entry["metric"],
        verdict=entry["verdict"],
        tests=tuple(Test(*row) for row in zip(*columns, strict=True)),
        margin=entry.get("margin"),
        judged=entry.get("judged"),
        some=entry.get("some", False),
    )


def outcomes(of_file: list[Claim]) -> list[Outcome]:
    """The tests of every claim of a file.

    A claim of differences holds where all of its tests show theirs, so the largest p-value counts.
    These claims are corrected for by Holm.
    """
    told = [[_told(claim, test) for test in claim.tests] for claim in of_file]
    corrected = holm(
        {
            (claim.file, str(place)): max(found.p for found, _ in tests)
            for place, (claim, tests) in enumerate(zip(of_file, told, strict=True))
            if claim.verdict in PLAIN
        }
    )
    return [
        Outcome(
            [found for found, _ in tests],
            [sentence for _, sentence in tests],
            corrected.get((claim.file, str(place)), math.nan),
        )
        for place, (claim, tests) in enumerate(zip(of_file, told, strict=True))
    ]


def borne_out(claim: Claim, outcome: Outcome) -> bool:
    """Whether every test of a claim says what the claim says."""
    if claim.verdict == EQUIVALENT:
        return all(isinstance(found, Contrast) and found.within for found in outcome.found)
    if claim.verdict == SAME:
        return all(found.verdict in NOT_CLEAR for found in outcome.found)
    words = [found.verdict for found in outcome.found]
    if claim.verdict in PLAIN:
        return set(words) == {claim.verdict} and outcome.p < LEVEL
    # What holds in the mean and in most images holds in each of the two.
    return all(word == claim.verdict.split()[0] or word.startswith(claim.verdict) for word in words)


def _told(claim: Claim, test: Test) -> tuple[Contrast | TimeContrast, str]:
    first = _study(test.study, claim.judged)
    if claim.metric in TIMES:
        time = time_contrast(first, test.first, test.second, TIMES[claim.metric])
        return time, time.sentence(test.first, test.second)
    second = _study(test.other, claim.judged)
    values, left_out = shared_pairs(
        (first, test.first), (second, test.second), claim.metric, some=claim.some
    )
    images = image_differences((first, test.first), (second, test.second), claim.metric)
    pairs = contrast(values, claim.metric, margin=claim.margin, images=images)
    told = pairs.sentence(test.first, test.second)
    return pairs, f"{told} Shared: {left_out}." if left_out else told


@cache
def _study(folder: str, judged: int | None) -> Results:
    if judged is None:
        return sdbench.read(RESULTS / folder)

    # The controls of a plan are a table of images alone.
    images = read_table(RESULTS / folder, "judged")
    images = images[images["unguided"] == judged]
    units = images.drop_duplicates("unit")[["unit", "variant"]]
    runs = units.assign(phase="measured", status="ok")
    study = read_json(RESULTS / folder / "study.json")["held_out"]
    return Results(RESULTS / folder, runs, pd.DataFrame(), images, environment={}, study=study)


def text_of(file: str) -> str:
    """The words of a file: of a notebook, those of its texts and of its printed answers."""
    path = ROOT / file
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        parts = [cell["source"] for cell in cells if cell["cell_type"] == "markdown"]
        parts += [output.get("data", {}).get("text/markdown", []) for output in outputs]
        text = "\n".join("".join(part) for part in parts)
    return " ".join(text.split())


def section(file: str, of_file: list[Claim]) -> str:
    """What `claims.md` should hold of a file."""
    lines = [f"## {file}\n"]
    for claim, outcome in zip(of_file, outcomes(of_file), strict=True):
        word = BORNE_OUT if borne_out(claim, outcome) else f"**not {BORNE_OUT}**"
        margin = "" if claim.margin is None else f" within {claim.margin:g}"
        p = "" if math.isnan(outcome.p) else f", corrected p {outcome.p:.2g}"
        lines.append(f'- "{claim.says}" ({claim.verdict}{margin}{p}): {word}')
        for test, sentence in zip(claim.tests, outcome.sentences, strict=True):
            lines.append(f"  - {test.study}: {sentence}")
    return "\n".join([*lines, ""])


def written(known: list[Claim]) -> str:
    """What `claims.md` should hold."""
    files = groupby(known, key=lambda claim: claim.file)
    sections = [section(file, list(of_file)) for file, of_file in files]
    yes = sum(text.count(f"): {BORNE_OUT}\n") for text in sections)
    count = f"Of {len(known)} claims {yes} are borne out, {len(known) - yes} are not.\n"
    head = HEAD.format(count=sum(len(claim.tests) for claim in known))
    return "\n".join([head, count, *sections])


if __name__ == "__main__":
    WRITTEN.write_text(written(claims((RESULTS / "claims.toml").read_text("utf-8"))), "utf-8")
