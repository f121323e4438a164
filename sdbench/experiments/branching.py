"""The branching engine: what the image loses when guidance is dropped at some steps, for many masks at once.

One pipeline call guides every image at every step; the branches of later calls leave that trunk where their masks do
(`variants/branches.py`), so a mask costs no more than its steps after its first unguided one. Every row has its own
generator with the image's seed, and the pipeline's own loop runs, so a branch ends where its mask ends alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.quality import find_metric, score
from sdbench.models.random_weights import free_bytes
from sdbench.records.names import BASELINE
from sdbench.study.call import call_arguments
from sdbench.study.check import prepare
from sdbench.study.images import eight_bit
from sdbench.study.study import Study
from sdbench.study.units import Unit
from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.guidance import guided_by, replaced
from sdbench.variants.registry import parse
from sdbench.variants.rows import joined
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_text
from sdbench.variants.trace import Listener, Step

MOST_ROWS = 64  # of one evaluation; more do not make a row cheaper
MEMORY_SHARE = 0.5  # of what is free, for the activations of one evaluation


@dataclass(frozen=True)
class Branch:
    """A mask and how it came about: `length` steps from `start` on are unguided, or guided where the kind says so."""

    kind: str
    start: int | None
    length: int | None
    mask: Mask

    @property
    def text(self) -> str:
        """The mask as `mask_text` writes it."""
        return mask_text(self.mask)


def baseline(steps: int) -> Branch:
    """The branch that guides every step."""
    return Branch("baseline", None, None, (True,) * steps)


def require_plain(study: Study) -> None:
    """Refuse what branches cannot do, so that no record says what did not run.

    Raises:
        ValueError: a study that stops at latents, compiles, or splits guided steps.
    """
    for name, plain in (("output", "image"), ("execution", "eager"), ("guidance_execution", None)):
        if getattr(study, name) != plain:
            raise ValueError(
                f"{name} '{getattr(study, name)}' is for studies of time; branches have no such choice"
            )


def allowed_rows(pipe: Any, study: Study, asked: int | None) -> int:
    """Rows of one denoiser evaluation: those asked for, else what fits in half of the free memory, at most 64.

    Raises:
        ValueError: less than one is asked for or fits; a pipeline that cannot run the study.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"max_rows must be at least 1, not {asked}")
    free = free_bytes(pipe.device)
    try:
        row_bytes = prepare(pipe, replace(study, batch=1)).row_peak_bytes
    except torch.OutOfMemoryError:
        raise ValueError(
            f"one denoiser row needs more than the {free / 1e9:.1f} GB that are free"
        ) from None
    rows = int(MEMORY_SHARE * free / row_bytes)
    if rows < 1:
        raise ValueError(
            f"one denoiser row needs {row_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free, half to use"
        )
    return min(rows, MOST_ROWS) if asked is None else asked


