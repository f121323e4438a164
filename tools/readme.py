"""Writes the tables of the README and of the pages in `results/`: `python tools/readme.py`.

They come from the registries and the stored studies. A test fails where they are stale.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

import sdbench
from sdbench.analysis.dominance import EFFICIENT, OPEN
from sdbench.analysis.frontier import frontier
from sdbench.analysis.plans import plan_table
from sdbench.instruments.quality import METRICS
from sdbench.records.columns import Format
from sdbench.records.files import read_table
from sdbench.records.names import PLANNED
from sdbench.report.tables import FRONTIER_LEGEND, frontier_markdown, markdown
from sdbench.report.tables.cells import interval_text, markdown_lines
from sdbench.variants.grammar import VARIANTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MINI_SD = ROOT / "results" / "mini-sd"


def default_study() -> str:
    """What `sdbench run` prints, as it was measured."""
    return markdown(sdbench.summarise(sdbench.read(ROOT / "results" / "mini-sd" / "default")))


PAPERS = (
    "cfg", "unguided", "last:20%", "last:50%", "interval:1.8-9.4", "adaptive:0.997",
    "cached:5,from=12", "compressed:20", "deepcache:3", "lora", "steps:25",
)  # fmt: skip
"""What papers propose, and the controls of the same work: shown whatever becomes of them."""
ROWS = 15


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a frontier that the README has room for.

    Every variant that was shown to be efficient, the papers' own, and then the fastest of those
    that were not told apart.

    Raises:
        ValueError: what must be shown does not fit.
    """
    must = (table["verdict"] == EFFICIENT) | table["variant"].isin(PAPERS)
    if must.sum() > ROWS:
        raise ValueError(f"{must.sum()} variants must be in the README's table; it has {ROWS} rows")
    may = table.index[~must & (table["verdict"] == OPEN)][: ROWS - must.sum()]
    return table[must | table.index.isin(may)]


def results() -> str:
    """The main variants of the study of methods, in time, LPIPS and alignment."""
    folder = ROOT / "results" / "mini-sd" / "methods"
    quality, timing = (sdbench.read(folder / name) for name in ("quality", "time"))
    table = frontier(quality, "lpips", higher_is_better=False, timing=timing)
    others = [name for name in table if name.startswith(("flip", "ssim", "psnr"))]
    return f"{frontier_markdown(shown(table).drop(columns=others))}\n\n{FRONTIER_LEGEND}\n"


