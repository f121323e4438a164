"""Whether the clock's intervals hold, by simulation (`python -m benchmarks.clock_coverage`).

Made-up slices of known work suffer noise on the timeline that all calls of a round share. Their
times are taken as those of real calls are: as sums of calls that follow each other, as sums in
lockstep, and from slices in lockstep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import stdtrit

from sdbench.records.slices import Array, by_kind, by_step, held, location, pairs
from sdbench.report.tables.cells import markdown_lines

REPEATS = (6, 8, 12)
VARIANTS = (4, 8, 30)
STEPS = (12, 25, 50)
DRAWS = 300
BLOCK = 20  # draws in which turns come in the same order
UNGUIDED = 0.55  # time of an unguided step; a guided one takes 1
TEXT, DECODING = 0.5, 1.5  # of a call, in guided steps
AROUND = 0.12  # standard deviation of the logarithm of what is around a loop, besides the noise
SCATTER = 0.02  # the same of a step, besides the noise

DIFFERENT = 7  # variants that differ in kind; all others are like one of them
FORMATS = {"half_width": "{:.2f}", "bias": "{:+.2f}", "coverage": "{:.1%}", "least": "{:.1%}"}

Integers = NDArray[np.int64]


class Work(NamedTuple):
    """What the calls of a variant do.

    Attributes:
        name: of the variant.
        cost: of every step, where a guided one is 1: repeats steps.
        kinds: of the steps, likewise; None of an accelerator, whose rows do not tell.
    """

    name: str
    cost: Array
    kinds: Integers | None


def works(variants: int, steps: int, repeats: int, generator: np.random.Generator) -> list[Work]:
    """The baseline and others: masks of several shares, half the steps, an accelerator, draws."""

    def masked(name: str, guided: NDArray[np.bool_]) -> Work:
        mask = np.broadcast_to(guided, (repeats, guided.shape[-1]))
        return Work(name, np.where(mask, 1.0, UNGUIDED), mask.astype("int64"))

    place = np.arange(steps)
    cached = np.where(place % 3 == 0, 1.05, 0.4)  # every third step is run in full
    drawn = generator.permuted(np.broadcast_to(place < steps // 2, (repeats, steps)), axis=1)
    several = [
        masked("cfg", place >= 0),
        masked("last:20%", place < round(0.8 * steps)),
        Work("deepcache:3", np.broadcast_to(cached, (repeats, steps)), None),
        masked(f"steps:{steps // 2}", place[: steps // 2] >= 0),
        masked("last:50%", place < steps // 2),
        masked("unguided", place < 0),
        masked("random:50%", drawn),
    ]
    shares = np.linspace(0, 1, variants)[len(several) :]
    more = [masked(f"last:{share:.0%}", place < round((1 - share) * steps)) for share in shares]
    return [*several, *more][:variants]


def _independent(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    return 0.05 * generator.standard_normal(shape)


def _drift(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    return np.cumsum(0.006 * generator.standard_normal(shape), axis=1)


def _autoregressive(slices: float) -> Callable[[tuple[int, int], np.random.Generator], Array]:
    """A first-order process that forgets in so many slices."""
    kept = math.exp(-1 / slices)

    def noise(shape: tuple[int, int], generator: np.random.Generator) -> Array:
        moved = generator.standard_normal(shape) * math.sqrt(1 - kept**2)
        moved[:, 0] /= math.sqrt(1 - kept**2)
        result: Array = 0.08 * lfilter([1], [1, -kept], moved, axis=1)
        return result

    return noise


def _two_states(slices: float) -> Callable[[tuple[int, int], np.random.Generator], Array]:
    """A machine that is half as slow again for so many slices at a time."""

    def noise(shape: tuple[int, int], generator: np.random.Generator) -> Array:
        flips = generator.random(shape) < 1 / slices
        flips[:, 0] = generator.random(shape[0]) < 0.5
        return np.where(np.cumsum(flips, axis=1) % 2, math.log(1.5), 0.0)

    return noise


def _spikes(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    return np.log1p((generator.random(shape) < 0.03) * generator.exponential(4, shape))


def _bursts(shape: tuple[int, int], generator: np.random.Generator) -> Array:
    begun = (generator.random(shape) < 0.01) * generator.exponential(3, shape)
    result: Array = np.log1p(lfilter([1], [1, -0.7], begun, axis=1))
    return result


NOISES: dict[str, Callable[[tuple[int, int], np.random.Generator], Array]] = {
    "independent": _independent,
    "drift": _drift,
    "AR(1), 60 slices": _autoregressive(60),
    "AR(1), 5 slices": _autoregressive(5),
    "two states, 40 slices": _two_states(40),
    "two states, 5 slices": _two_states(5),
    "spikes": _spikes,
    "bursts": _bursts,
}
"""Logarithms of the factors by which slices of a timeline are slower: draws slices."""


class Times(NamedTuple):
    """Seconds of a variant's slices in a number of draws.

    Attributes:
        steps: draws repeats steps
        around: of text encoding and decoding: draws repeats
    """

    steps: Array
    around: Array


def simulated(
    chosen: Sequence[Work], noise: str, draws: int, generator: np.random.Generator, *, turns: bool
) -> list[Times]:
    """Times of calls in lockstep, or one after another."""
    repeats = len(chosen[0].cost)
    places = [_places(chosen, repeat, generator, turns=turns) for repeat in range(repeats)]
    length = sum(work.cost.shape[1] + 2 for work in chosen)
    slower = NOISES[noise]((draws, repeats * length), generator)
    slower = slower.reshape(draws, repeats, length)

    found = []
    for number, work in enumerate(chosen):
        place = np.stack([of_repeat[number] for of_repeat in places])
        own = np.exp(np.take_along_axis(slower, place[None], axis=-1))
        spread = generator.standard_normal(own.shape)
        steps = work.cost * own[..., 1:-1] * np.exp(SCATTER * spread[..., 1:-1])
        ends = own[..., [0, -1]] * np.exp(AROUND * spread[..., [0, -1]])
        found.append(Times(steps, ends @ np.array([TEXT, DECODING])))
    return found


def _places(
    chosen: Sequence[Work], repeat: int, generator: np.random.Generator, *, turns: bool
) -> list[Integers]:
    """The places on a repeat's timeline of the slices of every variant, text and decoding too."""
    counts = [work.cost.shape[1] + 2 for work in chosen]
    number = np.repeat(np.arange(len(chosen)), counts)
    if turns:
        # The call of least progress has its turn, and chance decides between equals.
        progress = np.concatenate([np.r_[-1, np.arange(n - 1) / (n - 2)] for n in counts])
        order = np.lexsort([generator.random(len(number)), progress])
    else:
        order = np.argsort((number - repeat) % len(chosen), kind="stable")
    place = np.empty(len(number), "int64")
    place[order] = np.arange(len(number))
    return np.split(place, np.cumsum(counts)[:-1])


