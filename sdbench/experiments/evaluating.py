"""The metrics of variants on pairs, each image made once.

Masks of one loop share their work (`branching.py`); what else there is runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sdbench.experiments.branching import (
    LOOP,
    Branch,
    Brancher,
    Row,
    baseline,
    batches,
    of_pair,
)
from sdbench.experiments.judging import is_kept
from sdbench.models.pipeline import Pipeline
from sdbench.study.generation import Generation
from sdbench.variants.schedule import Mask, mask_of
from sdbench.variants.variant import Variant


class Evaluator:
    """The metrics of variants on pairs of a generation.

    Args:
        pipe: a guided pipeline.
        generation: the baseline's steps, scale and further arguments, and all pairs.
        metrics: names in `METRICS`.
        reference: with whose images those of variants are compared.
        max_rows: of one denoiser evaluation.
        chunk: pairs that share their calls.
    """

    def __init__(
        self,
        pipe: Pipeline,
        generation: Generation,
        *,
        metrics: Sequence[str],
        reference: Variant,
        max_rows: int,
        chunk: int,
    ) -> None:
        """Evaluate nothing yet."""
        self.pipe = pipe
        self.generation = generation
        self.metrics = tuple(metrics)
        self.chunk = chunk
        how: dict[str, Any] = {"metrics": metrics, "max_rows": max_rows}
        self._groups = [
            _Group(partial(Brancher, pipe, generation, pairs, **how), reference)
            for pairs in batches(generation.pairs, chunk)
        ]

    @property
    def rows(self) -> int:
        """Denoiser rows evaluated so far, all pairs together."""
        return sum(group.rows for group in self._groups)

    def evaluate(self, variants: Iterable[Variant], *, pairs: int | None = None) -> list[list[Row]]:
        """The rows of every variant, one per pair: the pair, `nfe` and the metrics.

        Args:
            variants: each with a number of steps of its own.
            pairs: how many of the first are enough, in whole chunks; all by default.
        """
        variants = list(variants)
        groups = self._groups[: None if pairs is None else -(-pairs // self.chunk)]
        for group in groups:
            group.run(variants)
        return [[row for group in groups for row in group.made[v.name]] for v in variants]


class _Group:
    """Some pairs, and what was made of them.

    Args:
        brancher: makes what follows branches of these pairs, given their loop.
        reference: with whose images all others are compared.

    Attributes:
        made: the rows of every variant, by its name.
        rows: denoiser rows that they took.
    """

    def __init__(self, brancher: Callable[..., Brancher], reference: Variant) -> None:
        self.made: dict[str, list[Row]] = {}
        self.rows = 0
        self._brancher = brancher
        self._reference = reference
        self._branchers: dict[Variant, Brancher] = {}

    def run(self, variants: Iterable[Variant]) -> None:
        """Make what was not made yet."""
        by_loop: dict[Variant, list[Variant]] = {}
        for variant in variants:
            if variant.name in self.made:
                continue
            if _is_mask(variant):
                loop = replace(LOOP, num_steps=variant.num_steps, scheduler=variant.scheduler)
                by_loop.setdefault(loop, []).append(variant)
            else:
                self._alone(variant)
        for loop, masked in by_loop.items():
            self._branches(loop, masked)

    def _in_loop(self, loop: Variant) -> Brancher:
        """What follows branches of a loop; all are compared with the images of the reference."""
        if not self._branchers:
            first = self._branchers[LOOP] = self._brancher(loop=LOOP)
            self._images, rows = first.images_of(self._reference)
            first.compare_with(self._images)
            self.rows += rows
        if loop not in self._branchers:
            self._branchers[loop] = self._brancher(loop=loop)
            self._branchers[loop].compare_with(self._images)
        return self._branchers[loop]

    def _alone(self, variant: Variant) -> None:
        own = self._in_loop(LOOP)
        images, rows = own.images_of(variant)
        self.rows += rows
        about = {"nfe": rows / len(images)}
        judged = zip(own.pairs, own.quality(images), strict=True)
        self.made[variant.name] = [of_pair(pair) | about | quality for pair, quality in judged]

    def _branches(self, loop: Variant, variants: Sequence[Variant]) -> None:
        """Masks of one loop; its trunk, which guides every step, runs before the first of them."""
        assert loop.num_steps is not None
        names: dict[Mask, list[str]] = {}
        for variant in variants:
            names.setdefault(variant.rule(loop.num_steps).mask, []).append(variant.name)

        if loop not in self._branchers:
            names.setdefault(baseline(loop.num_steps).mask, [])
        own = self._in_loop(loop)
        for call in own.calls([Branch("mask", None, None, mask) for mask in names]):
            for row in own.follow(call).sensitivity:
                self.rows += row["rows"]
                kept = {name: row[name] for name in row if is_kept(name, own.metrics)}
                for name in names[mask_of(row["mask"])]:
                    self.made.setdefault(name, []).append(kept)


def _is_mask(variant: Variant) -> bool:
    """Whether a variant is nothing but a mask of its loop."""
    further = (variant.policy, variant.student, variant.accelerator, variant.guider)
    has_more = bool(variant.arguments or variant.draws) or variant.guidance_scale is not None
    return further == (None,) * len(further) and not has_more
