"""`sdbench env`: the record of the machine and the versions that goes with every study."""

from __future__ import annotations

from sdbench.cli.console import command, print_table


@command
def env() -> None:
    """Say what a measurement here would run on."""
    import torch  # noqa: F401 - so that the record names its threads and GPUs

    from sdbench.records.environment import environment

    print_table(("what", "value"), [(key, _text(value)) for key, value in environment().items()])


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)
