"""The support table: which pipelines of diffusers a guidance schedule works on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from tools.pipelines.outcomes import NOT_BUILT, ORDER, WITHOUT, WORKS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "results" / "pipelines"
COLUMNS = [
    "class",
    "family",
    "outcome",
    "batch",
    "calls",
    "order",
    "reason",
    "diffusers",
]
HEAD = """# Pipelines of diffusers under a guidance schedule

Every pipeline that diffusers {version} exports, built small with random weights and run guided as
it is, only watched, and on three schedules; then without sdbench again. Written by `nox -s
pipelines`; `pipelines.csv` holds the same.

**works**: on every schedule the steps cost what they should, and the latents are those of a call in
which both predictions ran and the conditional one then stood for both. **refused**: a `ValueError`
before the first evaluation of the denoiser. **without halves**: the class does not guide by a
conditional and an unconditional prediction, so there is nothing to drop. A class with several
outcomes has the gravest. *Calls* are those of the denoiser in a guided step.
"""


def frame(rows: Iterable[Mapping[str, Any]], version: str) -> pd.DataFrame:
    """One line per class and number of images; of a class that did not run, one.

    Args:
        rows: of the runner.
        version: of diffusers.
    """
    lines = []
    for row in rows:
        for own in row["batches"] or [{}]:
            line = {**row, "batch": 0, "calls": 0, "order": "", **own, "class": row["name"]}
            lines.append(line | {"diffusers": version})

    table = pd.DataFrame(lines, columns=COLUMNS).sort_values(["family", "class", "batch"])
    numbers = {"batch": int, "calls": int}
    return (
        table.fillna({"calls": 0, "order": "", "reason": ""}).astype(numbers).reset_index(drop=True)
    )


def by_class(table: pd.DataFrame) -> pd.DataFrame:
    """One line per class: the gravest of its outcomes."""
    rank = {outcome: place for place, outcome in enumerate(ORDER)}
    order = table["outcome"].map(rank).sort_values(ascending=False, kind="stable").index
    return table.loc[order].drop_duplicates("class").sort_index()


def kind_of(table: pd.DataFrame) -> pd.Series:
    """How a class guides: "two calls, conditional first"."""
    words = table["calls"].map({0: "", 1: "one call", 2: "two calls"})
    words = words.fillna(table["calls"].astype(str) + " calls")
    return (words + ", " + table["order"]).where(table["calls"] > 0, "not known")


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """Classes by kind and outcome, with their sums."""
    classes = by_class(table)
    crossed = pd.crosstab(kind_of(classes), classes["outcome"], margins=True, margins_name="all")
    crossed = crossed[[name for name in (*ORDER, "all") if name in crossed]]
    crossed.index.name = "guides by"
    return crossed.reset_index()


def summary(table: pd.DataFrame) -> str:
    """How many of the classes that guide by halves work."""
    outcomes = by_class(table)["outcome"]
    guiding = outcomes[~outcomes.isin([WITHOUT, NOT_BUILT])]
    count, share = (guiding == WORKS).sum(), (guiding == WORKS).mean()
    unbuilt = (outcomes == NOT_BUILT).sum()
    return (
        f"Of {len(guiding)} classes that guide by halves, {count} work ({share:.1%}); "
        f"{unbuilt} more could not be built.\n"
    )


def markdown(table: pd.DataFrame) -> str:
    """The page of a table."""
    head = HEAD.format(version=table["diffusers"].iloc[0])
    parts = [head, summary(table), _lines(counts(table))]
    classes = by_class(table)
    for name, own in classes.groupby(classes["family"].astype(str), sort=True):
        shown = own.assign(guides=kind_of(own).replace("not known", ""))
        shown = shown[["class", "outcome", "guides", "reason"]]
        parts.append(f"## {name!s}\n\n{_lines(shown)}")
    return "\n".join(parts)


def _lines(table: pd.DataFrame) -> str:
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def write(table: pd.DataFrame, folder: Path = FOLDER) -> None:
    """Keep a table and its page."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "pipelines.csv", index=False)
    (folder / "README.md").write_text(markdown(table), encoding="utf-8")


def read(folder: Path = FOLDER) -> pd.DataFrame:
    """A table that was kept."""
    texts = dict.fromkeys(("class", "family", "outcome", "order", "reason", "diffusers"), str)
    return pd.read_csv(folder / "pipelines.csv", dtype=texts, keep_default_na=False)
