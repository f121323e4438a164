"""What the texts of options mean; what does not fit is a ValueError that names the option."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdbench.records.store import Mode


def split(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """What stands between commas; None where the option was not given."""
    return (
        None if text is None else [kind(part.strip()) for part in text.split(",") if part.strip()]
    )


def variant_names(text: str | None) -> list[str] | None:
    """Variants between commas; one that stands before a setting (`cached:5,from=20`) belongs to it."""
    if text is None:
        return None
    return [part.strip() for part in re.split(r",(?!\s*(?:from=|split\b))", text) if part.strip()]


def seed_list(text: str | None) -> list[int] | None:
    """Seeds between commas."""
    try:
        return split(text, int)
    except ValueError:
        raise ValueError(
            f"--seeds takes whole numbers with commas between them, not '{text}'"
        ) from None


def whole(option: str, text: str) -> list[int]:
    """Positive whole numbers between commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ValueError(
            f"{option} takes positive whole numbers with commas between them, not '{text}'"
        )
    return values


def share(option: str, text: str) -> float:
    """A positive number, or one of percent."""
    return (
        positive(option, text.removesuffix("%")) / 100
        if text.endswith("%")
        else positive(option, text)
    )


def positive(option: str, text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{option} takes positive numbers, not '{text}'")
    return value


def json_object(text: str | None) -> dict[str, Any] | None:
    """Further arguments of the pipeline."""
    if text is None:
        return None
    from sdbench.records.files import parsed

    try:
        value = parsed(json.loads, text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--arguments takes a JSON object, not '{text}'")
    return value


def write_mode(*, resume: bool, overwrite: bool, out: str | Path | None) -> Mode:
    """What becomes of a folder that is there already."""
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    if resume and out is None:
        raise ValueError("--resume needs --out, the folder to continue")
    return "resume" if resume else "overwrite" if overwrite else "new"


def new_folder(name: str) -> Path:
    """A folder that is not there yet: a clock that was set back gives the same stamp again."""
    stamped = Path("sdbench-results") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    others = (stamped.with_name(f"{stamped.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([stamped], others) if not folder.exists())
