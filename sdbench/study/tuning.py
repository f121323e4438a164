"""The control for guidance that is merely weaker: a constant scale, nearest to a schedule.

For a study it is found on images that are not in it: of its prompts, with other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float

from sdbench.instruments.finite import NotFinite
from sdbench.models.causes import require_own
from sdbench.models.pipeline import Pipeline
from sdbench.records.files import first_line
from sdbench.records.names import split_name
from sdbench.study.call import Call, generate
from sdbench.study.generation import Generation, Pairs
from sdbench.study.study import Study
from sdbench.variants.controls import in_its_loop, matched_schedules
from sdbench.variants.grammar import parse
from sdbench.variants.variant import Variant

HALVINGS = 3  # of the way from no guidance to the whole, until the scales around are near enough
CONSTANT = "scale"  # the method whose variants are found here
PAIRS = 16  # that a study tunes on, at most


def with_tuned_scales(study: Study, pipe: Pipeline) -> Study:
    """A study with its last controls: for each schedule the constant scale nearest to it.

    Args:
        study: that the pipeline can run, as `prepare` says.
        pipe: a guided pipeline.

    Raises:
        ValueError: a call of the search failed.
    """
    try:
        nearest = nearest_scales(
            pipe,
            study,
            tunable(study),
            _other_pairs(study),
            sequential=study.guidance_execution == "sequential",
        )
    except NotFinite as error:
        raise ValueError(f"the scale of the controls was not found: {error}") from error
    except (ValueError, OSError):
        raise
    except Exception as error:
        require_own(error, "the scale of the controls was not found")
        raise ValueError(
            f"the scale of the controls was not found: {type(error).__name__}: {first_line(error)}"
        ) from error
    loops = {variant.name: in_its_loop(variant) for variant in tunable(study)}
    found = {name: scale for name, scale in nearest.items() if scale is not None}
    return with_scales(study, [f"{CONSTANT}:{found[name]:g}{loops[name]}" for name in found])


def with_scales(study: Study, names: Iterable[str]) -> Study:
    """A study with constant scales among its variants, each once."""
    new = [parse(name) for name in dict.fromkeys(names) if name not in study.variant_names]
    return replace(study, variants=(*study.variants, *new))


def constant_scales(names: Iterable[str]) -> list[str]:
    """Those names that stand for full guidance at a constant scale."""
    return [name for name in names if split_name(name)[0] == CONSTANT]


def tunable(study: Study) -> list[Variant]:
    """The variants of a study that have a constant scale as control.

    There are none where no image is judged.
    """
    if not study.controls or not study.judges_images:
        return []
    return matched_schedules(study.variants, num_steps=study.num_steps)


def tuning_rows(study: Study) -> float:
    """Denoiser rows that the search for scales evaluates."""
    matched = tunable(study)
    loops = {
        (variant.guidance_scale or study.guidance_scale, in_its_loop(variant)): (
            variant.num_steps or study.num_steps
        )
        for variant in matched
    }
    # No guidance, the whole, and a scale for every halving; others lie between their latents.
    grids = sum((1 + 2 * (1 + HALVINGS)) * steps for steps in loops.values())
    own = sum(variant.rule(variant.num_steps or study.num_steps).nfe for variant in matched)
    return len(_other_pairs(study)) * (grids + own)


def nearest_scales(
    pipe: Pipeline,
    generation: Generation,
    variants: Sequence[Variant],
    pairs: Pairs,
    *,
    sequential: bool = False,
) -> dict[str, float | None]:
    """The constant scale whose latents are nearest to each variant's.

    Near is by the mean squared distance over some pairs.

    Args:
        pipe: a guided pipeline.
        generation: its steps, scale, batch and further arguments.
        variants: each is compared with scales up to its own.
        pairs: (prompt_id, prompt, seed) to tune on.
        sequential: evaluate the two halves of a guided step one after the other.

    Returns:
        By the variant's name, to a tenth; None where no guidance, or the whole scale, is the
        nearest.
    """

    def latents(variant: Variant) -> Float[np.ndarray, " values"]:
        return _latents(pipe, generation, variant, pairs, sequential=sequential)

    @cache
    def at(loop: str, scale: float) -> Float[np.ndarray, " values"]:
        constant = "unguided" if scale == 1.0 else f"{CONSTANT}:{scale:f}"
        return latents(parse(constant + loop))

    scale_of: dict[str, float | None] = {}
    for variant in variants:
        top = variant.guidance_scale or generation.guidance_scale
        scale = round(_searched(latents(variant), partial(at, in_its_loop(variant)), top), 1)
        scale_of[variant.name] = scale if 1.0 < scale < top else None
    return scale_of


def _searched(
    target: Float[np.ndarray, " values"],
    at: Callable[[float], Float[np.ndarray, " values"]],
    top: float,
) -> float:
    """The scale, from 1 to the top, whose latents are nearest to a target.

    Scales are run closer and closer around it, and what lies between two of them is interpolated.
    """
    scales = [1.0, top]
    for _ in range(HALVINGS):
        place = nearest(np.stack([at(scale) for scale in scales]), np.array(scales), target)
        around = [pair for pair in pairwise(scales) if pair[0] <= place <= pair[1]]
        widest = max(high - low for low, high in around)
        scales += [(low + high) / 2 for low, high in around if high - low == widest]
        scales.sort()
    return nearest(np.stack([at(scale) for scale in scales]), np.array(scales), target)


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
    starts = line[:-1]
    pieces = np.diff(line, axis=0)
    squared_lengths = np.maximum((pieces**2).sum(axis=1), np.finfo(float).tiny)
    along = ((target - starts) * pieces).sum(axis=1) / squared_lengths
    along = np.clip(along, 0.0, 1.0)

    away = ((starts + along[:, None] * pieces - target) ** 2).sum(axis=1)
    piece = int(np.argmin(away))
    return float(places[piece] + along[piece] * (places[piece + 1] - places[piece]))


def _latents(
    pipe: Pipeline, generation: Generation, variant: Variant, pairs: Pairs, *, sequential: bool
) -> Float[np.ndarray, " values"]:
    """The latents of all pairs, as one long vector."""
    parts = []
    for start in range(0, len(pairs), generation.batch):
        call = Call(generation, variant, pairs[start : start + generation.batch])
        parts.append(generate(pipe, call, output="latent", sequential=sequential))
    return torch.cat(parts).flatten().double().cpu().numpy()


def _other_pairs(study: Study) -> Pairs:
    """As many prompts as there are, before a second seed of one."""
    beyond = max(study.seeds) + 1
    by_seed = sorted(study.pairs, key=lambda pair: study.seeds.index(pair[2]))
    return tuple((name, prompt, seed + beyond) for name, prompt, seed in by_seed[:PAIRS])
