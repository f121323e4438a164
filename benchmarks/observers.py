"""Simulated observers of a blind test: programs of known acuity, and never people.

An observer sees each image at a place on one axis, with normal noise of deviation 1, and decides
as signal detection theory says. So shares of right answers come out of the noise and are not put
in. `python -m benchmarks.observers STUDY --variants ... --out DIR` writes files of answers, which
say in every place that they are simulated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from numpy.typing import NDArray

from sdbench.analysis.perception.settings import Settings
from sdbench.analysis.perception.trials import BlindTest, blind_test
from sdbench.cli.values import variant_names
from sdbench.records.answers import FORMAT, Answer, AnswerFile, checksum
from sdbench.records.names import CLEAR, IDENTICAL
from sdbench.records.store import Results, read

CLEAR_DPRIME = 6.0
"""How far apart images are that differ clearly."""
HALF_DPRIME = 0.954
"""The d' at which half notice: a share of 3/4 in the mode "reference"."""
STEEPNESS = 1.0

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observer:
    """A simulated observer.

    Attributes:
        lapse: share of the answers that are guesses, whatever is shown.
        bias: how much nearer A seems than it is; 0 for no liking.
        acuity: by which every d' is multiplied; 0 sees no variant, and clear images all the same.
    """

    lapse: float = 0.0
    bias: float = 0.0
    acuity: float = 1.0


def right_answers(
    dprime: Array, mode: str, observer: Observer, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Whether an observer is right, in trials whose images lie a d' apart.

    Args:
        dprime: of each trial, in any shape.
        mode: "reference" or "abx".
        observer: who answers.
        generator: of noise, sides and guesses.
    """
    shape = dprime.shape
    right_is_a = generator.random(shape) < 0.5
    guess_a = generator.random(shape) < 0.5
    at_a, at_b, at_x = generator.standard_normal((3, *shape))

    # X is at 0 in the mode "reference", and its place is known without noise.
    at_a = at_a + np.where(right_is_a, 0, dprime)
    at_b = at_b + np.where(right_is_a, dprime, 0)
    nearer = at_b - at_a
    if mode == "abx":
        nearer = np.abs(at_b - at_x) - np.abs(at_a - at_x)
    chose_a = np.where(
        generator.random(shape) < observer.lapse, guess_a, nearer + observer.bias > 0
    )
    found: NDArray[np.bool_] = chose_a == right_is_a
    return found


def dprimes(distance: Array, half: float, steepness: float = STEEPNESS) -> Array:
    """The d' of images at a distance, where half notice at a given one."""
    return HALF_DPRIME * (distance / half) ** steepness


def answer_file(
    test: BlindTest,
    person: str,
    dprime_of: Callable[[pd.DataFrame], Array],
    observer: Observer,
    generator: np.random.Generator,
) -> AnswerFile:
    """What a simulated observer answers to a test, in an order and on sides of its own.

    Args:
        test: with right answers, or of preference, where the nearer to the reference fits better.
        person: the code.
        dprime_of: the d' of the trials of variants, given these rows of the test.
        observer: who answers.
        generator: of all that is random.
    """
    trials = test.trials.sample(frac=1, random_state=generator)
    d = np.asarray(dprime_of(trials), dtype=float) * observer.acuity
    d = np.where(trials["kind"] == CLEAR, CLEAR_DPRIME, d)
    d = np.where(trials["kind"] == IDENTICAL, 0.0, d)
    mode = "abx" if test.settings.mode == "abx" else "reference"
    right = right_answers(d, mode, observer, generator)

    # Of preference the image that is compared with is the better one.
    best = trials["right"].fillna((trials["variant_1"] == trials["against"]).astype("Int64"))
    image = np.where(right, best, 1 - best).astype(int)
    sides = generator.integers(2, size=len(trials))
    times = np.exp(generator.normal(7, 0.3, len(trials))).astype(int)
    answers = [
        Answer(int(trial), (int(side), int(1 - side)), "AB"[int(one != side)], int(time))
        for trial, side, one, time in zip(trials["trial"], sides, image, times, strict=True)
    ]
    token = test.settings.token()
    return AnswerFile(Path(person), test.hash, token, person, True, 4.0, tuple(answers))


def written(file: AnswerFile, seed: int) -> str:
    """A file of answers as the page writes one."""
    content: dict[str, Any] = {
        "sdbench_answers": FORMAT,
        "page": file.page,
        "settings": file.settings,
        "seed": seed,
        "person": file.person,
        "simulated": file.simulated,
        "scale": int(file.scale),
        "answers": [
            {
                "trial": answer.trial,
                "shown": list(answer.shown),
                "chosen": answer.chosen,
                "milliseconds": answer.milliseconds,
            }
            for answer in file.answers
        ],
    }
    return json.dumps(content | {"checksum": checksum(content)}, separators=(",", ":"))


def noticing(results: Results, half: float) -> Callable[[pd.DataFrame], Array]:
    """How far apart an observer sees the images of a trial, by their LPIPS to the reference.

    Args:
        results: of the study.
        half: the LPIPS that half of the observers notice.
    """
    images = results.images.drop_duplicates("sha256")
    known = images.set_index("sha256")["lpips"].fillna(0.0).to_dict()

    def found(trials: pd.DataFrame) -> Array:
        both = [dprimes(trials[f"sha256_{side}"].map(known).to_numpy(float), half) for side in "01"]
        tested_first = trials["variant_0"] == trials["variant"]
        return np.where(tested_first, both[0] - both[1], both[1] - both[0])

    return found


def simulated(
    results: Results,
    settings: Settings,
    observers: Sequence[Observer],
    *,
    half: float,
    seed: int = 0,
) -> list[AnswerFile]:
    """Files of observers who notice a distance as they do LPIPS: half of the time at `half`."""
    test = blind_test(results, settings)
    apart = noticing(results, half)
    return [
        answer_file(
            test,
            f"simulated-{number:02d}",
            apart,
            observer,
            np.random.default_rng([seed, number]),
        )
        for number, observer in enumerate(observers, start=1)
    ]


def main(
    study: Annotated[Path, typer.Argument(help="folder of a study")],
    variants: Annotated[str, typer.Option(help="that are tested, with commas")],
    out: Annotated[Path, typer.Option(help="folder for the files of answers")],
    mode: Annotated[str, typer.Option(help="what is asked")] = "reference",
    trials: Annotated[int, typer.Option(help="of variants")] = 48,
    people: Annotated[
        int, typer.Option(help="simulated observers; the last one only guesses")
    ] = 12,
    half: Annotated[float, typer.Option(help="LPIPS that half of the observers notice")] = 0.01,
    seed: Annotated[int, typer.Option(help="of the test and of the observers")] = 0,
) -> None:
    """Write what simulated observers answer to the page of a study."""
    generator = np.random.default_rng([seed, 0])
    observers = [
        Observer(lapse=0.02, acuity=float(acuity))
        for acuity in np.exp(generator.normal(0, 0.3, people - 1))
    ]
    observers.append(Observer(lapse=1.0))
    settings = Settings(mode, tuple(variant_names(variants)), trials, seed)
    files = simulated(read(study), settings, observers, half=half, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    for file in files:
        (out / f"{file.person}.json").write_text(written(file, seed), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
