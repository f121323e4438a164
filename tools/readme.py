"""Writes the README's tables from the registries and from `results/`: `python tools/readme.py`.

A test fails where they are stale.
"""

from __future__ import annotations

import re
from pathlib import Path

import sdbench
from sdbench.analysis.frontier import frontier
from sdbench.instruments.quality import METRICS
from sdbench.report.tables import frontier_markdown, markdown
from sdbench.variants.grammar import VARIANTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def default_study() -> str:
    """What `sdbench run` prints, as it was measured."""
    return markdown(sdbench.summarise(sdbench.read(ROOT / "results" / "mini-sd" / "default")))


MAIN = (
    "cfg", "last:20%", "last:50%", "random:50%@0", "interval:1.8-9.4", "adaptive:0.997",
    "cached:5,from=12", "compressed:20", "deepcache:3", "last:20%+deepcache:3", "lora",
    "lora+deepcache:3", "steps:38", "steps:25", "unguided",
)  # fmt: skip


def results() -> str:
    """The main variants of the study of methods, in time, LPIPS and alignment."""
    folder = ROOT / "results" / "mini-sd" / "methods"
    quality, timing = (
        sdbench.summarise(sdbench.read(folder / name)) for name in ("quality", "time")
    )
    table = frontier(quality, "lpips", higher_is_better=False, timing=timing)
    shown = table[table["variant"].isin(MAIN)].drop(columns=["flip", "ssim", "psnr"])
    return frontier_markdown(shown) + "\n"


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