def variants() -> str:
    """Every entry of the grammar."""
    lines = ["| variant | what it does |", "|---|---|"]
    for kind in VARIANTS.values():
        examples = ", ".join(f"`{example}`" for example in kind.grammar.split("|"))
        lines.append(f"| {examples} | {kind.meaning}{f' ({kind.source})' if kind.source else ''} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric."""
    lines = ["| metric | what it is |", "|---|---|"]
    lines += [
        f"| `{name}{f':{metric.option}' if metric.option else ''}` | {metric.meaning} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(lines) + "\n"


BLOCKS = {
    "default study": default_study,
    "results": results,
    "variants": variants,
    "metrics": metrics,
}


def filled(text: str, blocks: Mapping[str, Callable[[], str]], *, file: str) -> str:
    """A text with every block as it should be.

    Raises:
        ValueError: a block has no place in it.
    """
    for name, make in blocks.items():
        begin, end = f"<!-- {name}, by tools/readme.py -->\n", "<!-- end -->"
        if begin not in text:
            raise ValueError(f"{file} has no place for '{name}'")
        text = re.sub(
            f"(?<={re.escape(begin)}).*?(?={end})",
            lambda _, make=make: make(),
            text,
            count=1,
            flags=re.DOTALL,
        )
    return text


def written(text: str) -> str:
    """The README with every block as it should be.

    Raises:
        ValueError: a block has no place in it.
    """
    return filled(text, BLOCKS, file="README.md")


def of_study(
    *folders: str, timing: str | None = None, variants: Sequence[str] | None = None
) -> str:
    """What studies of the same images say of quality, each variant once, and times of another.

    Args:
        folders: of the studies, below `results/mini-sd`; of a variant in several the first counts.
        timing: folder of a study of time.
        variants: the rows; all when not given.
    """
    summaries = [sdbench.summarise(sdbench.read(MINI_SD / folder)) for folder in folders]
    table = pd.concat(summaries).drop_duplicates("variant")
    table = table.drop(columns=_timed(table))
    if variants is not None:
        table = table.set_index("variant").loc[list(variants)].reset_index()
    if timing is not None:
        times = sdbench.summarise(sdbench.read(MINI_SD / timing)).set_index("variant")
        table = table.join(times[list(SAVED)], on="variant")
    return markdown(table)


STUDENTS = (
    "cfg", "unguided", "lora", "lora+deepcache:3", "steps:25",
    "plan:results/mini-sd/plan-25/plan-25.json",
)  # fmt: skip
SAVED = ("saving", "saving_lo", "saving_hi", "ideal_saving", "predicted_saving", "disturbance")
TIMED = ("latency", "saving", "denoise", "predicted", "ideal", "peak", "disturbance")


def _timed(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name.startswith(TIMED)]


def of_plan(folder: str) -> str:
    """A plan's controls, pair by pair."""
    judged = read_table(MINI_SD / folder, "judged")
    timing = sdbench.summarise(sdbench.read(MINI_SD / folder / "timing"))
    table = plan_table(judged, "lpips", higher_is_better=False, timing=timing)
    head = [
        "unguided",
        "variant",
        "NFE",
        "LPIPS",
        "median",
        "changed %",
        "plan nearer in %",
        "verdict",
    ]
    lines = [head, ["---:", "---", *["---:"] * 5, "---"]]
    for _, row in table.iterrows():
        figures = [
            interval_text(row, name, form)
            for name, form in (
                ("lpips", Format(".4f")),
                ("lpips_median", Format(".4f")),
                ("lpips_changed", PERCENT_WHOLE),
                ("plan_better", PERCENT_WHOLE),
            )
        ]
        if row["variant"] == PLANNED:
            figures[-1] = "-"
        lines.append(
            [str(row["unguided"]), row["variant"], f"{row['nfe']:g}", *figures, row["verdict"]]
        )
    return markdown_lines(lines) + "\n"


PERCENT_WHOLE = Format(".0f", "%", 100)


def methods() -> str:
    """Every method, fastest first, in time and LPIPS."""
    folder = MINI_SD / "methods"
    quality, timing = (sdbench.read(folder / name) for name in ("quality", "time"))
    table = frontier(quality, "lpips", higher_is_better=False, timing=timing)
    return f"{frontier_markdown(table)}\n\n{FRONTIER_LEGEND}\n"


STUDIES: dict[str, dict[str, Callable[[], str]]] = {
    "methods": {
        "methods": methods,
        "random": partial(of_study, "methods/random"),
    },
    "selective": {
        "schedules": partial(of_study, "selective/quality", timing="selective/time"),
        "controls": partial(of_study, "selective/quality-2", timing="selective/time-2"),
    },
    "students": {
        "students": partial(
            of_study,
            "methods/quality",
            "students/quality",
            timing="students/time",
            variants=STUDENTS,
        )
    },
    "ranks": {"ranks": partial(of_study, "ranks")},
    "distill-full": {"full": partial(of_study, "distill-full/quality")},
    "plan": {"plan": partial(of_plan, "plan"), "controls": partial(of_study, "plan/controls")},
    "plan-25": {
        "plan": partial(of_plan, "plan-25"),
        "controls": partial(of_study, "plan-25/controls"),
    },
    "distances": {"alignment": partial(of_study, "distances", "distances/controls")},
    "steps": {"steps": partial(of_study, "steps")},
}
"""Tables of the pages of `results/mini-sd`, by folder."""

if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    for folder, blocks in STUDIES.items():
        page = MINI_SD / folder / "README.md"
        text = filled(page.read_text(encoding="utf-8"), blocks, file=str(page))
        page.write_text(text, encoding="utf-8")
