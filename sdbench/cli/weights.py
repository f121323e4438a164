"""`sdbench weights`: where LPIPS has its network from."""

from __future__ import annotations

from sdbench.cli.console import command, print_table


@command
def weights() -> None:
    """Find LPIPS's network, or download it once, and print where it came from."""
    from sdbench.instruments.weights import describe

    print_table(("what", "value"), list(describe().items()))
