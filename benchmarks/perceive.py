"""Whether a blind test is judged rightly: simulated observers of known acuity.

`python -m benchmarks.perceive` prints coverage, false detections and power, in about 20 minutes.
The observers are programs; nothing here says anything about people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.observers import CLEAR_DPRIME, Observer, right_answers
from sdbench.analysis.paired_tests import LEVEL
from sdbench.analysis.perception.detection import SEEN, exact_detections
from sdbench.analysis.perception.exact import above_chance, dprime, exact_ends, power_of, share_of
from sdbench.analysis.perception.mixed import mixed_shares
from sdbench.analysis.perception.people import kept_answers
from sdbench.analysis.perception.preference import scores
from sdbench.analysis.perception.psychometric import psychometric, weibull
from sdbench.analysis.perception.settings import Settings
from sdbench.records.names import CLEAR, IDENTICAL, TEST

EXPERIMENTS = 500
TRIALS = 48
MODES = ("reference", "abx")

Array = NDArray[np.float64]


class Coverage(NamedTuple):
    """What was simulated, and the share of experiments whose interval holds the truth."""

    what: str
    held: float
    experiments: int


def true_share(d: float, mode: str, observer: Observer) -> float:
    """The share of right answers of an observer without a liking for a side."""
    return float((1 - observer.lapse) * share_of(d, mode) + observer.lapse / 2)


def share_coverage(
    mode: str, d: float, lapse: float, *, trials: int, experiments: int, seed: int = 0
) -> tuple[float, float]:
    """Coverage of the intervals of a share and of d', of observers of one acuity."""
    observer = Observer(lapse=lapse)
    generator = np.random.default_rng([seed, 1])
    right = right_answers(np.full((experiments, trials), d), mode, observer, generator).sum(1)
    lo, hi = exact_ends(right, np.full(experiments, trials))
    truth = true_share(d, mode, observer)
    of_share = float(((lo <= truth) & (truth <= hi)).mean())

    # Of d' each distinct count is inverted once.
    counts, place = np.unique(right, return_inverse=True)
    ends = np.array(
        [
            dprime(end[[np.flatnonzero(right == count)[0] for count in counts]], mode)
            for end in (lo, hi)
        ]
    )[:, place]
    sought = float(dprime(np.array([truth]), mode)[0])
    held = (ends[0] <= sought + 1e-9) & (sought <= ends[1] + 1e-9)
    return of_share, float(held.mean())


def design(
    apart: dict[str, float],
    observers: Sequence[Observer],
    *,
    mode: str = "reference",
    trials: int = TRIALS,
    pairs: int = 16,
) -> pd.DataFrame:
    """The trials of a test as the analysis takes answers, without these.

    Args:
        apart: the d' of every variant.
        observers: who will answer.
        mode: of the test.
        trials: of variants, for each observer.
        pairs: of prompt and seed.

    Returns:
        The columns that the analysis reads, and `dprime` as each observer sees it.
    """
    catch = Settings(variants=tuple(apart), trials=trials).catch_trials
    names = [*islice(cycle(apart), trials), *["other"] * catch, *["cfg"] * catch]
    kinds = [*[TEST] * trials, *[CLEAR] * catch, *[IDENTICAL] * catch]
    places = np.arange(len(kinds))
    one = pd.DataFrame({"kind": kinds, "variant": names, "prompt_id": places % pairs})
    clear = one["kind"] == CLEAR
    sight = one["variant"].map(apart).where(one["kind"] == TEST, 0.0)
    of_each = [
        one.assign(
            person=f"simulated-{number:02d}",
            dprime=(observer.acuity * sight).where(~clear, CLEAR_DPRIME),
        )
        for number, observer in enumerate(observers)
    ]
    return pd.concat(of_each, ignore_index=True).assign(
        mode=mode, simulated=True, seed=0, chosen="A", response_s=1.0
    )


def answered(
    trials: pd.DataFrame, observers: Sequence[Observer], generator: np.random.Generator
) -> pd.DataFrame:
    """A design with answers: `correct` says whether each is right."""
    mode = str(trials["mode"].iloc[0])
    parts = np.split(trials["dprime"].to_numpy(float), len(observers))
    right = [
        right_answers(part, mode, observer, generator)
        for part, observer in zip(parts, observers, strict=True)
    ]
    return trials.assign(correct=pd.array(np.concatenate(right), dtype="boolean"))