def batches(entries: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    """Consecutive entries, `size` at a time."""
    return [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]


class Brancher:
    """Follows branches of a few pairs; the trunk runs once, before the first of them.

    Args:
        pipe: a guided pipeline.
        study: its steps, scale, metrics and further arguments.
        pairs: (prompt_id, prompt, seed) of every image.
        max_rows: of one denoiser evaluation.
    """

    def __init__(
        self, pipe: Any, study: Study, pairs: tuple[tuple[str, str, int], ...], max_rows: int
    ) -> None:
        """Run nothing yet."""
        self.pipe, self.study, self.pairs, self.max_rows = pipe, study, pairs, max_rows
        self._trunk = Trunk()
        self._path: dict[int, Tensor] = {}
        self._reference: Float[Tensor, "pairs 3 height width"] | None = None

    def calls(self, branches: Sequence[Branch]) -> list[tuple[Branch, ...]]:
        """The branches as pipeline calls take them: the trunk by itself, others as many as give the allowed rows."""
        trunk = [branch for branch in branches if all(branch.mask)]
        others = [branch for branch in branches if not all(branch.mask)]
        return [*batches(trunk, 1), *batches(others, max(1, self.max_rows // len(self.pairs)))]

    def follow(
        self, branches: Sequence[Branch], *, growth: bool = False
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Run one pipeline call and return the rows of the tables `sensitivity` and `growth`, without their unit."""
        if self._reference is None and not all(branches[0].mask):
            self.follow([baseline(len(branches[0].mask))], growth=growth)
        pairs = [pair for pair in self.pairs for _ in branches]
        masks = Branches(
            [branch.mask for branch in branches],
            len(self.pairs),
            self._trunk,
            max_rows=self.max_rows,
        )
        distances = _Distances(self._path)
        arguments = call_arguments(
            self.study, Unit(self.study, parse(BASELINE), tuple(pairs), 0, "measured"), self.pipe
        )
        listeners = [distances] if growth else []
        with (
            decoding_in_pieces(self.pipe, self.study.batch),
            guided_by(self.pipe, masks, listeners=listeners),
        ):
            images = eight_bit(self.pipe(**arguments, output_type="pt").images)
        if self._reference is None:
            self._reference = images
        known = [
            {"prompt_id": prompt_id, "prompt": prompt, "seed": seed}
            | {
                "kind": branch.kind,
                "start": branch.start,
                "length": branch.length,
                "mask": branch.text,
            }
            for (prompt_id, prompt, seed), branch in zip(
                pairs, [*branches] * len(self.pairs), strict=True
            )
        ]
        cost = [
            {"nfe": GuidanceSchedule(branch.mask).nfe, "rows": rows // len(self.pairs)}
            for branch, rows in zip(branches, masks.rows, strict=True)
        ] * len(self.pairs)
        about = {
            "model": self.study.model,
            "scheduler": type(self.pipe.scheduler).__name__,
            "num_steps": self.study.num_steps,
            "guidance_scale": self.study.guidance_scale,
        }
        quality = self.quality(images, [prompt for _, prompt, _ in pairs])
        rows = [about | a | b | c for a, b, c in zip(known, cost, quality, strict=True)]
        grown = [
            row | {"step": step, "distance": value}
            for step, distance in distances.by_step.items()
            for row, value in zip(known, distance.tolist(), strict=True)
        ]
        return rows, grown

    def quality(
        self, images: Float[Tensor, "n 3 height width"], prompts: list[str]
    ) -> list[dict[str, float]]:
        """Every metric of every image: as many for each pair, those of the first pair first."""
        assert self._reference is not None
        reference = self._reference.repeat_interleave(len(images) // len(self.pairs), dim=0)
        values = {}
        for name in self.study.metrics or ():
            metric, _ = find_metric(name)
            values[metric.name] = score(
                name, images, prompts if metric.needs == "prompt" else reference
            ).tolist()
        return [
            {name: column[index] for name, column in values.items()} for index in range(len(images))
        ]


class _Distances(Listener):
    """How far the latents of every branch are from the trunk's, step by step; the trunk's own call lays down the path.

    The distance after k steps is the norm of the difference over the norm of the trunk's latents.
    """

    def __init__(self, path: dict[int, Tensor]) -> None:
        self.path = path
        self.by_step: dict[int, Float[Tensor, " rows"]] = {}
        self.iterations = 0

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Know which step is the last."""
        self.iterations = iterations

    def scheduler_begins(self, step: Step) -> None:
        """Compare, or keep, the latents that the step starts from."""
        self._compare(step.index, step.sample)

    def scheduler_ends(self, step: Step) -> None:
        """Compare, or keep, the latents that the last step ends with; no other starts from them."""
        if step.index + 1 == self.iterations:
            self._compare(self.iterations, step.result)

    def _compare(self, steps: int, latents: Tensor | None) -> None:
        assert latents is not None
        sample = latents.detach().float()
        trunk = self.path.setdefault(steps, sample)
        branches = len(sample) // len(trunk)
        base = trunk.repeat_interleave(branches, dim=0)
        self.by_step[steps] = (sample - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)


@contextmanager
def decoding_in_pieces(pipe: Any, size: int) -> Iterator[None]:
    """Have the autoencoder decode the many images of a call `size` at a time: more need memory and gain nothing."""
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        yield
        return
    whole = vae.decode

    @functools.wraps(whole)
    def decode(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        return functools.reduce(
            joined, (whole(piece, *args, **kwargs) for piece in latents.split(size))
        )

    with replaced(vae, "decode", decode):
        yield
