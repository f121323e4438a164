"""`sdbench distances`: the images of a variant as a distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdbench.cli.console import command, console
from sdbench.cli.options import compared

_Results = Annotated[Path, typer.Argument(help="folder of a study that kept its images")]
_Features = Annotated[str, compared(help="reader (for mini-sd) or inception (FID and KID)")]
_Reference = Annotated[
    Path | None, compared(help="folder of reference images; the reader's are drawn scenes")
]


@command
def distances(
    results: _Results, features: _Features = "reader", reference: _Reference = None
) -> None:
    """Compare the set of every variant's images with a set of reference images."""
    from sdbench.experiments.distances import WARNING
    from sdbench.experiments.distances import distances as measured
    from sdbench.records.store import read
    from sdbench.report.tables import distances_text

    table = measured(read(results), features=features, reference=reference)
    console.print(distances_text(table))
    console.print(WARNING, markup=False, highlight=False)