def detected(
    apart: dict[str, float],
    observers: Sequence[Observer],
    *,
    mode: str = "reference",
    trials: int = TRIALS,
    experiments: int = EXPERIMENTS,
    seed: int = 0,
) -> tuple[float, float]:
    """How often a variant is called seen: any of them, and the first."""
    generator = np.random.default_rng([seed, 2])
    some = first = 0
    asked = design(apart, observers, mode=mode, trials=trials)
    for _ in range(experiments):
        kept = kept_answers(answered(asked, observers, generator))
        if kept.empty:  # a lone observer who failed the catch trials
            continue
        verdicts = exact_detections(kept).set_index("variant")["verdict"]
        seen = verdicts[list(apart)] == SEEN
        some += bool(seen.any())
        first += bool(seen.iloc[0])
    return some / experiments, first / experiments


def blind_detections(
    observer: Observer, *, trials: int, variants: int, experiments: int, seed: int = 0
) -> float:
    """How often some variant is called seen by observers who see none, counted alone.

    Args:
        observer: of acuity 0 or not: nothing differs here.
        trials: of each variant, of all observers together.
        variants: number of them.
        experiments: number of them.
        seed: of all.
    """
    generator = np.random.default_rng([seed, 6])
    shape = (experiments, variants, trials)
    right = right_answers(np.zeros(shape), "reference", observer, generator).sum(-1)
    least = above_chance(right, trials).min(axis=1)
    return float((np.minimum(1, variants * least) < LEVEL).mean())


def mixed_coverage(
    people: int,
    pairs: int,
    spread: tuple[float, float],
    *,
    mean: float = 1.0,
    experiments: int,
    seed: int = 0,
) -> float:
    """Coverage of the mixed model's interval, of people and pairs that differ by known spreads."""
    generator = np.random.default_rng([seed, 3])
    held = 0
    for _ in range(experiments):
        row = mixed_shares(crossed(people, pairs, spread, mean, generator)).iloc[0]
        held += row["mixed_lo"] <= expit(mean) <= row["mixed_hi"]
    return held / experiments


def crossed(
    people: int,
    pairs: int,
    spread: tuple[float, float],
    mean: float,
    generator: np.random.Generator,
) -> pd.DataFrame:
    """Answers of everybody to every pair, whose log-odds differ by known deviations."""
    person, pair = (axis.ravel() for axis in np.indices((people, pairs)))
    odds = mean + generator.normal(0, spread[0], people)[person]
    odds += generator.normal(0, spread[1], pairs)[pair]
    right = generator.random(len(odds)) < expit(odds)
    columns = {"person": person, "prompt_id": pair, "seed": 0, "variant": "a", "correct": right}
    return pd.DataFrame(columns)


def threshold_coverage(
    people: int,
    *,
    spread: tuple[float, float] = (0.0, 0.0),
    lapse: float = 0.0,
    slope: float = 1.5,
    grouped: bool = True,
    experiments: int,
    seed: int = 0,
) -> float:
    """Coverage of the interval of the distance that half notice; the truth is 0.01.

    Args:
        people: each answers 48 trials of the same images.
        spread: deviations of the thresholds' logarithms, between people and between images.
        lapse: share of guesses.
        slope: of the curve.
        grouped: whether the interval knows of people and images.
        experiments: number of them.
        seed: of all.
    """
    generator = np.random.default_rng([seed, 4])
    person, image = (axis.ravel() for axis in np.indices((people, TRIALS)))
    held = 0
    for _ in range(experiments):
        images = np.exp(generator.normal(np.log(0.01), 1.2, TRIALS))
        of_people, of_images = (
            np.exp(generator.normal(0, deviation, count))
            for deviation, count in zip(spread, (people, TRIALS), strict=True)
        )
        threshold = 0.01 * of_people[person] * of_images[image]
        seen = weibull(images[image], threshold, slope)
        right = generator.random(len(seen)) < 0.5 + 0.5 * (1 - lapse) * seen
        curve = psychometric(images[image], right, (person, image) if grouped else ())
        assert curve is not None
        held += curve.lo <= 0.01 <= curve.hi
    return held / experiments


