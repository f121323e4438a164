"""`sdbench models`: what can be measured by name."""

from __future__ import annotations

from sdbench.cli.console import command, console, print_table


@command
def models() -> None:
    """List the models that have a name, and the architectures for random weights."""
    from sdbench.models.architectures import ARCHITECTURES
    from sdbench.models.registry import MODELS

    rows = [(spec.name, f"{spec.guidance_scale:g}", spec.meaning) for spec in MODELS.values()]
    print_table(("model", "scale", "what it is"), rows)
    console.print("Any hub id (owner/name) or folder of a guided diffusers pipeline works too.\n")

    rows = [
        (spec.name, f"{spec.guidance_scale:g}", f"{spec.source}, {spec.side} px")
        for spec in ARCHITECTURES.values()
    ]
    print_table(("--random-weights", "scale", "architecture"), rows)
