"""The one way to a pipeline's call: a variant, on some (prompt, seed) pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.models.pipeline import Pipeline, guidance_arguments, invoke
from sdbench.study.study import Generation, Pairs
from sdbench.variants.adapters import applied
from sdbench.variants.trace import Listener, Trace
from sdbench.variants.variant import Variant

OUTPUT_TYPES = {"image": "pt", "latent": "latent"}
"""A study's word for what a call returns, and diffusers' own."""


@dataclass(frozen=True)
class Call:
    """One pipeline call.

    Args:
        generation: the model's settings; its pairs have no part in it.
        variant: how the pipeline runs.
        pairs: (prompt_id, prompt, seed) of every image.
    """

    generation: Generation
    variant: Variant
    pairs: Pairs

    @property
    def num_steps(self) -> int:
        """Steps asked of the pipeline."""
        return self.variant.num_steps or self.generation.num_steps

    @property
    def guidance_scale(self) -> float:
        """Scale asked of the pipeline."""
        return self.variant.guidance_scale or self.generation.guidance_scale

    def arguments(self, pipe: Pipeline) -> dict[str, Any]:
        """The arguments of the call.

        Each image has its own generator, so it does not depend on its batch.
        """
        generation = self.generation
        sizes = {"height": generation.height, "width": generation.width}
        guidance = guidance_arguments(
            pipe,
            self.guidance_scale,
            rows=len(self.pairs),
            negative_prompt=generation.negative_prompt,
        )
        return {
            **generation.arguments,
            **self.variant.arguments,
            **{name: pixels for name, pixels in sizes.items() if pixels is not None},
            **guidance,
            "prompt": [prompt for _, prompt, _ in self.pairs],
            "generator": [torch.Generator("cpu").manual_seed(seed) for _, _, seed in self.pairs],
            "num_inference_steps": self.num_steps,
        }


@dataclass(frozen=True)
class Ready:
    """A pipeline under a variant, with its arguments at hand: calling it calls the pipeline.

    Args:
        pipe: of the call.
        arguments: of the call; the generators in them are used up by it.
        trace: what ran.
    """

    pipe: Pipeline
    arguments: Mapping[str, Any]
    trace: Trace

    def __call__(self) -> Float[Tensor, "n ..."]:
        """The images in [0, 1], (n, 3, height, width), or the latents."""
        return invoke(self.pipe, self.arguments).images


@contextmanager
def ready(
    pipe: Pipeline,
    call: Call,
    *,
    output: str = "image",
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
) -> Iterator[Ready]:
    """Put a pipeline under a call's variant, for the length of a block.

    Args:
        pipe: a guided pipeline.
        call: what will run.
        output: "image" or "latent".
        listeners: as `guided_by` takes them.
        sequential: as `guided_by` takes it.

    Yields:
        What runs the call.

    Raises:
        ValueError: as `applied` says.
    """
    arguments = call.arguments(pipe) | {"output_type": OUTPUT_TYPES[output]}
    with applied(
        pipe,
        call.variant,
        guidance_scale=call.guidance_scale,
        listeners=listeners,
        sequential=sequential,
    ) as trace:
        yield Ready(pipe, arguments, trace)


def generate(pipe: Pipeline, call: Call, **how: Any) -> Float[Tensor, "n ..."]:
    """The images or latents of a call; further arguments as `ready` takes them."""
    with ready(pipe, call, **how) as run:
        return run()
