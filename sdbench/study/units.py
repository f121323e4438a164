"""The calls of a study, in the order in which they run, and the parts that may run apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from itertools import groupby
from typing import NamedTuple

from sdbench.records.stopping import further, looks
from sdbench.records.store import SCHEMA_VERSION
from sdbench.study.call import Call
from sdbench.study.fields import digest
from sdbench.study.generation import Pairs
from sdbench.study.study import Study
from sdbench.variants.variant import Variant

Told = Callable[["Unit", float], None]
"""Gets a call where it starts, and again later, with the share of its steps that it has taken."""
COMPANION = "companion-"
"""How the identifiers of companions begin: they are not on the list of a study's calls."""


@dataclass(frozen=True)
class Unit:
    """Exactly one pipeline call: a variant on one batch of pairs, in one repeat.

    `pipeline` is a digest of what `identity` says of the pipeline that it runs on. A companion is a
    call of the baseline beside which those of other variants are timed, which it names in `beside`.
    """

    study: Study
    variant: Variant
    pairs: Pairs
    repeat: int
    phase: str
    pipeline: str = ""
    beside: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Short hash of everything that decides what the call computes and how it is stored."""
        name = " ".join(filter(None, (self.variant.name, self.variant.content)))
        call = [self.study.shared, self.pipeline, name, self.pairs, self.repeat, self.phase]
        hashed = digest([_code_version(), SCHEMA_VERSION, *call, *self.beside])[:16]
        return f"{COMPANION}{hashed}" if self.beside else hashed

    @property
    def draw(self) -> int | None:
        """The number of the variant's draw that runs; None where it is not drawn several times.

        From repeat to repeat it is the next one.
        """
        numbers = list(self.variant.draws)
        return numbers[self.repeat % len(numbers)] if numbers else None

    @property
    def call(self) -> Call:
        """What the pipeline is asked for."""
        variant = self.variant if self.draw is None else self.variant.draws[self.draw]
        return Call(self.study, variant, self.pairs)

    @property
    def keeps_images(self) -> bool:
        """Whether the images are stored: the first repeat's, and the baseline's second.

        Images repeat exactly, and the baseline's second is the noise floor. Of several draws each
        makes its own.
        """
        if self.phase in ("warmup", "companion"):
            return False
        different = 2 if self.variant.is_baseline else max(1, len(self.variant.draws))
        return self.repeat < different


@cache
def _code_version() -> str:
    return version("sdbench")


class Shard(NamedTuple):
    """One of several parts of a study that run apart, numbered from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def parse_shard(text: str) -> Shard:
    """A shard from `2/8`.

    Raises:
        ValueError: anything else, or a number that is not from 1 to the count.
    """
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = Shard(*map(int, numbers.groups())) if numbers else Shard(0, 0)
    if not 1 <= shard.number <= shard.total:
        raise ValueError(f"a shard must be i/n with i from 1 to n, such as 2/8, not '{text}'")
    return shard


def units(
    study: Study,
    shard: Shard | None = None,
    *,
    pipeline: str = "",
    repeats: Mapping[Pairs, int] | None = None,
) -> list[Unit]:
    """All calls in the order in which they run.

    Variants are interleaved within a repeat, and their order is rotated from repeat to repeat. So
    neither a drift of the machine nor a place in the order favours one of them. Warm-ups run the
    first batch of every size: the others have nothing left to warm, and take the same memory. At
    the end stand the calls of which only images count: of draws that no repeat has come to, and of
    controls that need no time.

    Args:
        study: to run.
        shard: only this part: of n, every n-th batch with all its calls, so that what is compared
            stays together. Every shard warms up by the study's own warm-ups, which are then the
            same calls in each.
        pipeline: as in `Unit`.
        repeats: of every batch; by default the fewest that the study asks for. How many there are
            in the end is decided in `repeating.py`.

    Raises:
        ValueError: more shards than batches.
    """
    batches = batches_of(study, shard)
    if repeats is None:
        repeats = dict.fromkeys(batches, looks(study.repeats)[0])
    calls = (
        *_warmups(study, batches),
        *_in_turns(study, repeats, "measured"),
        *_untimed(study, repeats),
    )
    return [replace(unit, pipeline=pipeline) for unit in calls]


def possible_units(study: Study, shard: Shard | None = None, *, pipeline: str = "") -> list[Unit]:
    """Every call that a run of the study may come to, whatever it measures; as `units`."""
    batches = batches_of(study, shard)
    fewest, *_, most = (*looks(study.repeats), *looks(study.repeats)[-1:])
    calls = (
        *_warmups(study, batches),
        *_in_turns(study, dict.fromkeys(batches, most + further(most, len(batches))), "measured"),
        *_untimed(study, dict.fromkeys(batches, fewest)),
    )
    return [replace(unit, pipeline=pipeline) for unit in calls]


def of_baseline(unit: Unit) -> Unit:
    """The baseline's call of the same round."""
    baseline = next(variant for variant in unit.study.variants if variant.is_baseline)
    return replace(unit, variant=baseline)


def companion(units: Sequence[Unit]) -> Unit:
    """A further call of the baseline, beside which calls of one round are timed."""
    beside = tuple(unit.variant.name for unit in units)
    return replace(of_baseline(units[0]), phase="companion", beside=beside)


def rounds(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    """Calls that are compared with each other: all variants of a batch in a repeat."""
    for _, calls in groupby(units, key=lambda unit: (unit.phase, unit.repeat, unit.pairs)):
        yield list(calls)


def batches_of(study: Study, shard: Shard | None = None) -> list[Pairs]:
    """The pairs of every call: all, or those of a shard.

    Raises:
        ValueError: more shards than batches.
    """
    pairs = study.pairs
    batches = [tuple(pairs[i : i + study.batch]) for i in range(0, len(pairs), study.batch)]
    if shard is None:
        return batches
    if shard.total > len(batches):
        raise ValueError(
            f"{shard.total} shards are too many: the study has {len(batches)} batches of pairs"
        )
    return batches[shard.number - 1 :: shard.total]


def _warmups(study: Study, batches: list[Pairs]) -> Iterator[Unit]:
    """The calls before those that count: of the study's first batch of every size."""
    first_of_size = {len(batch): batch for batch in reversed(batches_of(study))}
    sizes = dict.fromkeys(map(len, batches))
    of_sizes = [first_of_size[size] for size in sizes]
    yield from _in_turns(study, dict.fromkeys(of_sizes, study.warmups), "warmup")


def _in_turns(study: Study, repeats: Mapping[Pairs, int], phase: str) -> Iterator[Unit]:
    """The calls of one phase, of the variants that are timed."""
    variants = study.timed_variants
    for repeat in range(max(repeats.values())):
        turn = repeat % len(variants)
        rotated = variants[turn:] + variants[:turn]
        for batch in (batch for batch, number in repeats.items() if repeat < number):
            yield from (Unit(study, variant, batch, repeat, phase) for variant in rotated)


def _untimed(study: Study, repeats: Mapping[Pairs, int]) -> Iterator[Unit]:
    """The calls whose images count and whose times do not: one for every draw that is left."""
    timed = study.timed_variants
    most = max(max(1, len(variant.draws)) for variant in study.variants)
    # A variant's first call says what it does; each of its draws is another image.
    for draw in range(most if study.judges_images else 1):
        for batch, number in repeats.items():
            for variant in study.variants:
                made = number if variant in timed else 0
                if made <= draw < max(1, len(variant.draws)):
                    yield Unit(study, variant, batch, draw, "untimed")
