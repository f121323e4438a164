"""Guiders of diffusers in the place of a pipeline's own: what its loop evaluates is then theirs.

Guiders that only combine two predictions run on every pipeline, as policies
(`methods/guiders.py`). Those that evaluate a third one need a loop that asks a guider.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from diffusers.guiders import PerturbedAttentionGuidance, SkipLayerGuidance
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.layer_skip import TransformerBlockSkipHook
from torch import nn

from sdbench.models.modular import formula_scale, given, guiders_of
from sdbench.models.pipeline import Pipeline, denoisers_of
from sdbench.records.files import first_line
from sdbench.variants.trace import Unsupported

STACKS = ("transformer_blocks", "blocks", "layers")
"""How transformers name their blocks. diffusers tries such names in no order of its own."""
STRENGTH = 2.8
"""Of the third prediction: what diffusers takes from Stable Diffusion 3.5 for both kinds."""
_HOOK = "layer_skip_hook"

Make = Callable[[float], Any]
"""From w to a guider."""


@contextmanager
def guiders_replaced(pipe: Pipeline, make: Make) -> Iterator[None]:
    """Let a pipeline guide by another guider, at the scale of its own.

    Args:
        pipe: is as before afterwards.
        make: the guider.

    Raises:
        Unsupported: the pipeline has no guider, or asks it for more than the other one tells.
    """
    with ExitStack() as undo:
        for name, own in _require_guiders(pipe).items():
            with no_notice():
                other = make(formula_scale(own))
            undo.enter_context(given(pipe, name, other))
        yield


@contextmanager
def layers_left_out(pipe: Pipeline, kind: str, layers: Sequence[int]) -> Iterator[None]:
    """A third prediction, with some layers left out, from the second step on.

    Args:
        pipe: is as before afterwards.
        kind: "slg" leaves whole blocks out (skip-layer guidance), "pag" their attention scores
            (perturbed-attention guidance).
        layers: indices of blocks.

    Raises:
        Unsupported: as `guiders_replaced` says; a network in which they cannot be left out.
    """
    _require_guiders(pipe)
    scores = {"skip_attention": False, "skip_attention_scores": True, "skip_ff": False}
    left_out = partial(LayerSkipConfig, list(layers), **scores if kind == "pag" else {})
    stacks = {_require_leaves_out(denoiser, left_out) for denoiser in denoisers_of(pipe)}
    config = left_out(fqn=stacks.pop())

    # The first step is never one of theirs: diffusers asks for more than the start.
    def make(guidance_scale: float) -> Any:
        if kind == "pag":
            return PerturbedAttentionGuidance(
                guidance_scale=guidance_scale,
                perturbed_guidance_scale=STRENGTH,
                perturbed_guidance_start=0.0,
                perturbed_guidance_stop=1.0,
                perturbed_guidance_config=config,
            )
        return SkipLayerGuidance(
            guidance_scale=guidance_scale,
            skip_layer_guidance_scale=STRENGTH,
            skip_layer_guidance_start=0.0,
            skip_layer_guidance_stop=1.0,
            skip_layer_config=config,
        )

    with guiders_replaced(pipe, make):
        yield


@contextmanager
def no_notice() -> Iterator[None]:
    """Guiders say at each construction that their interface may change."""
    log = logging.getLogger("diffusers.guiders.guider_utils")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _require_guiders(pipe: Pipeline) -> dict[str, Any]:
    """The guiders of a pipeline, which others may replace.

    Raises:
        Unsupported: it has none, or asks them for more than others tell.
    """
    kind = type(pipe).__name__
    guiders = guiders_of(pipe)
    if not guiders:
        raise Unsupported(f"{kind} has no guider: its formula is in its loop")
    for own in guiders.values():
        if hasattr(own, "active_predictions"):
            raise Unsupported(f"{kind} asks its {type(own).__name__} for further predictions")
    return guiders


def _require_leaves_out(denoiser: nn.Module, left_out: Callable[..., LayerSkipConfig]) -> str:
    """The name of a network's stack of blocks, after a trial of leaving some out.

    Raises:
        Unsupported: it has none, or diffusers leaves nothing out of it, or more than it says.
    """
    kind = type(denoiser).__name__
    stacks = [name for name in STACKS if isinstance(getattr(denoiser, name, None), nn.ModuleList)]
    if not stacks:
        raise Unsupported(f"{kind} has no stack of blocks of which layers could be left out")
    config = left_out(fqn=stacks[0])
    blocks = getattr(denoiser, stacks[0])

    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    try:
        apply_layer_skip(denoiser, config)
        is_left_out = any(_has_hook(part) for block in blocks for part in block.modules())
    except (ValueError, KeyError, AttributeError) as error:
        reason = first_line(error)
        raise Unsupported(f"diffusers leaves no layers of {kind} out: {reason}") from None
    finally:
        registry.remove_hook(_HOOK, recurse=True)

    if not is_left_out:
        raise Unsupported(f"diffusers finds nothing to leave out in layers of {kind}")
    if config.skip_attention and not all(map(_keeps_streams, blocks)):
        raise Unsupported(
            f"diffusers hands the two streams of a {type(blocks[0]).__name__} on in the wrong "
            "order where it leaves one out"
        )
    return stacks[0]


def _has_hook(part: nn.Module) -> bool:
    registry = getattr(part, "_diffusers_hook", None)
    return registry is not None and registry.get_hook(_HOOK) is not None


def _keeps_streams(block: nn.Module) -> bool:
    """Whether what is handed on instead of a block's output is in the order of its output."""
    metadata = TransformerBlockRegistry.get(type(block))
    place = metadata.return_hidden_states_index
    if metadata.return_encoder_hidden_states_index is None:
        return True
    hook = TransformerBlockSkipHook(1.0)
    hook._metadata = metadata
    handed_on = hook.new_forward(block, hidden_states="image", encoder_hidden_states="text")
    return bool(handed_on[place] == "image")
