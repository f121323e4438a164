"""The calls of a study, in the order in which they run, and the parts that may run apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import NamedTuple

from sdbench.records.store import SCHEMA_VERSION
from sdbench.study.call import Call
from sdbench.study.fields import digest
from sdbench.study.study import Pairs, Study
from sdbench.variants.variant import Variant


@dataclass(frozen=True)
class Unit:
    """Exactly one pipeline call: a variant on one batch of pairs, in one repeat.

    `pipeline` is a digest of what `identity` says of the pipeline that it runs on.
    """

    study: Study
    variant: Variant
    pairs: Pairs
    repeat: int
    phase: str
    pipeline: str = ""

    @property
    def id(self) -> str:
        """Short hash of everything that decides what the call computes and how it is stored."""
        name = " ".join(filter(None, (self.variant.name, self.variant.content)))
        call = [self.study.shared, self.pipeline, name, self.pairs, self.repeat, self.phase]
        return digest([_code_version(), SCHEMA_VERSION, *call])[:16]

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
        if self.phase == "warmup":
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
        raise ValueError(f"a shard is i/n with i from 1 to n, such as 2/8, not '{text}'")
    return shard


def units(study: Study, shard: Shard | None = None, *, pipeline: str = "") -> list[Unit]:
    """All calls in the order in which they run.

    Variants are interleaved within a repeat, and their order is rotated from repeat to repeat. So
    neither a drift of the machine nor a place in the order favours one of them. Warm-ups run the
    first batch of every size: the others have nothing left to warm, and take the same memory. Draws
    that no repeat has come to follow at the end, where images are judged.

    Args:
        study: to run.
        shard: only this part: of n, every n-th batch with all its calls, so that what is compared
            stays together. Every shard warms up by the study's own warm-ups, which are then the
            same calls in each.
        pipeline: as in `Unit`.

    Raises:
        ValueError: more shards than batches.
    """
    first_of_size = {len(batch): batch for batch in reversed(batches_of(study))}
    batches = batches_of(study, shard)

    sizes = dict.fromkeys(map(len, batches))
    warmups = [first_of_size[size] for size in sizes]
    return [
        replace(unit, pipeline=pipeline)
        for unit in (
            *_in_turns(study, warmups, "warmup", study.warmups),
            *_in_turns(study, batches, "measured", study.repeats),
            *_further_draws(study, batches),
        )
    ]


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
            f"{shard.total} shards are more than the study's {len(batches)} batches of pairs"
        )
    return batches[shard.number - 1 :: shard.total]


def _in_turns(study: Study, batches: list[Pairs], phase: str, repeats: int) -> Iterator[Unit]:
    """The calls of one phase."""
    variants = study.variants
    for repeat in range(repeats):
        turn = repeat % len(variants)
        rotated = variants[turn:] + variants[:turn]
        for batch in batches:
            yield from (Unit(study, variant, batch, repeat, phase) for variant in rotated)


def _further_draws(study: Study, batches: list[Pairs]) -> Iterator[Unit]:
    """The calls of draws beyond the repeats: their images count, their times do not."""
    if study.random_weights or study.output != "image":
        return  # no image is judged
    most = max(len(variant.draws) for variant in study.variants)
    for repeat in range(study.repeats, most):
        drawn = [variant for variant in study.variants if repeat < len(variant.draws)]
        for batch in batches:
            yield from (Unit(study, variant, batch, repeat, "untimed") for variant in drawn)
