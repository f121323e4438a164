"""What the regression benchmark finds, by simulation (`python -m benchmarks.power`).

Made-up times are judged by the code that judges real ones, with the usual limits. The noise of a
ratio is that of the variant's time and of the baseline's, which all variants of a run share.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from sdbench.analysis.timing import USUAL, Array, repeats_needed, verdicts, welch
from sdbench.report.tables.cells import markdown_lines

VARIANTS = 5  # ratios of the benchmark
SLOWDOWNS = (0.03, 0.05, 0.10, 0.25)
SPREADS = (0.01, 0.02, 0.05, 0.127)
REPEATS = (6, 10, 20, 40)
FEW = 10  # repeats of the runs that name a number of repeats
BLOCK = 2**22  # times that are in memory at once


@dataclass(frozen=True)
class Noise:
    """How the times of a run spread.

    Args:
        spread: standard deviation of the logarithm of one ratio.
        kind: "normal"; "laplace"; "mixed", which is normal, and three times as wide in a tenth of
            the repeats; "t5" or "t3", Student's t, the latter of infinite kurtosis; "lognormal",
            which is skewed.
    """

    spread: float
    kind: str = "normal"

    def ratios(self, runs: int, repeats: int, generator: np.random.Generator) -> Array:
        """Logarithms of ratios of the same code: (runs, variants, repeats)."""
        own = _UNIT[self.kind]((runs, VARIANTS, repeats), generator)
        baseline = _UNIT[self.kind]((runs, 1, repeats), generator)
        return self.spread / math.sqrt(2) * (own - baseline)


def _mixed(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    width = np.where(generator.random(shape) < 0.1, 3.0, 1.0)
    return generator.standard_normal(shape) * width / math.sqrt(0.9 + 0.1 * 9)


def _lognormal(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    sigma = 0.8
    variance = math.exp(sigma**2)
    centred = generator.lognormal(sigma=sigma, size=shape) - math.sqrt(variance)
    return centred / math.sqrt((variance - 1) * variance)


_UNIT: dict[str, Callable[[tuple[int, ...], np.random.Generator], Array]] = {
    "normal": lambda shape, generator: generator.standard_normal(shape),
    "laplace": lambda shape, generator: generator.laplace(size=shape) / math.sqrt(2),
    "mixed": _mixed,
    "t5": lambda shape, generator: generator.standard_t(5, shape) / math.sqrt(5 / 3),
    "t3": lambda shape, generator: generator.standard_t(3, shape) / math.sqrt(3),
    "lognormal": _lognormal,
}
"""Noise of mean 0 and standard deviation 1."""


def judged(
    noise: Noise, repeats: int, *, slowdown: float = 0.0, runs: int, seed: int = 0
) -> NDArray[np.str_]:
    """Verdicts of pairs of runs, of which the later is slower in its first variant.

    Args:
        noise: of both runs.
        repeats: of each run.
        slowdown: relative.
        runs: number of pairs.
        seed: of the noise.

    Returns:
        (runs, variants), as `sdbench.analysis.timing.verdicts` gives them.
    """
    generator = np.random.default_rng(seed)
    block = max(1, BLOCK // (VARIANTS * repeats))
    told = []
    for start in range(0, runs, block):
        size = min(block, runs - start)
        before = noise.ratios(size, repeats, generator)
        after = noise.ratios(size, repeats, generator)
        after[:, 0] += math.log1p(slowdown)
        told.append(verdicts(welch(before, after)))
    return np.concatenate(told)


def found(noise: Noise, repeats: int, *, slowdown: float, runs: int, seed: int = 0) -> float:
    """Share of pairs of runs in which the slower variant is a regression."""
    told = judged(noise, repeats, slowdown=slowdown, runs=runs, seed=seed)
    return float((told[:, 0] == "regression").mean())


def named(noise: Noise, *, runs: int, repeats: int = FEW, seed: int = 0) -> Counter[int]:
    """How often pairs of runs of a few repeats name each number of repeats that would decide."""
    generator = np.random.default_rng(seed)
    before, after = (noise.ratios(runs, repeats, generator)[:, 0] for _ in range(2))
    tests = welch(before, after)
    pairs = zip(tests.spread.tolist(), tests.freedom.tolist(), strict=True)
    return Counter(repeats_needed(*pair, VARIANTS) for pair in pairs)


def found_as_named(noise: Noise, numbers: Counter[int]) -> float:
    """Share of slowdowns of the threshold's size that further runs, of these repeats, find."""
    hits = sum(
        runs * found(noise, repeats, slowdown=USUAL.threshold, runs=runs, seed=repeats)
        for repeats, runs in numbers.items()
    )
    return hits / numbers.total()


def power_table(kind: str, *, runs: int) -> list[list[str]]:
    """Lines of what is found by spread and repeats, and of what two runs of the same code give."""
    heads = [f"finds {slowdown:.0%}" for slowdown in SLOWDOWNS]
    lines = [["spread", "repeats", *heads, "same code: alarms", "same code: passes"]]
    for spread in SPREADS:
        noise = Noise(spread, kind)
        for repeats in REPEATS:
            told = judged(noise, repeats, runs=runs)
            alarms = np.isin(told, ["regression", "improvement"]).any(axis=1).mean()
            passes = np.isin(told, ["same", "improvement"]).all(axis=1).mean()
            shares = [found(noise, repeats, slowdown=size, runs=runs) for size in SLOWDOWNS]
            cells = [f"{share:.1%}" for share in (*shares, alarms, passes)]
            lines.append([f"{spread:.1%}", str(repeats), *cells])
    return lines


def repeats_table(*, runs: int) -> list[list[str]]:
    """Lines of the repeats that would decide, and what they find, by the noise.

    Once the spread is given, and once it is what a few repeats say.
    """
    found_head = f"finds {USUAL.threshold:.0%}"
    after = f"after {FEW} repeats (median)"
    lines = [["noise", "spread", "would decide", found_head, after, found_head]]
    for kind in _UNIT:
        for spread in SPREADS:
            noise = Noise(spread, kind)
            given = repeats_needed(spread, math.inf, VARIANTS)
            numbers = named(noise, runs=runs)
            median = np.median(list(numbers.elements()))
            shares = (
                found(noise, given, slowdown=USUAL.threshold, runs=runs),
                found_as_named(noise, numbers),
            )
            cells = [str(given), f"{shares[0]:.1%}", f"{median:.0f}", f"{shares[1]:.1%}"]
            lines.append([kind, f"{spread:.1%}", *cells])
    return lines


def main(
    runs: Annotated[int, typer.Option(help="pairs of runs behind every figure")] = 2000,
    kind: Annotated[str, typer.Option(help=f"of the noise: {', '.join(_UNIT)}")] = "normal",
) -> None:
    """Print which slowdowns the benchmark finds, and what the repeats that it names find."""
    if kind not in _UNIT:
        raise typer.BadParameter(f"there is no noise '{kind}'; there are {', '.join(_UNIT)}")
    for head, *lines in (power_table(kind, runs=runs), repeats_table(runs=runs)):
        typer.echo(markdown_lines([head, ["---"] * len(head), *lines]) + "\n")


if __name__ == "__main__":
    typer.run(main)
