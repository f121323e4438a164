"""A base that is opened as the student of a range of scales, for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdbench.models.guidance_embedding import WIDTH, load_projection
from sdbench.models.pipeline import LoraPipeline, denoiser_of
from sdbench.models.student_layers import KeptWeights, fuse, load_lora, low_rank
from sdbench.models.students import (
    EMBEDDING_FILE,
    LORA_FILE,
    check_base,
    read_card,
    strength_at,
    uses_guidance_input,
)


def open_student(pipe: LoraPipeline, folder: Path) -> None:
    """Make a base the student of a range of scales, for good.

    It then takes w in one pass, as a stock pipeline does. Where a call asks for another w than the
    last, the layers are fused again into the base's own weights, so that a step costs what it costs
    without them. The pipeline is not to be saved: the student's folder is.

    Raises:
        ValueError: a student of another base; in a call, a scale that it was not made for.
    """
    denoiser: Any = denoiser_of(pipe)
    file = folder / LORA_FILE
    card = read_card(file)
    check_base(denoiser, file)

    # The layers are kept here, the base's weights in a file; the pipeline holds neither.
    load_lora(pipe, file)
    layers = low_rank([denoiser])
    kept = KeptWeights(
        [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    )
    pipe.unload_lora_weights()
    if not uses_guidance_input(file):
        load_projection(pipe, denoiser, folder / EMBEDDING_FILE)
        denoiser.register_to_config(time_cond_proj_dim=WIDTH)

    fused_for: float | None = None

    def fuse_for_call(*_: object) -> None:
        nonlocal fused_for
        if pipe.guidance_scale != fused_for:
            share = strength_at(file, card, pipe.guidance_scale)
            kept.restore()
            fuse(layers, share)
            fused_for = pipe.guidance_scale

    denoiser.register_forward_pre_hook(fuse_for_call)
