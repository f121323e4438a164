"""Distilled students: one conditional pass that predicts the guided result.

A student is what `sdbench.distill` writes: a LoRA, or a whole denoiser. How its weights get into a
pipeline is in `adapters.py`.

Source: Golnari 2023, arXiv 2312.06899 (LoRA); Meng et al. 2023, arXiv 2210.03142 (every weight).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sdbench.models.students import EMBEDDING_FILE
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.student_weights import weights_file
from sdbench.variants.variant import Method, Variant


def _lora(name: str, argument: str | None) -> Variant:
    if argument is None:
        return Variant(name, GuidanceSchedule.none, student="")
    return _student(name, argument, of_lora=True)


def _full(name: str, argument: str | None) -> Variant:
    if not argument:
        raise ValueError("expected full:PATH, a student that `sdbench distill --method full` wrote")
    return _student(name, argument, of_lora=False)


def _student(name: str, path: str, *, of_lora: bool) -> Variant:
    """A student from its files, whose content is part of what a stored call depends on."""
    file = weights_file(path, of_lora=of_lora)
    parts = [part for part in (file, file.with_name(EMBEDDING_FILE)) if part.is_file()]
    content = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    return Variant(name, GuidanceSchedule.none, student=str(file), content=content)


def _add(first: Variant, student: Variant) -> Variant:
    """A student in the unguided steps of a schedule."""
    if first.student is not None:
        raise ValueError(f"'{first.name}' is a student already")
    if first.accelerator is not None:
        raise ValueError("a student stands before an accelerator: lora+deepcache:3")
    if first.policy is not None:
        raise ValueError(f"'{first.name}' compares both predictions, of which a student makes one")
    if first.guides_all:
        raise ValueError(f"'{first.name}' leaves no step unguided, where the student would run")
    return replace(first, student=student.student)


METHODS = (
    Method(
        "lora",
        "lora|lora:PATH|last:50%+lora",
        "a distilled student, the model's own or any, in one pass; "
        "`+lora`: in the unguided steps of a schedule",
        _lora,
        source="Golnari 2023, arXiv 2312.06899",
        group="students",
        add=_add,
        examples=("lora",),
    ),
    Method(
        "full",
        "full:PATH",
        "a student whose every weight was distilled: the control",
        _full,
        source="Meng et al. 2023, arXiv 2210.03142",
        group="students",
        examples=("full:PATH",),
    ),
)
