"""What to generate: `Generation`. Nothing opens a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sdbench.study.fields import (
    LARGEST,
    entries,
    require_choice,
    require_json,
    require_optional_text,
    require_optional_whole,
    require_size,
    require_text,
    require_texts,
    require_truth,
    require_whole,
)

MEMORY_FORMATS = (None, "contiguous", "channels_last")

Pair = tuple[str, str, int]
"""Identifier of the prompt, prompt, seed."""
Pairs = tuple[Pair, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What is generated: a model, (prompt, seed) pairs, and how the images come about.

    Args:
        model: a name, hub id or folder, as `sdbench.load` takes it.
        prompts: at least one; each is run with every seed.
        seeds: the noise of a pair is `torch.Generator("cpu").manual_seed(seed)`.
        num_steps: denoising steps asked of the pipeline.
        guidance_scale: w, above 1.
        batch: (prompt, seed) pairs per pipeline call.
        height: image height in pixels; the model's own by default.
        width: image width in pixels.
        dtype: number format of the weights.
        device: where to run; CUDA where there is one, else the CPU.
        random_weights: `model` is an architecture, built without its weights.
        weights_variant: of the model's files, such as "fp16"; as `sdbench.load` takes it.
        negative_prompt: of every image.
        arguments: further arguments of the pipeline's call, such as `guidance_rescale`.
        memory_format: of the denoiser's kernels: "contiguous" or "channels_last"; on the CPU by
            default the faster.
        threads: of torch on the CPU; by default the fastest number.
        safety_checker: leave a pipeline's safety checker on. It replaces images by placeholders,
            which are not judged.
        full_hash: name calls by SHA-256 of the weights instead of by sums of their bytes.

    Raises:
        ValueError: on construction, for anything that could not run.
    """

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    num_steps: int
    guidance_scale: float
    batch: int = 8
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    device: str | None = None
    random_weights: bool = False
    weights_variant: str | None = None
    negative_prompt: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    memory_format: str | None = None
    threads: int | None = None
    safety_checker: bool = False
    full_hash: bool = False

    def __post_init__(self) -> None:
        """Make sequences immutable and check every field."""
        for name in ("prompts", "seeds"):
            object.__setattr__(self, name, entries(name, getattr(self, name)))
        require_texts("prompts", self.prompts)
        for name in ("model", "dtype"):
            require_text(name, getattr(self, name))
        for name in ("device", "negative_prompt", "weights_variant"):
            require_optional_text(name, getattr(self, name))
        for name in ("random_weights", "safety_checker", "full_hash"):
            require_truth(name, getattr(self, name))
        require_json("arguments", self.arguments)

        for name in ("num_steps", "batch"):
            require_whole(name, getattr(self, name), minimum=1)
        require_optional_whole("threads", self.threads)
        require_size(self.height, self.width)
        for seed in self.seeds:
            require_whole("each of seeds", seed, minimum=0, maximum=2**63 - 1)

        scale = self.guidance_scale
        if not isinstance(scale, int | float) or not 1 < scale <= LARGEST:
            raise ValueError(
                f"guidance_scale must be above 1, not {scale!r}: at 1 there is no guidance"
            )
        require_choice("memory_format", self.memory_format, MEMORY_FORMATS)

    @property
    def pairs(self) -> list[Pair]:
        """(prompt_id, prompt, seed) of every image, in order."""
        return [
            (f"{index:03d}", prompt, seed)
            for index, prompt in enumerate(self.prompts)
            for seed in self.seeds
        ]

    @property
    def lists_steps(self) -> bool:
        """Whether `arguments` list the steps, as timesteps or sigmas, instead of `num_steps`."""
        return any(self.arguments.get(name) is not None for name in ("timesteps", "sigmas"))

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a generation by name, without those that a study adds."""
        return {item.name: getattr(self, item.name) for item in fields(Generation)}

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return json.loads(json.dumps(self.settings))
