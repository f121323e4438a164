"""Whether intervals of distances hold their null (`python -m benchmarks.null_distances`).

Features of drawn scenes are the population. Sets are drawn from it again and again, in the shape of
a study (prompts, each with seeds), and every interval that `sdbench distances` prints is asked
whether it holds the true 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import numpy as np
import pandas as pd
import torch
import typer
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.distribution import frechet_difference, image_features
from sdbench.instruments.kernel import Estimate, Reference, kernel_difference, kernel_distance
from sdbench.models.mini_sd import scenes

Features = Float[Tensor, "n width"]
Draw = Callable[[int], Features]
SHARED = 0.6  # of a model's image that its prompt decides
AWAY = 1.0  # of every feature, in which a model's images differ from scenes


def population(size: int, *, seed: int = 0) -> Features:
    """The reader's features of drawn scenes."""
    rng = np.random.default_rng(seed)
    drawn = scenes.draw(scenes.sample(size, rng, split="test"), rng)
    pixels = torch.from_numpy(drawn).permute(0, 3, 1, 2)
    return torch.cat([image_features(part.float() / 255, "reader") for part in pixels.split(512)])


def references_alone(draw: Draw, prompts: int, seeds: int, size: int) -> dict[str, Estimate]:
    """References against references: the kernel distance, and the difference of two such sets."""
    reference = Reference.of(draw(size))
    # A prompt counts once, however many images it has: here one.
    first, second = draw(prompts), draw(prompts)
    groups = torch.arange(prompts)
    return {
        "kernel distance, references": kernel_distance(first, groups, reference),
        "kernel difference, references": kernel_difference(first, second, groups, reference),
    }


def one_model_twice(draw: Draw, prompts: int, seeds: int, size: int) -> dict[str, Estimate]:
    """Two sets of other seeds of one model, whose images are not like the reference."""
    expected = draw(size)
    groups = torch.arange(prompts).repeat_interleave(seeds)
    by_prompt = AWAY + SHARED * draw(prompts).repeat_interleave(seeds, 0)
    first, second = (by_prompt + (1 - SHARED) * draw(prompts * seeds) for _ in range(2))
    return {
        "kernel difference, one model": kernel_difference(
            first, second, groups, Reference.of(expected)
        ),
        "Fréchet difference, one model": frechet_difference(first, second, expected, groups),
    }


def coverage(
    features: Features, *, draws: int, prompts: int, seeds: int, size: int, seed: int = 0
) -> pd.DataFrame:
    """The share of intervals that hold 0, of those that end below it, and of those above.

    Args:
        features: the population.
        draws: simulated studies.
        prompts: of a study.
        seeds: of every prompt.
        size: rows of the reference.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> Features:
        return features[torch.randint(len(features), (count,), generator=generator)]

    rows = []
    for _ in range(draws):
        for null in (references_alone, one_model_twice):
            found = null(draw, prompts, seeds, size)
            rows += [
                {"interval": name, "below": interval.hi < 0, "above": interval.lo > 0}
                for name, interval in found.items()
            ]
    shares = pd.DataFrame(rows).groupby("interval", sort=False).mean()
    return shares.assign(holds=1 - shares["below"] - shares["above"]).reset_index()


_Draws = Annotated[int, typer.Option(help="simulated studies")]
_Prompts = Annotated[int, typer.Option(help="of a study")]
_Seeds = Annotated[int, typer.Option(help="of every prompt")]
_Size = Annotated[int, typer.Option(help="rows of the reference")]
_Scenes = Annotated[int, typer.Option(help="drawn scenes, of which all sets are drawn")]


def main(
    draws: _Draws = 200,
    prompts: _Prompts = 256,
    seeds: _Seeds = 2,
    size: _Size = 1024,
    drawn: _Scenes = 4096,
) -> None:
    """Print how often every interval holds the true 0."""
    table = coverage(population(drawn), draws=draws, prompts=prompts, seeds=seeds, size=size)
    typer.echo(table.to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    typer.run(main)
