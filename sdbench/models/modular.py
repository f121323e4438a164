"""Pipelines with guiders, modular ones above all, in the form of every other pipeline.

A guider is a component that says which predictions a step needs, and makes the guided one of them.
The guidance scale is the guider's, not an argument of the call. A modular pipeline is made of
blocks: it takes what they take, and returns all that they made. Here `guidance_scale` is an
argument of both, and what a call returns has images, frames or audios.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from diffusers.guiders import BaseGuidance
from diffusers.modular_pipelines import ModularPipeline

if TYPE_CHECKING:
    from sdbench.models.pipeline import Pipeline  # imports this module

SCALE = "guidance_scale"
DECODER = "decode"
"""Name of the block that makes images of latents."""
MADE = {"images": "images", "videos": "frames", "audio": "audios", "sound": "audios"}
"""How blocks name what they made, and how the outputs of other pipelines do."""
_BLOCKS = "_blocks"
_LOG = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")


class Output(dict[str, Any]):
    """What a modular pipeline made: also by attribute, as of the outputs of other pipelines."""

    def __getattr__(self, name: str) -> Any:
        """An entry."""
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def is_modular(pipe: Pipeline) -> bool:
    """Whether a pipeline is made of blocks."""
    return isinstance(pipe, ModularPipeline)


def guiders_of(pipe: Pipeline) -> dict[str, Any]:
    """The guiders of a pipeline by their names, such as `guider_2`; none of most pipelines."""
    return {name: part for name, part in vars(pipe).items() if isinstance(part, BaseGuidance)}


def formula_scale(guider: Any) -> float:
    """The scale of a guider as w of `u + w (c - u)`.

    Raises:
        ValueError: a guider without one scale.
    """
    if not hasattr(guider, SCALE):
        raise ValueError(f"{type(guider).__name__} has no single guidance scale")
    return float(guider.guidance_scale) + _is_from_conditional(guider)


def scale_name(guider: str) -> str:
    """The argument that is a guider's scale: `guidance_scale_2` of `guider_2`."""
    return guider.replace("guider", SCALE)


def block_inputs(pipe: Pipeline) -> set[str]:
    """Names of what the blocks of a modular pipeline take."""
    return {taken.name for taken in _blocks(pipe).inputs if taken.name is not None}


def needs_negative_prompt(pipe: Pipeline) -> bool:
    """Whether a pipeline with a guider has nothing to guide away from unless it is given.

    A block that encodes prompts asks the guider whether an empty negative prompt is needed. Where
    none asks, as in Stable Diffusion 3, the guider gets the conditional prediction twice.
    """
    guiders = guiders_of(pipe)
    if not is_modular(pipe) or not guiders:
        return False
    encoders = [
        block
        for block in _blocks(pipe).sub_blocks.values()
        if "negative_prompt" in {taken.name for taken in block.inputs}
    ]
    asks = [any(part.name in guiders for part in block.expected_components) for block in encoders]
    return bool(asks) and not any(asks)


def loops_of(pipe: Pipeline) -> list[Any]:
    """What opens the progress bars of a pipeline's loops: its blocks that loop, or the pipeline."""
    if not is_modular(pipe):
        return [pipe]
    return [block for _, block in _within(_blocks(pipe)) if hasattr(block, "progress_bar")]


def block_names(pipe: Pipeline) -> list[str]:
    """Names and classes of all blocks, which say what a modular pipeline computes; else nothing."""
    if not is_modular(pipe):
        return []
    return [f"{name} {type(block).__name__}" for name, block in _within(_blocks(pipe))]


