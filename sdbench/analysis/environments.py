"""In what the machines, versions and settings of two runs differ.

What a record does not tell is unknown, which is no difference: it may be older than the entry.
"""

import json
from collections.abc import Mapping
from typing import Any

from sdbench.records.environment import YOUNGER_PACKAGES
from sdbench.records.store import Results

OWN = {"commit", "packages.sdbench"}
"""What may differ, since sdbench itself is compared."""
MEASURED = "peaks."
"""Beginning of entries that no two measurements have alike."""
PARTIAL = ("packages", "variables", "components")
"""Entries whose own entries are there only where there is something to tell."""

Env = Mapping[str, Any]
Side = list[tuple[Env, Env]]
"""The environments of a run, each with its flat form."""


def differing_environment(baseline: Results, current: Results) -> list[str]:
    """Entries in which the machines, versions and settings of two runs differ.

    What is compared is sdbench itself, so its own version and commit may differ.

    Returns:
        Names such as `cpu`, `packages.torch` and `settings.inductor.freezing`, in order. An entry
        of which one of the records does not tell is not among them.
    """
    first, second = _side(baseline), _side(current)
    told = {name: (_values(name, first), _values(name, second)) for name in _names(first, second)}
    return sorted(
        name for name, (one, other) in told.items() if one and other and len({*one, *other}) > 1
    )


def differing_within(results: Results) -> list[str]:
    """The same of the environments of one run, as of a study that went on elsewhere."""
    return differing_environment(results, results)


def unrecorded_environment(baseline: Results, current: Results) -> list[str]:
    """Entries of which the record of one run tells, and that of the other does not.

    It is older, or the library was not there to be asked.

    Returns:
        Their first words, such as `settings`, or two where it tells of others: `settings.governor`.
    """
    first, second = _side(baseline), _side(current)
    names = set()
    for name in _names(first, second):
        one, other = len(_values(name, first)), len(_values(name, second))
        if (one and other < len(second)) or (other and one < len(first)):
            names.add(".".join(name.split(".")[:2]))

    groups = {name.partition(".")[0] for name in names}
    absent = {group for group in groups for env, _ in (*first, *second) if group not in env}
    return sorted({name for name in names if name.partition(".")[0] not in absent} | absent)


def _side(results: Results) -> Side:
    return [(env, _flat(env)) for env in results.environment.values()]


def _names(first: Side, second: Side) -> set[str]:
    names = {name for _, flat in (*first, *second) for name in flat} - OWN
    return {name for name in names if not name.startswith(MEASURED)}


def _values(name: str, side: Side) -> list[str]:
    """An entry in the environments that tell of it, as text: it may be a list."""
    return [
        json.dumps(flat.get(name), sort_keys=True)
        for env, flat in side
        if _is_told(name, env, flat)
    ]


def _is_told(name: str, env: Env, flat: Env) -> bool:
    """Whether a record says something of an entry; that it is not there may say it, too."""
    group, _, rest = name.partition(".")
    if group == "settings":
        unknown = f"{group}.{rest.partition('.')[0]}"  # of a library that could not be asked
        return name in flat and (name != unknown or flat[name] is not None)
    if group == "packages" and rest in YOUNGER_PACKAGES:
        return "settings" in env  # which is as young
    return name == "uncounted" or (group if group in PARTIAL else name) in env


def _flat(env: Env, within: str = "") -> dict[str, Any]:
    """An environment with `packages.torch` for its entries of entries."""
    flat: dict[str, Any] = {}
    for key, value in env.items():
        name = f"{within}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat
