"""What a command says where it compares two runs that were not made under the same conditions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sdbench.cli.console import console

if TYPE_CHECKING:
    from sdbench.records.store import Results


def print_differing(before: Results, after: Results) -> None:
    """Print in what two runs differ, and of what only one of them tells; nothing if in nothing."""
    from sdbench.analysis.environments import differing_environment, unrecorded_environment

    if keys := ", ".join(differing_environment(before, after)):
        console.print(
            f"Another machine, or other versions or settings ({keys}): absolute times do not "
            "compare."
        )
    if keys := ", ".join(unrecorded_environment(before, after)):
        console.print(f"Only one of the runs has on record: {keys}.")
