"""What a distilled student's folder says: the names of its files, its card, how strong it is at w.

A student of one guidance scale is a LoRA, or a whole denoiser. One of a range of scales is a LoRA
whose strength grows with w from nothing at w = 1, where the student is the conditional teacher. It
is also given w: by the denoiser's own `guidance` input where it has one, and else by an embedding
(`guidance_embedding.py`). A student's layers are in `student_layers.py`; how a student is put into
a pipeline and taken out again is in `variants/student_weights.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sdbench.models.bare_weights import WRAPPERS, bare_module, bare_name, bare_weights
from sdbench.records.files import NONE, NUMBER, read_json, require

LORA_FILE = "pytorch_lora_weights.safetensors"
DENOISER_FILE = "diffusion_pytorch_model.safetensors"
EMBEDDING_FILE = "guidance_embedding.safetensors"
CARD_FILE = "card.json"

# What a card may say of the student, and of its base.
_FIELDS = {
    "model": (str, NONE),
    "guidance_scale": (*NUMBER, NONE),
    "w_range": (list, NONE),
    "num_steps": (int, NONE),
    "base": (dict, NONE),
}
_BASE_FIELDS = {"denoiser": (str,), "parameters": (int,), "values": (dict,)}
SAMPLED = 8  # weights, and values of each, that distinguish one base from another


def base_record(denoiser: nn.Module) -> dict[str, Any]:
    """What distinguishes one base from another: its class, its size and a few values."""
    # Weights from all over the network: a digest would change with the dtype.
    weights = bare_weights(denoiser)
    names = list(weights)[:: max(1, len(weights) // SAMPLED)]
    return {
        "denoiser": type(bare_module(denoiser)).__name__,
        "parameters": sum(weight.numel() for weight in weights.values()),
        "values": {name: _first_values(weights[name], SAMPLED) for name in names},
    }


def check_base(denoiser: nn.Module, file: Path) -> None:
    """Compare a base with the one that a student's card names; a LoRA from elsewhere has no card.

    Args:
        denoiser: of the base, as it was before any student.
        file: the student's weights.

    Raises:
        ValueError: another base.
    """
    card = read_card(file)
    if card.get("base") is not None and not _is_base(denoiser, card["base"]):
        base = f"{card['base']['denoiser']} of {card.get('model')}"
        raise ValueError(
            f"the student '{file}' was made for another base, {base}: load that model, without a "
            "fused LoRA"
        )


def _is_base(denoiser: nn.Module, wanted: Mapping[str, Any]) -> bool:
    """Whether a network is the one of a record, but for the rounding of a dtype."""
    weights = bare_weights(denoiser)
    # A card may be made of a network with something around it.
    if wanted["denoiser"] not in {type(bare_module(denoiser)).__name__, *WRAPPERS}:
        return False
    if wanted["parameters"] != sum(weight.numel() for weight in weights.values()):
        return False

    for name, values in wanted["values"].items():
        own = weights.get(bare_name(name))
        if own is None or not 0 < len(values) == min(own.numel(), SAMPLED):
            return False
        found = _first_values(own, len(values))
        if not np.allclose(found, values, rtol=4e-3, atol=1e-5):  # bfloat16's 2^-9
            return False
    return True


def _first_values(weight: Shaped[Tensor, "*shape"], count: int) -> list[float]:
    values: list[float] = weight.detach().flatten()[:count].float().tolist()
    return values


def strength_at(file: Path, card: Mapping[str, Any], guidance_scale: float) -> float:
    """How much of the LoRA in a file counts at w: all of it, unless its card has a range of scales.

    Raises:
        ValueError: a scale that the student was not made for.
    """
    made_for = card.get("guidance_scale")
    w_range = card.get("w_range")
    limits: Any = w_range or (made_for, made_for)
    lo, hi = limits

    # A LoRA without a card has no scale: it is taken at any.
    if lo is not None and not lo <= guidance_scale <= hi:
        scales = (
            f"a guidance scale of {lo:g}" if lo == hi else f"guidance scales of {lo:g} to {hi:g}"
        )
        raise ValueError(f"the student '{file}' was made for {scales}, not {guidance_scale:g}")
    return 1.0 if w_range is None else float(strength(w_range, guidance_scale))


def strength(
    w_range: Sequence[float], guidance_scale: Float[Tensor, " rows"] | float
) -> Float[Tensor, " rows"] | float:
    """How much of a LoRA for a range of scales counts at w: nothing at 1, all of it at the highest.

    The guided prediction is `c + (w - 1) (c - u)`. A student adds to the conditional one, so at
    w = 1 it must add nothing.

    Args:
        w_range: the lowest and the highest scale.
        guidance_scale: w, one or one for every row.
    """
    return ((guidance_scale - 1) / (w_range[1] - 1)) ** 0.5


def has_projection(file: Path) -> bool:
    """Whether the student in a file is given w by an embedding."""
    return file.with_name(EMBEDDING_FILE).is_file()


def uses_guidance_input(file: Path) -> bool:
    """Whether the student in a file is given w by the denoiser's own `guidance` input."""
    return read_card(file).get("w_range") is not None and not has_projection(file)


def read_card(file: Path) -> dict[str, Any]:
    """The card that stands next to a student's weights, empty where there is none.

    Raises:
        ValueError: it cannot be read, or one of the fields that matter here is of another kind.
    """
    path = file.with_name(CARD_FILE)
    if not path.exists():
        return {}
    card = read_json(path)
    require(card, _FIELDS, source=str(path))
    base = card.get("base")
    if base is not None:
        require(base, _BASE_FIELDS, source=f"{path}, base")

    wrong = _without_numbers(card)
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} does not hold the expected numbers")
    return card


def _without_numbers(card: Mapping[str, Any]) -> list[str]:
    """The fields of a card that should hold numbers and do not."""
    w_range = card.get("w_range")
    base = card.get("base")
    numbers = {"guidance_scale": [card.get("guidance_scale") or 0], "w_range": w_range or [0]}
    numbers |= base["values"] if base else {}

    wrong = [name for name, values in numbers.items() if not _are_numbers(values)]
    if not wrong and w_range is not None and len(w_range) != 2:
        return ["w_range"]
    return wrong


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers of a size that floats can hold."""
    return isinstance(values, list) and all(
        isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) < 1e30
        for value in values
    )
