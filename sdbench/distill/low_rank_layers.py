"""Trainable low-rank layers on a denoiser: which of its layers get them, and how they are added."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from sdbench.models.student_layers import ADAPTER, refuse_adapters

TEACHER = "teacher"  # what a teacher's low-rank layers are called in a pipeline
TARGETS = ("attention", "feed-forward", "convolutions", "timestep")
_HOLDERS = {
    "attention": "Attention",
    "feed-forward": "FeedForward",
    "timestep": "TimestepEmbedding",
}
"""How the class of the module that holds a target's linear layers ends."""


def add_lora(denoiser: Any, *, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Freeze a denoiser and put trainable low-rank layers on it, at first without effect.

    Args:
        denoiser: of diffusers.
        rank: of every layer, at least 1.
        alpha: the update is scaled by alpha / rank.
        targets: of `TARGETS`.

    Raises:
        ValueError: a rank below 1, an unknown target, or a denoiser without layers of that kind.
    """
    if rank < 1:
        raise ValueError(f"a LoRA's rank must be at least 1, not {rank}")
    require_bare(denoiser)
    chosen = [layer for target in targets for layer in layers(denoiser, target)]

    denoiser.requires_grad_(False)
    adapter = LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen, init_lora_weights=True)
    denoiser.add_adapter(adapter, adapter_name=ADAPTER)
    for weight in denoiser.parameters():
        if weight.requires_grad:
            # An optimiser's steps are lost in half precision.
            weight.data = weight.data.float()


def add_teacher(denoiser: Any) -> None:
    """Put the low-rank layers of a denoiser on it once more: frozen, and off until they teach."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        denoiser.add_adapter(denoiser.peft_config[ADAPTER], adapter_name=TEACHER)
    teacher = get_peft_model_state_dict(denoiser, adapter_name=ADAPTER)
    set_peft_model_state_dict(denoiser, teacher, adapter_name=TEACHER)
    denoiser.set_adapter(ADAPTER)


@contextmanager
def teacher_on(denoiser: Any) -> Iterator[None]:
    """While it holds, a denoiser's low-rank layers are its teacher's, and nothing is learnt."""
    denoiser.set_adapter(TEACHER)
    try:
        with torch.no_grad():
            yield
    finally:
        denoiser.set_adapter(ADAPTER)


@contextmanager
def layers_off(denoiser: Any) -> Iterator[None]:
    """While it holds, a denoiser is without its low-rank layers, and nothing is learnt."""
    denoiser.disable_adapters()
    try:
        with torch.no_grad():
            yield
    finally:
        denoiser.enable_adapters()


def require_bare(denoiser: nn.Module) -> None:
    """Refuse a denoiser that has adapters already."""
    refuse_adapters(denoiser, [denoiser])


def layers(denoiser: nn.Module, target: str) -> list[str]:
    """Names of the layers of one kind.

    Raises:
        ValueError: an unknown kind, or none of it.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target '{target}'; there are: {', '.join(TARGETS)}")

    if target == "convolutions":
        names = _convolutions(denoiser)
    else:
        names = _linear_layers(denoiser, target)

    if not names:
        raise ValueError(f"{type(denoiser).__name__} has no layers for the target '{target}'")
    return names


def _convolutions(denoiser: nn.Module) -> list[str]:
    """Convolutions over all channels at once; others have no low-rank form of any rank."""
    return [
        name
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Conv2d) and module.groups == 1
    ]


def _linear_layers(denoiser: nn.Module, target: str) -> list[str]:
    """Linear layers inside a module of the target's kind.

    Of an attention layer these are its own projections, not those of a whole block that has one.
    """
    names = []
    for name, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        holders = [
            denoiser.get_submodule(name.rsplit(".", depth)[0])
            for depth in range(1, name.count(".") + 1)
        ]
        is_held = any(type(holder).__name__.endswith(_HOLDERS[target]) for holder in holders)
        # A block's projection of the timestep stands in the block itself.
        if is_held or (target == "timestep" and name.endswith("time_emb_proj")):
            names.append(name)
    return names
