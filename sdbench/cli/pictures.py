"""The pictures of a study, next to its tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdbench.cli.console import console

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.results import Results


def draw(results: Results, summary: pd.DataFrame, place: str) -> dict[str, str]:
    """Write the pictures next to the tables; what each shows, by its file."""
    from sdbench.analysis.tables import step_profile
    from sdbench.records.remote import Remote
    from sdbench.report.figures import frontier_figure, image_grid, step_figure

    figures = {"steps.png": step_figure(step_profile(results))}
    meanings = {"steps.png": "time of every step, and how much guidance matters there"}
    if len(results.images):
        pairs = results.images[["prompt_id", "seed"]].drop_duplicates().head(8)
        shown = list(pairs.itertuples(index=False, name=None))
        figures["grid.png"] = image_grid(results, pairs=shown)
        what = "first, middle and last frames" if "frames" in results.images else "the images"
        meanings["grid.png"] = f"{what}: one row per prompt, one column per variant"
        figures["frontier.png"] = frontier_figure(summary)
        meanings["frontier.png"] = "time saved against distance to the baseline's image"

    for name, figure in figures.items():
        figure.savefig(results.folder / name)
    # A study at a URL was read from a copy of it.
    if remote := Remote.of(place):
        remote.put(results.folder, figures)
    return meanings


def print_files(place: str, pictures: dict[str, str]) -> None:
    """Say what is in the folder of a study."""
    tables = {f"{what}s.parquet": f"one row per {what}" for what in ("run", "step", "image")}
    tables["runs.parquet"] = "one row per call of the pipeline"
    console.print(f"\nTables and pictures are in {place}:", soft_wrap=True)
    for name, meaning in (tables | pictures).items():
        console.print(f"  {name:14} {meaning}", soft_wrap=True)
