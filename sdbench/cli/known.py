"""`sdbench known`: what a study's metrics say of images that are known to be bad."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdbench.cli.console import command, console
from sdbench.cli.options import Results

if TYPE_CHECKING:
    import pandas as pd

    from sdbench.records.store import Results as Recorded


@command
def known(results: Results) -> None:
    """Check the metrics: does each rate a black frame, noise and a wrong image as worse?

    A study without these answers gets them, if its images are stored. Another seed needs a study
    of several seeds. The same call again needs several repeats.
    """
    from sdbench.records.store import read
    from sdbench.report.tables import known_legend, known_text

    recorded = read(results)
    answers = recorded.known if len(recorded.known) else _added(recorded)
    console.print(known_text(answers))
    console.print(known_legend(answers), markup=False, highlight=False)


def _added(recorded: Recorded) -> pd.DataFrame:
    """The answers that a study's images give, written next to them."""
    from sdbench.records.files import require, write_table
    from sdbench.study.known import known_answers

    study = recorded.study
    source = str(recorded.folder / "study.json")
    require(study, {"metrics": (list,), "seeds": (list,)}, source=source)
    if not study["metrics"] or not len(recorded.images):
        raise ValueError(
            f"{recorded.folder} has no metric or no images, so no metric can be checked"
        )
    answers = known_answers(
        recorded.images,
        recorded.runs,
        recorded.folder,
        metrics=study["metrics"],
        seeds=study["seeds"],
        made={},
    )
    write_table(recorded.folder, "known", answers)
    return answers
