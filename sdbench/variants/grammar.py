"""The variant grammar: from a text to a variant. No other module looks into a name.

A text is a method with its argument, such as `last:20%`; further methods that it adds, behind plus
signs; and behind an `@` the number of steps, where it is not the study's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches

from sdbench.records.names import split_name
from sdbench.variants.methods import all_methods
from sdbench.variants.variant import GROUPS, Method, Variant

VARIANTS: dict[str, Method] = {}
"""Every method by its name, in the order of `GROUPS`."""


def register_variant(method: Method) -> None:
    """Add a method to the grammar.

    Raises:
        ValueError: the name is taken.
    """
    if method.name in VARIANTS:
        raise ValueError(f"variant '{method.name}' is already registered")
    VARIANTS[method.name] = method


def parse(text: str) -> Variant:
    """Read one variant.

    Raises:
        ValueError: an unknown name or an argument that does not
            fit.
    """
    text = text.strip()
    if text.count("+") > len(_addable()):
        raise ValueError(f"variant '{text}' adds more than there is to add")
    whole, num_steps = split_steps(text)
    if num_steps is not None:
        return in_steps(parse(whole), num_steps)
    together = _divided(text)
    if together is None:
        return _single(text)
    return _combined(text, parse(together[0]), parse(together[1]))


def split_steps(text: str) -> tuple[str, int | None]:
    """A variant's text, and the number of steps behind its last `@`; None without one.

    What is no variant without that number has it as a part of its argument: `random:10@7` is draw
    7, and `random:10@7@25` the same in 25 steps.
    """
    counted = re.fullmatch(r"(.+)@(\d+)", text)
    if counted is None:
        return text, None
    try:
        parse(counted[1])
    except ValueError:
        return text, None
    return counted[1], int(counted[2])


def crossed(variants: Iterable[Variant], num_steps: Iterable[int]) -> tuple[Variant, ...]:
    """Variants, and behind them each in loops of other lengths; none twice.

    What has a number of steps of its own is not crossed.
    """
    variants = list(variants)
    found = {variant.name: variant for variant in variants}
    for number in num_steps:
        own = [in_steps(variant, number) for variant in variants if variant.num_steps is None]
        found |= {variant.name: variant for variant in own if variant.name not in found}
    return tuple(found.values())


def methods_of(text: str) -> list[Method]:
    """The methods of a variant's text, those behind plus signs last.

    Raises:
        KeyError: an unknown name.
    """
    text, _ = split_steps(text.strip())
    together = _divided(text)
    if together is None:
        return [VARIANTS[split_name(text)[0]]]
    return [*methods_of(together[0]), *methods_of(together[1])]


def _addable() -> list[str]:
    """What may stand behind a plus sign."""
    return [name for name, method in VARIANTS.items() if method.add is not None]


def _divided(text: str) -> tuple[str, str] | None:
    """What stands before and behind the last plus sign that adds; None without one."""
    parts = re.fullmatch(rf"(.+)\+((?:{'|'.join(_addable())})(?::.+)?)", text)
    return None if parts is None else (parts[1], parts[2])


def _single(text: str) -> Variant:
    """A variant without a plus sign."""
    kind, argument = split_name(text)
    if kind not in VARIANTS:
        raise ValueError(f"unknown variant '{text}'; {_nearest(kind)}")

    method = VARIANTS[kind]
    try:
        variant = method.build(text, argument)
    except ValueError as error:
        raise ValueError(f"variant '{text}': {error}") from None
    is_control = method.group == "controls"
    return replace(variant, kind=kind, argument=argument, is_control=is_control)


def _nearest(kind: str) -> str:
    """What is written like an unknown name, and where all names are listed."""
    alike = get_close_matches(kind.lower(), VARIANTS, n=1)
    meant = f"did you mean {VARIANTS[alike[0]].grammar.split('|')[0]}? " if alike else ""
    return f"{meant}`sdbench variants` lists all"


def in_steps(variant: Variant, num_steps: int) -> Variant:
    """A variant in a loop of another length; full guidance is `steps:N`, which says the same."""
    name = f"{variant.name}@{num_steps}"
    if num_steps < 1:
        raise ValueError(f"variant '{name}': a number of steps behind @ is at least 1")
    if variant.num_steps is not None:
        raise ValueError(f"variant '{name}': it has {variant.num_steps} steps already")
    if variant.is_baseline:
        return parse(f"steps:{num_steps}")
    draws = {number: in_steps(draw, num_steps) for number, draw in variant.draws.items()}
    return replace(variant, name=name, num_steps=num_steps, draws=draws)


def _combined(text: str, first: Variant, added: Variant) -> Variant:
    """Two variants at once; what both together are is the added method's to say."""
    add = VARIANTS[added.kind].add
    assert add is not None
    try:
        both = add(first, added)
    except ValueError as error:
        raise ValueError(f"variant '{text}': {error}") from None
    content = " ".join(filter(None, (first.content, added.content)))
    draws = {
        number: _combined(f"{draw.name}+{added.name}", draw, added)
        for number, draw in first.draws.items()
    }
    return replace(
        both,
        name=text,
        content=content,
        needs_no_time=first.needs_no_time and added.needs_no_time,
        draws=draws,
    )


for _method in sorted(all_methods(), key=lambda method: GROUPS.index(method.group)):
    register_variant(_method)
