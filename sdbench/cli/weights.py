"""`sdbench weights`: where LPIPS has its network from."""

from __future__ import annotations

from sdbench.cli.console import command, print_table


@command
def weights() -> None:
    """Find the network of LPIPS, fetch it where it is missing, and say where it came from."""
    from sdbench.instruments.weights import describe

    print_table(("what", "value"), list(describe().items()))
