"""Whether a verdict survives a second draw (`python -m benchmarks.verdicts`).

Every two variants of a stored study are a population of paired differences. A plain verdict
of a sample is wrong where the population's mean, or most of its pairs, say the opposite.
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer

from benchmarks.populations import Array, Population, populations
from sdbench.analysis.pairs import NEARER, paired_verdict

METRIC = "lpips"
STUDY = "mini-sd/methods/quality"


class Verdicts(NamedTuple):
    """What samples of all pairs of variants said.

    Attributes:
        pairs: of variants that differ.
        contradictory: of these, where the mean and most images say the opposite of each other.
        words: how often each verdict was given.
        plain: verdicts of "nearer" or "farther".
        wrong: of these.
    """

    pairs: int
    contradictory: int
    words: Counter[str]
    plain: int
    wrong: int


def verdicts(chosen: list[Population], *, prompts: int, draws: int, seed: int = 0) -> Verdicts:
    """Draw samples of every two populations, and hold their verdicts against all 256 pairs."""
    generator = np.random.default_rng(seed)
    index = pd.RangeIndex(prompts, name="prompt_id")
    words: Counter[str] = Counter()
    pairs = contradictory = plain = wrong = 0

    for (*_, first), (*_, second) in combinations(chosen, 2):
        difference = first - second
        if not difference.any():
            continue
        pairs += 1
        sides = _sides(difference)
        contradictory += sides == {-1, 1}
        for _ in range(draws):
            sample = pd.Series(generator.choice(difference, prompts), index)
            verdict = paired_verdict(sample, METRIC, words=NEARER).verdict
            words[verdict] += 1
            if verdict in NEARER:
                plain += 1
                opposite = 1 if verdict == NEARER[0] else -1
                wrong += opposite in sides
    return Verdicts(pairs, contradictory, words, plain, wrong)


def _sides(difference: Array) -> set[int]:
    """On which side of 0 the mean lies, and on which most pairs."""
    return {int(np.sign(difference.mean())), int(np.sign(np.sign(difference).sum()))}


def main(
    prompts: Annotated[int, typer.Option(help="of a sample")] = 128,
    draws: Annotated[int, typer.Option(help="samples of every two variants")] = 20,
) -> None:
    """Print how often a plain verdict of a sample is wrong of its population."""
    chosen = [one for one in populations() if (one.metric, one.study) == (METRIC, STUDY)]
    found = verdicts(chosen, prompts=prompts, draws=draws)
    typer.echo(
        f"{found.pairs} pairs of variants; in {found.contradictory} the mean and most images say "
        f"the opposite. {found.plain} plain verdicts of {found.words.total()}, {found.wrong} wrong."
    )
    for words, count in found.words.most_common():
        typer.echo(f"{count:6} {words}")


if __name__ == "__main__":
    typer.run(main)