@contextmanager
def asked(pipe: Pipeline, arguments: Mapping[str, Any], own: set[str]) -> Iterator[dict[str, Any]]:
    """What a pipeline is called with, while its guiders have the scales that were asked for.

    Guiders remember their last step. Blocks that encode prompts ask them before the first step of
    a call, so every call has guiders that have seen none.

    Args:
        pipe: is as before afterwards.
        arguments: of the call.
        own: those that the pipeline itself takes.

    Yields:
        The arguments without those that are the guiders'.

    Raises:
        ValueError: a guider without one scale.
    """
    taken = dict(arguments)
    with ExitStack() as undo:
        guiders = {} if SCALE in own else guiders_of(pipe)
        scale = taken.pop(SCALE, None) if guiders else None
        for name, guider in guiders.items():
            fresh = _fresh(guider, taken.pop(scale_name(name), scale))
            undo.enter_context(given(pipe, name, fresh))

        if is_modular(pipe):
            undo.enter_context(_errors_told_once())
            if taken.get("output_type") == "latent":
                del taken["output_type"]
                undo.enter_context(given(pipe, _BLOCKS, _undecoded(_blocks(pipe))))
        yield taken


def output_of(pipe: Pipeline, returned: Any, arguments: Mapping[str, Any]) -> Any:
    """What a pipeline returned, in the form of every other pipeline's output.

    Args:
        pipe: that returned it.
        returned: the state, if it is a modular pipeline.
        arguments: of the call.

    Raises:
        ValueError: latents were asked for, and there are none.
    """
    if not is_modular(pipe) or "output" in arguments:
        return returned
    names = [made.name for made in _blocks(pipe).intermediate_outputs if made.name in MADE]
    if arguments.get("output_type") == "latent":
        latents = _latents(returned)
        if latents is None:
            raise ValueError(
                f"the blocks of {type(pipe).__name__} return no latents: choose another output"
            )
        return Output({MADE[name]: latents for name in names[:1] or ["images"]})
    return Output({MADE[name]: returned.get(name) for name in names})


def _latents(state: Any) -> Any:
    """The latents in a state; chunks of a long video stand one after the other."""
    chunks = state.get("latent_chunks")
    return torch.cat(chunks, dim=2) if chunks else state.get("latents")


@contextmanager
def given(pipe: Pipeline, name: str, value: Any) -> Iterator[None]:
    """Give a pipeline another component for the length of a block."""
    # Assigning would also change what the pipeline says of itself, for good.
    own = vars(pipe)
    before = own[name]
    own[name] = value
    try:
        yield
    finally:
        own[name] = before


def _blocks(pipe: Pipeline) -> Any:
    """The blocks themselves; the pipeline's property gives a deep copy."""
    return vars(pipe)[_BLOCKS]


def _fresh(guider: Any, scale: float | None) -> Any:
    """A guider like another one that has seen no step, at w of `u + w (c - u)` or its own scale."""
    fresh = copy.copy(guider)
    fresh.set_state(step=None, num_inference_steps=None, timestep=None)
    if scale is None:
        return fresh

    if not hasattr(fresh, SCALE):
        raise ValueError(f"{type(guider).__name__} has no single scale to set to {scale:g}")
    fresh.guidance_scale = scale - _is_from_conditional(fresh)
    fresh.enable()
    return fresh


def _is_from_conditional(guider: Any) -> bool:
    """Whether it guides by c + s (c - u), where w is s + 1."""
    return bool(getattr(guider, "use_original_formulation", False))


def _undecoded(blocks: Any) -> Any:
    """Blocks up to the one that decodes."""
    names = list(blocks.sub_blocks)
    kept = names[: names.index(DECODER)] if DECODER in names else names
    cut = copy.copy(blocks)
    cut.sub_blocks = type(blocks.sub_blocks)((name, blocks.sub_blocks[name]) for name in kept)
    return cut


@contextmanager
def _errors_told_once() -> Iterator[None]:
    """Blocks log every error that passes through them, with its traceback, and raise it."""
    level = _LOG.level
    _LOG.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        _LOG.setLevel(level)


def _within(block: Any, name: str = "blocks") -> Iterator[tuple[str, Any]]:
    """A block and all within it, by their places."""
    yield name, block
    for inner, part in getattr(block, "sub_blocks", {}).items():
        yield from _within(part, f"{name}.{inner}")
