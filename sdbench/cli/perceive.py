"""`sdbench perceive`: a blind test as a page, and what its answers say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdbench.cli.console import command, console, print_whole
from sdbench.cli.options import Variants, written
from sdbench.cli.values import positive, variant_names

if TYPE_CHECKING:
    from sdbench.analysis.perception.perceive import Perceived

_Places = Annotated[
    list[Path],
    typer.Argument(help="with --html: the study's folder; else files of answers, or their folder"),
]
_shown = {"rich_help_panel": "What is shown"}
_Mode = Annotated[
    str,
    typer.Option(help="what is asked: reference, abx or preference", **_shown),
]
_Trials = Annotated[
    int, typer.Option(help="trials of variants; catch trials come on top", **_shown)
]
_Seed = Annotated[int, typer.Option(help="seed of trials, order and sides", **_shown)]
_Limit = Annotated[
    str | None,
    typer.Option(help="seconds for which images are shown; no limit by default", **_shown),
]
_Scale = Annotated[
    int | None,
    typer.Option(help="pixels of the screen for a pixel; by default as many as fit", **_shown),
]
_Html = Annotated[Path | None, written(help="file for the page of the test")]
_Study = Annotated[Path | None, written(help="the study that the answered page was made from")]
_Out = Annotated[Path | None, written(help="folder for the table, figures and summary")]


@command
def perceive(
    places: _Places,
    variants: Variants = None,
    mode: _Mode = "reference",
    trials: _Trials = 48,
    seed: _Seed = 0,
    limit: _Limit = None,
    scale: _Scale = None,
    html: _Html = None,
    study: _Study = None,
    out: _Out = None,
) -> None:
    """Test with people whether a variant can be seen: write the page, then judge its answers.

    Write a page: sdbench perceive STUDY --variants last:20%,lora --html test.html. Judge what
    people answered: sdbench perceive answers/*.json --study STUDY.
    """
    if (html is None) == (study is None):
        raise ValueError("give --html to write a page, or --study to judge answers")
    if html is None:
        assert study is not None
        _judge(places, study, out)
        return

    from sdbench.analysis.perception.settings import Settings
    from sdbench.records.store import read
    from sdbench.report.trial_page import trial_page

    if len(places) != 1:
        raise ValueError(f"a page is of one study, not of {len(places)}")
    if variants is None:
        raise ValueError("--html needs --variants: name what is tested")
    limit_s = None if limit is None else positive("--limit", limit)
    settings = Settings(mode, tuple(variant_names(variants)), trials, seed, limit_s, scale)
    html.write_text(trial_page(read(places[0]), settings), encoding="utf-8")
    console.print(f"{html}: {html.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


def _judge(places: list[Path], study: Path, out: Path | None) -> None:
    """Print what answers say, and write it where a folder is named."""
    from sdbench.analysis.perception.perceive import perceive as judged
    from sdbench.report.tables import perception_legend, perception_table, perception_words

    found = judged(_files(places), study)
    for line in perception_words(found):
        console.print(line, markup=False, highlight=False)
    print_whole(perception_table(found))
    console.print(perception_legend(found), markup=False, highlight=False)
    if out is not None:
        _write(found, out)


def _files(places: list[Path]) -> list[Path]:
    """Files of answers; a folder stands for those in it."""
    files = []
    for place in places:
        within = sorted(place.glob("*.json")) if place.is_dir() else [place]
        if not within:
            raise ValueError(f"{place} holds no file of answers")
        files += within
    return files


def _write(found: Perceived, out: Path) -> None:
    from sdbench.records.files import write_table
    from sdbench.report.figures import perception_figure, psychometric_figure
    from sdbench.report.tables import perception_markdown

    out.mkdir(parents=True, exist_ok=True)
    write_table(out, "answers", found.answers)
    (out / "perceive.md").write_text(perception_markdown(found) + "\n", encoding="utf-8")
    if found.people["kept"].any():
        perception_figure(found).savefig(out / "perceive.png")
    if found.curves:
        psychometric_figure(found).savefig(out / "psychometric.png")
    console.print(f"\nThe table answers.parquet, figures and perceive.md are in {out}")
