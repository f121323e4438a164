"""`sdbench variants`: what a pipeline can be varied by."""

from __future__ import annotations

from sdbench.cli.console import command, print_table


@command
def variants() -> None:
    """List the variants: how each is written, and what it does."""
    from sdbench.variants.grammar import VARIANTS

    # One way of writing a variant a line, so that none is cut.
    rows = [
        (kind.grammar.replace("|", "\n"), kind.meaning, kind.source) for kind in VARIANTS.values()
    ]
    print_table(("variant", "what it does", "source"), rows)
