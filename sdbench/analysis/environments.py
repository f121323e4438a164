"""In what the machines, versions and settings of two runs differ.

What a record does not tell is unknown, which is no difference: it may be older than the entry.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sdbench.records.environment import YOUNGER_PACKAGES
from sdbench.records.store import Results

OWN = {"commit", "packages.sdbench"}
"""What may differ, since sdbench itself is compared."""
PARTIAL = ("packages", "variables", "components")
"""Entries whose own entries are there only where there is something to tell."""

Env = Mapping[str, Any]


def differing_environment(baseline: Results, current: Results) -> list[str]:
    """Entries in which the machines, versions and settings of two runs differ.

    What is compared is sdbench itself, so its own version and commit may differ.

    Returns:
        Names such as `cpu`, `packages.torch` and `settings.inductor.freezing`, in order. An entry
        of which one of the records does not tell is not among them.
    """
    return _differing(baseline.environment, current.environment)


def differing_within(results: Results) -> list[str]:
    """The same of the environments of one run, as of a study that went on elsewhere."""
    return _differing(results.environment, results.environment)


def unrecorded_environment(baseline: Results, current: Results) -> list[str]:
    """Entries of which the record of one run tells, and that of the other does not.

    It is older, or the library was not there to be asked.

    Returns:
        Their first words, such as `settings`, or two where it tells of others: `settings.governor`.
    """
    names = {
        name if name.count(".") < 2 else ".".join(name.split(".")[:2])
        for one, other in _pairs(baseline.environment, current.environment)
        for name in _flat(one) | _flat(other)
        if _is_told(name, one) != _is_told(name, other)
    }
    groups = {
        group
        for results in (baseline, current)
        for env in results.environment.values()
        for group in {name.partition(".")[0] for name in names} - env.keys()
    }
    return sorted({name for name in names if name.partition(".")[0] not in groups} | groups)


def _differing(first: Mapping[str, Env], second: Mapping[str, Env]) -> list[str]:
    """Names of the entries that differ between any two environments of which both tell."""
    names = {
        name
        for one, other in _pairs(first, second)
        for name in _flat(one) | _flat(other)
        if _is_told(name, one) and _is_told(name, other)
        if _flat(one).get(name) != _flat(other).get(name)
    }
    return sorted(names - OWN)


def _pairs(first: Mapping[str, Env], second: Mapping[str, Env]) -> Iterator[tuple[Env, Env]]:
    return ((one, other) for one in first.values() for other in second.values())


def _is_told(name: str, env: Env) -> bool:
    """Whether a record says something of an entry; that it is not there may say it, too."""
    group, _, rest = name.partition(".")
    if group == "settings":
        own = env.get(group, {}).get(rest.partition(".")[0])
        return own is not None and name in _flat(env)
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
