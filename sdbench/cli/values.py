"""What the texts of options mean; what does not fit is a ValueError that names the option."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdbench.records.store import Mode


def study_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a study that a command was given.

    Args:
        options: the options of the command by name. Those that are no field of a study are left
            out, and so are those that were not given: for these the study has its own values.

    Raises:
        ValueError: a text that is not what its field takes.
    """
    from sdbench.study.study import Study

    # An option is called as the field that it sets.
    values = given_fields(Study, options)
    for name, read in _READERS.items():
        if name in values:
            values[name] = read(values[name])

    # These are not: one prompt is given at a time, a file is no field, nor is a precision.
    if options.get("precision") is not None:
        if "repeats" in values:
            raise ValueError("give --repeats or --precision, not both")
        values["repeats"] = f"until {positive('--precision', options['precision']):g} points"
    if options.get("prompt") is not None:
        values["prompts"] = options["prompt"]
    if options.get("prompts_file") is not None:
        values["prompts_file"] = str(options["prompts_file"])
    return values


def given_fields(kind: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that bear the name of a dataclass's field, without those that are None."""
    names = [field.name for field in fields(kind)]
    return {name: options[name] for name in names if options.get(name) is not None}


def split(text: str | None, kind: Callable[[str], Any] = str) -> list[Any] | None:
    """What stands between commas; None where the option was not given."""
    if text is None:
        return None
    return [kind(part.strip()) for part in text.split(",") if part.strip()]


def variant_names(text: str) -> list[str]:
    """Variants between commas; a setting behind one (`steps:35,stock`) belongs to it."""
    # No variant begins as a setting does.
    parts = re.split(r",(?!\s*(?:from=|split\b|stock\b))", text)
    return [part.strip() for part in parts if part.strip()]


def seed_list(text: str) -> list[int] | None:
    """Seeds between commas."""
    try:
        return split(text, int)
    except ValueError:
        raise ValueError(
            f"--seeds takes whole numbers, separated by commas, not '{text}'"
        ) from None


def step_counts(text: str | int) -> int | list[int]:
    """A number of steps, or several between commas."""
    counts = whole("--num-steps", str(text))
    return counts[0] if len(counts) == 1 else counts


def whole(option: str, text: str) -> list[int]:
    """Positive whole numbers between commas."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ValueError(
            f"{option} takes positive whole numbers, separated by commas, not '{text}'"
        )
    return values


def share(option: str, text: str) -> float:
    """A positive number, or one of percent."""
    if text.endswith("%"):
        return positive(option, text.removesuffix("%")) / 100
    return positive(option, text)


def positive(option: str, text: str) -> float:
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise ValueError(f"{option} takes positive numbers, not '{text}'")
    return value


def repeats_of(text: str) -> int | str:
    """A number of repeats, or what a study reads as a precision."""
    try:
        return int(text)
    except ValueError:
        return text


def json_object(text: str) -> dict[str, Any]:
    """Further arguments of the pipeline."""
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
        raise ValueError("give --resume or --overwrite, not both")
    if resume and out is None:
        raise ValueError("--resume needs --out: name the folder to continue")
    if resume:
        return "resume"
    return "overwrite" if overwrite else "new"


def new_folder(name: str) -> Path:
    """A folder that is not there yet: a clock that was set back gives the same stamp again."""
    stamped = Path("sdbench-results") / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    others = (stamped.with_name(f"{stamped.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([stamped], others) if not folder.exists())


_READERS: dict[str, Callable[[str], Any]] = {
    "variants": variant_names,
    "seeds": seed_list,
    "num_steps": step_counts,
    "metrics": split,
    "repeats": repeats_of,
    "arguments": json_object,
}
