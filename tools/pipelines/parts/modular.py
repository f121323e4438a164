"""What small modular pipelines share: the block that denoises, without text and without pictures.

A modular pipeline takes no guidance scale. It is set on the guiders when the arguments of a call
are made: on by `call`, off again by `off`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import diffusers
from diffusers.guiders import BaseGuidance

from tools.pipelines.small import SCALE, Small

DENOISER = "denoise"
"""How default blocks name the one that denoises."""


def core(kind: type, **components: Any) -> Any:
    """A pipeline of the block that denoises alone, out of the default blocks of its class."""
    blocks = getattr(diffusers, kind.default_blocks_name)()
    for name in [name for name in blocks.sub_blocks if name != DENOISER]:
        blocks.sub_blocks.pop(name)
    pipe = kind(blocks=blocks)
    pipe.update_components(**components)
    for block in _within(blocks):
        if hasattr(block, "set_progress_bar_config"):
            block.set_progress_bar_config(disable=True)
    return pipe


def by_guider(made: Small, output: str = "latents") -> Small:
    """The same where the guiders have the scale and the call says which output it returns."""
    call = made.call

    def scaled(scale: float) -> dict[str, Any]:
        for guider in guiders(made.pipe):
            # The other formulation is c + s (c - u).
            is_from_conditional = getattr(guider, "use_original_formulation", False)
            guider.guidance_scale = scale - is_from_conditional
            guider.enable()
        return {}

    def arguments(images: int) -> dict[str, Any]:
        own = {"output": output} | call(images) | scaled(SCALE)
        return {name: own[name] for name in own if name not in ("guidance_scale", "output_type")}

    return replace(made, call=arguments, off=lambda images: scaled(1.0))


def guiders(pipe: Any) -> list[Any]:
    """The components that guide."""
    return [part for part in pipe.components.values() if isinstance(part, BaseGuidance)]


def _within(block: Any) -> Iterator[Any]:
    yield block
    for part in block.sub_blocks.values():
        yield from _within(part)
