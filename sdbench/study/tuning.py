"""The control for guidance that is merely weaker: the constant scale whose images are nearest to a schedule's.

For a study it is found on images that are not in it: of its prompts, with other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from sdbench.records.files import first_line
from sdbench.study.call import call_arguments
from sdbench.study.study import Study
from sdbench.study.units import Unit
from sdbench.variants.adapters import applied
from sdbench.variants.controls import matched_schedules
from sdbench.variants.registry import Variant, parse

GRID = 8  # scales from none to the whole that are run; those in between are on the lines through their latents
PAIRS = 16  # that a study tunes on, at most
Pairs = tuple[tuple[str, str, int], ...]


def with_tuned_scales(study: Study, pipe: Any) -> Study:
    """A study with its last controls: for each schedule the constant scale that comes nearest to it.

    Args:
        study: that the pipeline can run, as `prepare` says.
        pipe: a guided pipeline.

    Raises:
        ValueError: a call of the search failed.
    """
    try:
        found = nearest_scales(pipe, study, tunable(study), _other_pairs(study)).values()
    except (ValueError, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(
            f"no control could be tuned: {type(error).__name__}: {first_line(error)}"
        ) from error
    names = [f"scale:{scale:g}" for scale in found if scale is not None]
    return replace(study, variants=tuple(dict.fromkeys((*study.variants, *names))))


def tunable(study: Study) -> list[Variant]:
    """The variants of a study with controls that have a constant scale as one; none where no image is judged."""
    if not study.controls or study.random_weights or study.output != "image":
        return []
    return matched_schedules(study.variants, num_steps=study.num_steps)


def tuning_rows(study: Study) -> float:
    """Denoiser rows that the search for scales evaluates."""
    matched = tunable(study)
    tops = {variant.guidance_scale or study.guidance_scale for variant in matched}
    grid = len(tops) * (2 * GRID + 1) * study.num_steps
    return len(_other_pairs(study)) * (
        grid + sum(variant.rule(study.num_steps).nfe for variant in matched)
    )


def nearest_scales(
    pipe: Any, study: Study, variants: Sequence[Variant], pairs: Pairs
) -> dict[str, float | None]:
    """The constant scale whose latents are nearest to each variant's, by mean squared distance over some pairs.

    Args:
        pipe: a guided pipeline.
        study: its steps, scale, batch and further arguments.
        variants: each is compared with scales up to its own.
        pairs: (prompt_id, prompt, seed) to tune on.

    Returns:
        By the variant's name, to a tenth; None where no guidance, or the whole scale, is the nearest.
    """
    lines: dict[float, Float[np.ndarray, "points values"]] = {}
    found: dict[str, float | None] = {}
    for variant in variants:
        top = variant.guidance_scale or study.guidance_scale
        scales = np.linspace(1.0, top, GRID + 1)
        if top not in lines:
            constant = ["unguided", *(f"scale:{scale:f}" for scale in scales[1:])]
            lines[top] = np.stack([_latents(pipe, study, parse(name), pairs) for name in constant])
        told = round(nearest(lines[top], scales, _latents(pipe, study, variant, pairs)), 1)
        found[variant.name] = told if 1.0 < told < top else None
    return found


def nearest(
    line: Float[np.ndarray, "points values"],
    places: Float[np.ndarray, " points"],
    target: Float[np.ndarray, " values"],
) -> float:
    """Where a target is nearest to the straight pieces through some points.

    Args:
        line: the points, in order.
        places: the number that each stands for; between two of them it is interpolated.
        target: as long as a point.
    """
    starts, pieces = line[:-1], np.diff(line, axis=0)
    along = ((target - starts) * pieces).sum(axis=1) / np.maximum(
        (pieces**2).sum(axis=1), np.finfo(float).tiny
    )
    along = np.clip(along, 0.0, 1.0)
    away = ((starts + along[:, None] * pieces - target) ** 2).sum(axis=1)
    piece = int(np.argmin(away))
    return float(places[piece] + along[piece] * (places[piece + 1] - places[piece]))


def _latents(
    pipe: Any, study: Study, variant: Variant, pairs: Pairs
) -> Float[np.ndarray, " values"]:
    sequential = study.guidance_execution == "sequential"
    found: list[torch.Tensor] = []
    for start in range(0, len(pairs), study.batch):
        unit = Unit(study, variant, pairs[start : start + study.batch], 0, "warmup")
        with applied(pipe, variant, guidance_scale=unit.guidance_scale, sequential=sequential):
            found.append(pipe(**call_arguments(study, unit, pipe), output_type="latent").images)
    return torch.cat(found).flatten().double().cpu().numpy()


def _other_pairs(study: Study) -> Pairs:
    """As many prompts as there are, before a second seed of one."""
    beyond = max(study.seeds) + 1
    by_seed = sorted(study.pairs, key=lambda pair: study.seeds.index(pair[2]))
    return tuple((name, prompt, seed + beyond) for name, prompt, seed in by_seed[:PAIRS])