class Ratios(NamedTuple):
    """What a way of taking times says of a variant.

    Attributes:
        ratios: to the baseline: draws repeats.
        variant: whose.
        truth: by repeat.
    """

    ratios: Array
    variant: str
    truth: Array


def from_slices(work: Work, own: Times, baseline: Times) -> tuple[Array, Array]:
    """Ratios of times of loops and of calls, from slices: draws repeats."""
    count = baseline.steps.shape[-1]
    paired = pairs(own.steps, baseline.steps)
    if work.kinds is None:
        loop = by_step(paired) / count
    else:
        repeats = [
            by_kind(paired._replace(logs=paired.logs[:, at]), kinds)
            for at, kinds in enumerate(work.kinds)
        ]
        loop = np.stack(repeats, axis=1) / count
    baseline_s = count * np.exp(location(np.log(baseline.steps)))
    around = held(own.around / baseline_s), held(baseline.around / baseline_s)
    return loop, (loop + around[0]) / (1 + around[1])


def from_sums(own: Times, baseline: Times) -> tuple[Array, Array]:
    """The same from sums."""
    loops = own.steps.sum(-1), baseline.steps.sum(-1)
    return loops[0] / loops[1], (loops[0] + own.around) / (loops[1] + baseline.around)


@dataclass(frozen=True)
class Held:
    """How the intervals of one variant's ratio did, all in points of the saving."""

    variant: str
    bias: float
    half_width: float
    coverage: float


def intervals(ratios: Array, truth: Array, variant: str) -> Held:
    """Student's intervals of draws: draws repeats."""
    logs = np.log(ratios)
    repeats = logs.shape[1]
    true = float(np.log(truth).mean())
    centre = logs.mean(axis=1)
    half = stdtrit(repeats - 1, 0.975) * logs.std(axis=1, ddof=1) / math.sqrt(repeats)
    points = 100 * math.exp(true)
    return Held(
        variant,
        bias=points * float((true - centre).mean()),
        half_width=points * float(half.mean()),
        coverage=float((np.abs(centre - true) <= half).mean()),
    )


