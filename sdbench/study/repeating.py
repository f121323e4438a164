"""How often a study measures: until its intervals are narrow, and again what was disturbed.

The rule reads what stands in the tables, so that a study which goes on later decides alike. Whether
a round was disturbed is said by the baseline's steps and by what others did
(`sdbench.records.disturbed`), never by a variant's own time. A disturbed round stays in the tables,
marked, and its batch is measured once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sdbench.records.call_times import call_times, in_rounds
from sdbench.records.disturbed import disturbed_rounds
from sdbench.records.names import BASELINE
from sdbench.records.stopping import LOOKS, further, level, looks, precision, widest
from sdbench.study.study import Study
from sdbench.study.units import Shard, Unit, batches_of, possible_units, units

HOPELESS = 0.5
"""Share of disturbed rounds above which none is measured again: others would be disturbed alike."""


def marked(runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The runs, with what is known of disturbance in the rounds of their timed calls.

    Args:
        runs: the table of that name.
        steps: the table of that name.
    """
    disturbed = runs["beside"].astype("string").map(disturbed_rounds(runs, steps))
    return runs.assign(disturbed=disturbed.astype("boolean"))


class Repeating:
    """Says how many repeats every batch gets, given what was measured.

    Attributes:
        repeats: by batch, that are asked for up to now.
        is_settled: whether repeats are enough, so that all times are there.
        possible: identifiers of all calls that there may be.
        widest: the variant whose saving is known worst, and its half width in points; no name
            before the first look.
    """

    def __init__(self, study: Study, shard: Shard | None = None, *, pipeline: str = "") -> None:
        """Begin with the fewest repeats of a study or a shard; `pipeline` is as in `Unit`."""
        self._study = study
        self._shard = shard
        self._pipeline = pipeline
        self._looks = list(looks(study.repeats))
        batches = batches_of(study, shard)
        self.repeats = dict.fromkeys(batches, self._looks[0])
        self.widest = ("", np.inf)
        self.is_settled = False

        numbers = {batch: number for number, batch in enumerate(batches)}
        possible = possible_units(study, shard, pipeline=pipeline)
        self._batch_of = {
            unit.id: numbers[unit.pairs] for unit in possible if unit.phase == "measured"
        }
        self.possible = frozenset(unit.id for unit in possible)

    def stages(self, tables: Callable[[], Mapping[str, pd.DataFrame]]) -> Iterator[list[Unit]]:
        """Lists of calls, of which each holds the ones before it; further ones where rules ask.

        Args:
            tables: `runs` and `steps`, once the last list ran.
        """
        if self._study.is_repeated:
            yield self._timed
            while self._extends(**tables()):
                yield self._timed
            self.is_settled = True
        yield self.units

    @property
    def told(self) -> str:
        """How far the repeats have come, in words for a progress bar."""
        if precision(self._study.repeats) is None:
            return "running"
        if not self.widest[0]:
            return f"running {LOOKS[0]} to {LOOKS[-1]} repeats"
        return f"running, widest interval ±{self.widest[1]:.1f} points"

    @property
    def _timed(self) -> list[Unit]:
        return [unit for unit in self.units if unit.phase != "untimed"]

    @property
    def units(self) -> list[Unit]:
        """All calls that are asked for up to now."""
        return units(self._study, self._shard, pipeline=self._pipeline, repeats=self.repeats)

    def _extends(self, runs: pd.DataFrame, steps: pd.DataFrame) -> bool:
        """Ask for more where the rule does, once all that was asked for is measured.

        Args:
            runs: the table of that name, with every call of `repeats`.
            steps: the table of that name.

        Returns:
            Whether there is more to measure.
        """
        rounds = self._rounds(runs, steps)
        if self._measures_again(rounds):
            return True
        points = precision(self._study.repeats)
        if points is None:
            return False
        ratios = _log_ratios(rounds, self._looks[0], runs, steps)
        self.widest = widest(ratios, level(self._study.repeats))
        return self.widest[1] > points and self._looks_again()

    def _measures_again(self, rounds: pd.DataFrame) -> bool:
        """Ask for as many further repeats of a batch as are missing for its disturbed ones."""
        if _calm(rounds).mean() < 1 - HOPELESS:
            return False
        wanted = self._looks[0]
        calm = _calm(rounds).groupby(level="number").sum()
        before = dict(self.repeats)
        for number, batch in enumerate(self.repeats):
            missing = max(0, wanted - int(calm.get(number, 0)))
            most = wanted + further(wanted, len(before) if in_rounds(rounds) else 1)
            self.repeats[batch] = max(before[batch], min(before[batch] + missing, most))
        return self.repeats != before

    def _looks_again(self) -> bool:
        """Ask for repeats up to the next look, where there is one."""
        look, *later = self._looks
        if later:
            self._looks = later
            more = later[0] - look
            self.repeats = {batch: number + more for batch, number in self.repeats.items()}
        return bool(later)

    def _rounds(self, runs: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
        """Measured calls of the repeats that are asked for, with `number`, that of their batch."""
        known = marked(runs, steps)
        known = known[known["phase"] == "measured"].astype({"repeat": int, "variant": "string"})
        known = known.assign(
            number=known["unit"].astype("string").map(self._batch_of),
            disturbed=known["disturbed"].fillna(False).astype(bool),
        )
        asked = dict(enumerate(self.repeats.values()))
        return known[known["repeat"] < known["number"].map(asked)]


def _calm(rounds: pd.DataFrame) -> pd.Series[bool]:
    """Whether no call of a round was disturbed, by number of the batch and repeat."""
    return ~rounds.groupby(["number", "repeat"])["disturbed"].any()


def _log_ratios(
    rounds: pd.DataFrame, look: int, runs: pd.DataFrame, steps: pd.DataFrame
) -> dict[str, NDArray[np.float64]]:
    """Of every variant's time over the baseline's: one per repeat or round that counts at a look.

    Only calm rounds count where there are enough of them for an interval, of every batch where
    calls took no turns, else all.
    """
    by_round = in_rounds(rounds)
    calm = _calm(rounds)
    of_batches = calm.groupby(level="number").sum()
    enough = (of_batches.sum() if by_round else of_batches.min()) >= LOOKS[0]
    counted = calm[calm] if enough else calm
    place = counted.groupby(level="number").cumcount().rename("place")
    placed = rounds.join(place[place < look], on=["number", "repeat"]).dropna(subset="place")

    # A repeat of several batches is known where all of them are, a round where it is as large as
    # the others.
    names = placed[["place", "number", "variant"]]
    times = call_times(placed, runs, steps).join(names)
    if by_round:
        times = times[placed["batch"] == placed["batch"].max()]
    own = times[times["variant"] != BASELINE].dropna(subset=["latency_s", "baseline_latency_s"])
    groups = own.groupby(["place", *(["number"] if by_round else []), "variant"])
    sums = groups[["latency_s", "baseline_latency_s"]].sum()
    complete = 1 if by_round else rounds["number"].nunique()
    logs = sums[groups.size() == complete].apply(np.log)
    ratios = (logs["latency_s"] - logs["baseline_latency_s"]).groupby(level="variant")
    return {str(variant): values.to_numpy(float) for variant, values in ratios}
