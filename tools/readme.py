"""Writes the README's tables from the registries and from `results/`: `python tools/readme.py`.

A test fails where they are stale.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

import sdbench
from sdbench.analysis.dominance import EFFICIENT, OPEN
from sdbench.analysis.frontier import frontier
from sdbench.instruments.quality import METRICS
from sdbench.report.tables import FRONTIER_LEGEND, frontier_markdown, markdown
from sdbench.variants.grammar import VARIANTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


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


def written(text: str) -> str:
    """The README with every block as it should be.

    Raises:
        ValueError: a block has no place in it.
    """
    for name, make in BLOCKS.items():
        begin, end = f"<!-- {name}, by tools/readme.py -->\n", "<!-- end -->"
        if begin not in text:
            raise ValueError(f"README.md has no place for '{name}'")
        text = re.sub(
            f"(?<={re.escape(begin)}).*?(?={end})",
            lambda _, make=make: make(),
            text,
            count=1,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
