"""`sdbench variants`: what a pipeline can be varied by."""

from __future__ import annotations

from sdbench.cli.console import command, print_table


@command
def variants() -> None:
    """List the variant grammar."""
    from sdbench.variants.grammar import VARIANTS

    rows = [(kind.grammar, kind.meaning, kind.source) for kind in VARIANTS.values()]
    print_table(("variant", "what it does", "source"), rows)
