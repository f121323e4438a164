"""What a command says where it compares two runs that were not made under the same conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdbench.cli.console import console

if TYPE_CHECKING:
    from sdbench.records.store import Results


TIMES = "absolute times do not compare"
IMAGES = "images may differ by that, too"


def print_differing_within(results: Results) -> None:
    """Print in what the parts of one study differ, as of one that went on elsewhere."""
    from sdbench.analysis.environments import differing_within

    if keys := ", ".join(differing_within(results)):
        console.print(
            f"Parts of this study ran on another machine, or with other versions or settings "
            f"({keys}): {TIMES}.",
            highlight=False,
        )


def print_differing(before: Results, after: Results, *, so: str = TIMES) -> None:
    """Print in what two runs differ, and of what only one of them tells; nothing if in nothing.

    Args:
        before: one run.
        after: the other.
        so: what follows from a difference.
    """
    from sdbench.analysis.environments import differing_environment, unrecorded_environment

    if keys := ", ".join(differing_environment(before, after)):
        console.print(f"Another machine, or other versions or settings ({keys}): {so}.")
    if keys := ", ".join(unrecorded_environment(before, after)):
        console.print(f"Only one of the runs has on record: {keys}.")