def judged(
    noise: str, *, repeats: int, variants: int, steps: int, draws: int, seed: int = 0
) -> Iterator[tuple[str, str, Held]]:
    """Way of taking times, figure ("loop" or "call"), and how its intervals did, by variant.

    Of a large round it is the variants that a small one has, too: the others are more of the same.
    """
    generator = np.random.default_rng(seed)
    blocks = [
        _ratios(noise, works(variants, steps, repeats, generator), generator)
        for _ in range(math.ceil(draws / BLOCK))
    ]
    for key, (_, variant, truth) in blocks[0].items():
        way, figure = key[:2]
        every = np.concatenate([block[key].ratios for block in blocks])
        yield way, figure, intervals(every, truth, variant)


def _ratios(
    noise: str, chosen: Sequence[Work], generator: np.random.Generator
) -> dict[tuple[str, str, str], Ratios]:
    """Ratios of times by way, figure and variant, of a block of draws."""
    alone = simulated(chosen, noise, BLOCK, generator, turns=False)
    turns = simulated(chosen, noise, BLOCK, generator, turns=True)
    steps = chosen[0].cost.shape[1]
    around = TEXT + DECODING

    found = {}
    for number, work in list(enumerate(chosen))[1:DIFFERENT]:
        loop = work.cost.sum(axis=1) / steps
        truths = {"loop": loop, "call": (steps * loop + around) / (steps + around)}
        ways = {
            "calls, sums": from_sums(alone[number], alone[0]),
            "lockstep, sums": from_sums(turns[number], turns[0]),
            "lockstep, slices": from_slices(work, turns[number], turns[0]),
        }
        for way, ratios in ways.items():
            for (figure, truth), own in zip(truths.items(), ratios, strict=True):
                found[way, figure, work.name] = Ratios(own, work.name, truth)
    return found


def table(
    noises: Sequence[str] = tuple(NOISES),
    *,
    repeats: Sequence[int] = REPEATS,
    variants: Sequence[int] = VARIANTS,
    steps: Sequence[int] = STEPS,
    draws: int = DRAWS,
) -> pd.DataFrame:
    """How intervals did by noise, repeats and way, over all sizes of rounds.

    Returns:
        `noise`, `repeats`, `way`, `figure`; the mean `half_width` over variants and sizes, the
        `bias` of the worst (both in points of the saving); the mean `coverage`, its `least`, and
        `of` which variant and size that is.
    """
    rows = []
    for noise, count in product(noises, repeats):
        found: dict[tuple[str, str], list[tuple[Held, str]]] = {}
        for size, length in product(variants, steps):
            held = judged(noise, repeats=count, variants=size, steps=length, draws=draws)
            for way, figure, own in held:
                whose = f"{own.variant} of {size}, {length} steps"
                found.setdefault((way, figure), []).append((own, whose))
        rows += [[noise, count, *key, *_summary(held)] for key, held in found.items()]
    names = ["noise", "repeats", "way", "figure", "half_width", "bias", "coverage", "least", "of"]
    return pd.DataFrame(rows, columns=names)


def _summary(found: Sequence[tuple[Held, str]]) -> list[float | str]:
    """Mean half width, worst bias, mean and least coverage, and whose that is."""
    every = [held for held, _ in found]
    least, whose = min(found, key=lambda one: one[0].coverage)
    return [
        float(np.mean([held.half_width for held in every])),
        max((held.bias for held in every), key=abs),
        float(np.mean([held.coverage for held in every])),
        least.coverage,
        whose,
    ]


def main(
    draws: Annotated[int, typer.Option(help="studies of every kind")] = DRAWS,
    noise: Annotated[list[str] | None, typer.Option(help="; ".join(NOISES))] = None,
    repeats: Annotated[list[int] | None, typer.Option(help="6, 8 and 12 by default")] = None,
) -> None:
    """Print the coverage of the clock's intervals of 95 %."""
    found = table(noise or tuple(NOISES), repeats=repeats or REPEATS, draws=draws)
    heading = [str(name).replace("_", " ") for name in found]
    cells = [
        [FORMATS.get(str(name), "{}").format(value) for name, value in row.items()]
        for row in found.to_dict("records")
    ]
    typer.echo(markdown_lines([heading, ["---"] * len(heading), *cells]))


if __name__ == "__main__":
    typer.run(main)
