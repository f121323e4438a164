"""Trainable low-rank layers on a denoiser: which of its layers get them, and how they are added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peft import LoraConfig
from torch import nn

from sdbench.models.student_layers import ADAPTER, refuse_adapters

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
