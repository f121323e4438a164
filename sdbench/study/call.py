"""The one place where a pipeline is called: a variant, on some (prompt, seed) pairs."""

from __future__ import annotations

from typing import Any

import torch

from sdbench.study.study import Study
from sdbench.study.units import Unit
from sdbench.variants.guidance import guidance_arguments


def call_arguments(study: Study, unit: Unit, pipe: Any) -> dict[str, Any]:
    """The arguments of one pipeline call; each image has its own generator, so it does not depend on its batch."""
    sizes = {"height": study.height, "width": study.width}
    rows, negative = len(unit.pairs), study.negative_prompt
    return {
        **study.arguments,
        **unit.variant.arguments,
        **{name: value for name, value in sizes.items() if value is not None},
        **guidance_arguments(pipe, unit.guidance_scale, rows=rows, negative_prompt=negative),
        "prompt": [prompt for _, prompt, _ in unit.pairs],
        "generator": [torch.Generator("cpu").manual_seed(seed) for _, _, seed in unit.pairs],
        "num_inference_steps": unit.num_steps,
    }
