"""The one way to a pipeline's call: a variant, on some (prompt, seed) pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.finite import FiniteProbe
from sdbench.models.modular import SCALE
from sdbench.models.pipeline import TRUE_SCALE, Pipeline, guidance_arguments, invoke
from sdbench.models.safety import safety_checker
from sdbench.study.generation import Generation, Pairs
from sdbench.study.made import Made, made_by
from sdbench.variants.adapters import applied
from sdbench.variants.hooks import wrapped
from sdbench.variants.rows import first_tensor
from sdbench.variants.trace import Listener, Trace
from sdbench.variants.variant import Variant

OUTPUT_TYPES = {"image": "pt", "video": "pt", "audio": "pt", "latent": "latent"}
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
        """Steps asked of the pipeline, which passes over them where they are listed."""
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
        finite: counts what is not finite in it.
    """

    pipe: Pipeline
    arguments: Mapping[str, Any]
    trace: Trace
    finite: FiniteProbe

    @property
    def pipeline_scale(self) -> float:
        """The number by which the pipeline is asked for its guidance scale."""
        return float(self.arguments.get(TRUE_SCALE, self.arguments[SCALE]))

    def __call__(self) -> Made:
        """Call the pipeline; what comes back was not looked at yet."""
        output = invoke(self.pipe, self.arguments)
        made = made_by(
            type(self.pipe).__name__,
            output,
            decoded=self.arguments["output_type"] != OUTPUT_TYPES["latent"],
            pairs=len(self.arguments["generator"]),
        )
        self.trace.require_complete()
        return made

    def require_finite(self, made: Made) -> None:
        """Refuse what a call made, unless its latents and its images are finite.

        Raises:
            NotFinite: they are not.
        """
        is_latent = self.arguments["output_type"] == OUTPUT_TYPES["latent"]
        self.finite.require(made.images, kind="latent" if is_latent else made.kind)

    def judgeable(self) -> Float[Tensor, "n ..."]:
        """The images or latents of a call, of which each can be judged.

        Raises:
            NotFinite: as `require_finite` says.
            ValueError: a safety checker put a placeholder in the place of an image.
        """
        made = self()
        self.require_finite(made)
        if any(made.flagged):
            raise ValueError(
                f"the safety checker replaced {sum(made.flagged)} of {len(made.flagged)} images: "
                "a placeholder cannot be judged (safety_checker = false leaves the checker out)"
            )
        return made.images


@contextmanager
def ready(
    pipe: Pipeline,
    call: Call,
    *,
    output: str = "image",
    listeners: Sequence[Listener] = (),
    sequential: bool = False,
    copies_weights: bool = False,
) -> Iterator[Ready]:
    """Put a pipeline under a call's variant, for the length of a block.

    Args:
        pipe: a guided pipeline.
        call: what will run.
        output: what is asked for, by a name of `OUTPUT_TYPES`.
        listeners: as `guided_by` takes them.
        sequential: as `guided_by` takes it.
        copies_weights: as `applied` takes it.

    Yields:
        What runs the call.

    Raises:
        ValueError: as `applied` says.
    """
    arguments = call.arguments(pipe) | {"output_type": OUTPUT_TYPES[output]}
    # It comes first: what it takes must not count as a part of a step.
    finite = FiniteProbe()
    with (
        _decoding_watched(pipe, finite),
        safety_checker(pipe, on=call.generation.safety_checker),
        applied(
            pipe,
            call.variant,
            guidance_scale=call.guidance_scale,
            num_steps=call.generation.num_steps,
            listeners=[finite, *listeners],
            sequential=sequential,
            copies_weights=copies_weights,
        ) as trace,
    ):
        yield Ready(pipe, arguments, trace, finite)


@contextmanager
def _decoding_watched(pipe: Pipeline, finite: FiniteProbe) -> Iterator[None]:
    """Let a probe see what the autoencoder decodes, where there is one."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "decode"):
        yield
        return

    def watched(original: Callable[..., Any]) -> Callable[..., Any]:
        def decode(*args: Any, **kwargs: Any) -> Any:
            out = original(*args, **kwargs)
            finite.decoded(first_tensor(out))
            return out

        return decode

    with wrapped(vae, "decode", watched):
        yield


def generate(pipe: Pipeline, call: Call, **how: Any) -> Float[Tensor, "n ..."]:
    """The images or latents of a call; further arguments as `ready` takes them.

    Raises:
        NotFinite, ValueError: they cannot be judged, as `Ready.judgeable` says.
    """
    with ready(pipe, call, **how) as run:
        return run.judgeable()