def score_coverage(*, answers: int, experiments: int, seed: int = 0) -> float:
    """Coverage of the intervals of Bradley-Terry scores, of three variants of known scores."""
    generator = np.random.default_rng([seed, 5])
    truth = {"cfg": 0.0, "a": -0.5, "b": -1.2}
    meetings = [("a", "cfg"), ("b", "cfg"), ("a", "b")]
    held: list[np.bool_] = []
    for _ in range(experiments):
        won = [
            int(generator.binomial(answers, expit(truth[one] - truth[other])))
            for one, other in meetings
        ]
        table = pd.DataFrame(meetings, columns=["variant", "against"])
        found = scores(table.assign(trials=answers, wins=won), "cfg").set_index("variant")
        ends = found[["score_lo", "score_hi"]].to_numpy(float)
        sought = np.array([truth[str(name)] for name in found.index])
        others = sought < 0
        held += list(((ends[:, 0] <= sought) & (sought <= ends[:, 1]))[others])
    return float(np.mean(held))


def everything(experiments: int) -> Iterator[Coverage]:
    """All that is printed."""
    many = 40 * experiments
    for mode in MODES:
        for d, lapse in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.05), (2.0, 0.02)):
            for trials in (48, 288, 576):
                both = share_coverage(mode, d, lapse, trials=trials, experiments=many)
                what = f"{mode}, d' {d:g}, lapses {lapse:g}, {trials} answers"
                yield Coverage(f"share, {what}", both[0], many)
                yield Coverage(f"d', {what}", both[1], many)
    for people, pairs, spread in ((6, 16, (0.5, 0.5)), (12, 24, (0.7, 0.7)), (12, 24, (0.0, 0.0))):
        held = mixed_coverage(people, pairs, spread, experiments=experiments)
        what = f"mixed model, {people} people, {pairs} pairs, deviations {spread[0]:g}"
        yield Coverage(what, held, experiments)
    for people, spread, lapse in (
        (1, (0.0, 0.0), 0.0),
        (6, (0.0, 0.0), 0.04),
        (6, (0.3, 0.5), 0.0),
        (12, (0.3, 0.5), 0.0),
        (12, (0.5, 0.8), 0.0),
    ):
        what = f"half notice, {people} people, deviations {spread}, lapses {lapse:g}"
        for grouped in (True, False):
            held = threshold_coverage(
                people, spread=spread, lapse=lapse, grouped=grouped, experiments=experiments
            )
            yield Coverage(f"{what}, {'' if grouped else 'not '}grouped", held, experiments)
    held = score_coverage(answers=96, experiments=experiments)
    yield Coverage("Bradley-Terry, 96 answers a meeting", held, experiments)


def main(
    experiments: Annotated[int, typer.Option(help="of each kind")] = EXPERIMENTS,
    coverage: Annotated[bool, typer.Option(help="print the coverage of intervals, too")] = True,
) -> None:
    """Print coverage, false detections and power."""
    if coverage:
        typer.echo("| what | held | experiments |\n| --- | ---: | ---: |")
        for row in everything(experiments):
            typer.echo(f"| {row.what} | {row.held:.3f} | {row.experiments} |")

    typer.echo("\n| who | called seen | experiments |\n| --- | ---: | ---: |")
    for what, options in _detections():
        some, _ = detected(**options, experiments=experiments)
        typer.echo(f"| {what} | {some:.3f} | {experiments} |")

    for bias in (0.0, 1.0):
        observer = Observer(bias=bias)
        many = 40 * experiments
        some = blind_detections(observer, trials=144, variants=2, experiments=many)
        what = f"blind, counted alone, liking A by {bias:g}, 6 observers, 2 variants"
        typer.echo(f"| {what} | {some:.3f} | {many} |")

    typer.echo("\n| mode | answers | power at d' = 1 |\n| --- | ---: | ---: |")
    for mode in MODES:
        for trials in (24, 48, 288):
            power = power_of(float(share_of(1.0, mode)), trials)
            typer.echo(f"| {mode} | {trials} | {power:.3f} |")


def _detections() -> Iterator[tuple[str, dict[str, Any]]]:
    """Tests by name, and how they are simulated."""
    blind = {"a": 0.0, "b": 0.0}
    yield "blind, 6 observers, 2 variants", {"apart": blind, "observers": [Observer()] * 6}
    one_sided = [Observer(bias=1.0)] * 6
    yield "blind, liking A, 6 observers, 2 variants", {"apart": blind, "observers": one_sided}
    yield "blind, 1 observer, 1 variant", {"apart": {"a": 0.0}, "observers": [Observer()]}
    for mode in MODES:
        alone = {"apart": {"a": 1.0}, "observers": [Observer()], "mode": mode}
        yield f"d' 1, {mode}, 1 observer, 48 trials of 1 variant", alone


if __name__ == "__main__":
    typer.run(main)
