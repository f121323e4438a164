"""Checks of a study's fields, and their digest: whatever was given, one line says what is wrong."""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from sdbench.records.stopping import precision

LARGEST = 1_000_000  # of any count: more is a slip, and would only be found when memory is full


def listed(name: str, value: Any) -> tuple[Any, ...]:
    """The entries of a list.

    Raises:
        ValueError: it is a single text, a mapping, or nothing that can be gone through.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError(f"{name} must be a list, not {value!r}")
    return tuple(value)


def entries(name: str, value: Any) -> tuple[Any, ...]:
    """The entries of a list that holds at least one, and none twice.

    Raises:
        ValueError: it is no such list.
    """
    values = listed(name, value)
    if not values:
        raise ValueError(f"{name} must not be empty")

    first: dict[str, int] = {}
    for number, shown in enumerate(map(repr, values), start=1):
        earlier = first.setdefault(shown, number)
        if earlier != number:
            raise ValueError(
                f"{name} has {reprlib.repr(values[number - 1])} twice, "
                f"as entries {earlier} and {number}"
            )
    return values


def require_texts(name: str, values: Iterable[Any]) -> None:
    """Refuse a list that holds anything but texts with something in them."""
    if any(not isinstance(value, str) or not value.strip() for value in values):
        raise ValueError(f"{name} must be a list of texts, none of them empty")


def require_text(name: str, value: Any) -> None:
    """Refuse anything but a text with something in it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text and not empty, not {value!r}")


def require_optional_text(name: str, value: Any) -> None:
    """Refuse anything but a text, or None."""
    if not isinstance(value, str | None):
        raise ValueError(f"{name} must be a text, not {value!r}")


def require_truth(name: str, value: Any) -> None:
    """Refuse anything but true and false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")


def require_json(name: str, value: Any) -> None:
    """Refuse an object that JSON cannot hold."""
    try:
        json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be an object of JSON values: {error}") from None


def require_choice(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """Refuse what is not among some choices."""
    if value not in choices:
        existing = ", ".join(filter(None, choices))
        raise ValueError(f"unknown {name} '{value}'; there are: {existing}")


def require_whole(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> None:
    """Refuse anything but a whole number within bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} must be a whole number of at least {minimum}, not {value!r}")
    if value > maximum:
        raise ValueError(f"{name} must be a whole number of at most {maximum}, not {value!r}")


def known_repeats(value: Any) -> int | str:
    """Repeats of a study, a precision in the one way in which it is stored.

    Raises:
        ValueError: neither a number nor a precision.
    """
    points = precision(value)
    if points is not None:
        return f"until {points:g} points"
    require_whole("repeats", value, minimum=1)
    return int(value)


def require_optional_whole(name: str, value: Any) -> None:
    """Refuse anything but a whole number above 0, or None.

    Raises:
        ValueError: what it is instead.
    """
    if value is not None:
        require_whole(name, value, minimum=1)


def require_size(height: Any, width: Any) -> None:
    """Refuse an image size of which one side is missing.

    Raises:
        ValueError: it is, or a side is no whole number.
    """
    require_optional_whole("height", height)
    require_optional_whole("width", width)
    if (height is None) != (width is None):
        raise ValueError("give both height and width, or neither: some pipelines ignore one alone")


def digest(values: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
