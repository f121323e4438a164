"""Work of a full-size denoiser by place, without running it and without memory for its weights.

It imports no study and no pipeline: counting takes seconds, and so would these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from sdbench.analysis.modules import GUIDED, UNGUIDED
from sdbench.instruments.cost import NoFormula
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.instruments.footprint import faked, meta_denoiser
from sdbench.instruments.layers import Place
from sdbench.instruments.modules import AFTER, ModuleCounter, Work
from sdbench.models.architectures import ARCHITECTURES, VAE_FACTOR
from sdbench.records.schema import frame

STEPS = ((GUIDED, 2), (UNGUIDED, 1))
"""A kind of step, and the denoiser rows that it takes per image."""


def counted(model: str, *, height: int, width: int, batch: int, dtype: torch.dtype) -> pd.DataFrame:
    """FLOPs and bytes of a full-size denoiser by place, without running it.

    Args:
        model: a name in `ARCHITECTURES`.
        height: in pixels.
        width: in pixels.
        batch: images per call.
        dtype: of weights and activations.

    Returns:
        The table `modules` without times.

    Raises:
        NoFormula: an operation has no FLOP formula.
        ValueError: the size does not fit the model.
    """
    denoiser = meta_denoiser(ARCHITECTURES[model])
    part = "unet" if "unet" in ARCHITECTURES[model].networks else "transformer"
    rows: list[dict[str, Any]] = []
    with FakeTensorMode(), torch.device("cpu"):
        fake, _ = faked(denoiser, dtype)
        size: dict[str, Any] = {"height": height, "width": width, "dtype": dtype}
        for step, per_image in STEPS:
            given = arguments(fake, rows=per_image * batch, vae_factor=VAE_FACTOR, **size)
            counter = ModuleCounter({part: fake})
            with counter.call(), torch.no_grad():
                fake(**given)
            if counter.unknown:
                raise NoFormula(f"no FLOP formula for {counter.unknown}")
            rows += [row for _, row in places(step, counter.around[AFTER], (), has_flop=True)]
    return frame("modules", rows)


def places(
    step: str, work: Work, seconds: Iterable[Place], *, has_flop: bool
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Every place of a step, and its row without times."""
    for place in dict.fromkeys([*seconds, *work.moved_bytes, *work.flop]):
        yield (
            place,
            {
                "unit": step,
                "step": step,
                "part": place.part,
                "block": place.block,
                "kind": place.kind,
                "flop": work.flop[place] if has_flop else None,
                "moved_bytes": work.moved_bytes[place],
            },
        )
