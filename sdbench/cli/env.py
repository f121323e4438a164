"""`sdbench env`: what a measurement here would run on, and what is missing for what."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from sdbench.cli.console import command, print_table


@command
def env() -> None:
    """Print the machine, the versions, where LPIPS's network is, and which extras are missing."""
    import torch  # noqa: F401 - so that the record names its threads and GPUs
    from diffusers.models import attention_dispatch  # noqa: F401 - the same, its backend

    from sdbench.records.environment import environment

    told = environment()
    settings = told.pop("settings")
    rows = [(key, _text(value)) for key, value in told.items()]
    rows += [
        (f"setting {name}", _text(value)) for name, value in settings.items() if value is not None
    ]
    free = shutil.disk_usage(Path.cwd()).free
    rows += [("disk", f"{free / 1e9:.0f} GB free here"), ("LPIPS's network", _network())]
    rows.append(("energy", _energy()))
    print_table(("what", "value"), [*rows, *_extras()])


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def _network() -> str:
    """Where LPIPS would read its network from, without fetching it."""
    from sdbench.instruments.weights import local_file

    file = local_file()
    return str(file) if file else "not on this machine; `sdbench weights` fetches it"


def _energy() -> str:
    """The counter that a study would read."""
    import torch

    from sdbench.instruments.energy import counter_for

    counter = counter_for(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return "no counter that can be read" if counter is None else f"counter {counter.source}"


def _extras() -> Iterator[tuple[str, str]]:
    """For each extra that it is complete, or what is missing and how it is installed."""
    missing: dict[str, list[str]] = defaultdict(list)
    for text in requires("sdbench") or ():
        name = re.match(r"[\w.-]+", text)
        extra = re.search(r"""extra == ["']([\w-]+)["']""", text)
        if name and extra and name[0] != "sdbench":
            missing[extra[1]] += [] if _is_installed(name[0]) else [name[0]]
    for wanted, names in sorted(missing.items()):
        install = f'missing {", ".join(names)}: pip install "sdbench[{wanted}]"'
        yield f"extra {wanted}", install if names else "complete"


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
