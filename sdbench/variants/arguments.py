"""What stands behind the colon of a variant's name, read by a pattern."""

from __future__ import annotations

import re

NUMBER = r"\d+(?:\.\d+)?"
"""A positive number, whole or not."""
PERIOD = r"([2-9]|[1-9]\d+)"
"""A whole number of at least 2."""


def matched(argument: str | None, pattern: str, grammar: str) -> tuple[str, ...]:
    """The groups of a pattern that the whole argument has to match.

    Args:
        argument: None where nothing was given.
        pattern: a regular expression.
        grammar: how to write it, for the message.

    Raises:
        ValueError: the argument does not match.
    """
    match = re.fullmatch(pattern, argument or "")
    if match is None:
        raise ValueError(f"expected {grammar}")
    return match.groups()
