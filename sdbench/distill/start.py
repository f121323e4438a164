"""The student that a second stage starts from, and whether it can be halved."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdbench.distill.halving import require_halvable
from sdbench.distill.settings import Settings
from sdbench.models.pipeline import Pipeline, denoiser_of
from sdbench.models.registry import own_adapter
from sdbench.models.students import CARD_FILE, check_base, read_card
from sdbench.variants.student_weights import weights_file

OWN = "lora"  # the student that comes with the model, as the variant of that name is


def starting_file(pipe: Pipeline, start: str | Path, settings: Settings) -> Path:
    """The weights that a second stage starts from.

    Args:
        pipe: the base's.
        start: a student's folder or file; `lora` for the one that comes with the model.
        settings: of the run.

    Raises:
        ValueError: there is none, it is for another base or another scale, or its number of steps
            is not twice that of the run.
    """
    file = weights_file(own_adapter(pipe) if start == OWN else start, of_lora=True)
    card = read_card(file)
    _require_one_scale(file, card, settings.guidance_scale)
    _require_half(file, card, settings.num_steps)
    check_base(denoiser_of(pipe), file)
    require_halvable(pipe.scheduler)
    return file


def start_record(file: Path) -> dict[str, Any]:
    """What distinguishes the student that a run started from, for its card and for resuming."""
    card = read_card(file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return {"sha256": digest, "num_steps": card.get("num_steps")}


def _require_one_scale(file: Path, card: Mapping[str, Any], guidance_scale: float) -> None:
    """Refuse a student whose scale is not known, or is not one, or is another one."""
    if not card:
        raise ValueError(f"'{file}' has no {CARD_FILE}: it does not say what it is a student of")
    if card.get("w_range") is not None:
        lo, hi = card["w_range"]
        raise ValueError(
            f"the student '{file}' is made for guidance scales of {lo:g} to {hi:g}; "
            "the second stage is for one scale"
        )
    scale = card.get("guidance_scale")
    if scale != guidance_scale:
        made = "no scale" if scale is None else f"a guidance scale of {scale:g}"
        raise ValueError(f"the student '{file}' is made for {made}, not {guidance_scale:g}")


def _require_half(file: Path, card: Mapping[str, Any], num_steps: int) -> None:
    """Refuse a number of steps that is not half of the teacher's own.

    A student of the first stage has none of its own: it runs with any number of steps.
    """
    made = card.get("num_steps")
    if made is None or made == 2 * num_steps:
        return
    if made % 2:
        raise ValueError(
            f"the student '{file}' is made for {made} steps, an odd number: no half of it is whole"
        )
    raise ValueError(
        f"the student '{file}' is made for {made} steps, half of which is {made // 2}, "
        f"not {num_steps}"
    )
