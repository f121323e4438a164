"""The branching engine: the images of many masks at once, each judged against the guided one.

One pipeline call guides every image at every step. The branches of later calls leave that trunk
where their masks do (`variants/branches.py`), so a mask costs no more than its steps after its
first unguided one. Every row has its own generator with the image's seed, and the pipeline's own
loop runs, so a branch ends where its mask ends alone. `sensitivity.py` and `search.py` pick masks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.experiments.growth import Distances
from sdbench.instruments import video_quality
from sdbench.instruments.quality import find_metric, score
from sdbench.models.pipeline import Pipeline
from sdbench.models.random_weights import free_bytes
from sdbench.records.names import BASELINE
from sdbench.study.call import Call, generate, ready
from sdbench.study.check import prepare
from sdbench.study.generation import Generation, Pair, Pairs
from sdbench.study.images import eight_bit
from sdbench.study.study import Study
from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.grammar import parse
from sdbench.variants.hooks import replaced
from sdbench.variants.precision import Precision
from sdbench.variants.rows import joined
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_text
from sdbench.variants.switched_branches import SwitchedBranches
from sdbench.variants.trace import Listener
from sdbench.variants.variant import Variant

MOST_ROWS = 64  # of one evaluation; more do not make a row cheaper
MEMORY_SHARE = 0.5  # of what is free, for the activations of one evaluation
LOOP = Variant("branches", GuidanceSchedule.full)
"""What branches run in: the generation's own number of steps and the pipeline's own scheduler."""

Row = dict[str, Any]
"""A row of a table, by column."""
T = TypeVar("T")


@dataclass(frozen=True)
class Branch:
    """A mask and how it came about.

    Args:
        kind: of mask, such as "single" or "interval".
        start: where the run begins that the kind moves; None without one.
        length: steps of the run. They are unguided, or guided where the kind says so.
        mask: True where the step is guided.
    """

    kind: str
    start: int | None
    length: int | None
    mask: Mask

    @property
    def text(self) -> str:
        """The mask as `mask_text` writes it."""
        return mask_text(self.mask)

    @property
    def is_trunk(self) -> bool:
        """Whether it guides every step."""
        return all(self.mask)


def baseline(steps: int) -> Branch:
    """The branch that guides every step."""
    return Branch("baseline", None, None, (True,) * steps)


def judgeable(generation: Generation, metrics: Sequence[str]) -> tuple[str, ...]:
    """The metrics, where the images of a generation can be judged by them.

    Raises:
        ValueError: an unknown metric, or images of random weights.
    """
    study = Study(**generation.settings, variants=(parse(BASELINE),), metrics=tuple(metrics))
    return study.metrics or ()


def allowed_rows(
    pipe: Pipeline, generation: Generation, asked: int | None, *, metrics: Sequence[str]
) -> int:
    """Rows of one denoiser evaluation.

    Args:
        pipe: a guided pipeline.
        generation: what will run.
        asked: the number that is asked for. None for what fits in half of the free memory, at most
            64.
        metrics: names in `METRICS`, by which the images will be judged.

    Raises:
        ValueError: less than one is asked for or fits; a pipeline that cannot run the generation;
            images of a size that a metric does not take, or audio.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"max_rows must be at least 1, not {asked}")

    # One pair is enough to learn what a row takes.
    free = free_bytes(pipe.device)
    single = replace(generation, batch=1)
    study = Study(**single.settings, variants=(parse(BASELINE),), metrics=tuple(metrics))
    try:
        work = prepare(pipe, study)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"one denoiser row needs more than the {free / 1e9:.1f} GB that are free"
        ) from None
    if work.output == "audio":
        raise ValueError(
            f"{type(pipe).__name__} makes audio: no metric says what guidance does to that"
        )

    # What is asked for may be more than this, but a single row must fit.
    row_bytes = work.row_peak_bytes
    rows = int(MEMORY_SHARE * free / row_bytes)
    if rows < 1:
        raise ValueError(
            f"one denoiser row needs {row_bytes / 1e9:.1f} GB; "
            f"{free / 1e9:.1f} GB are free, half to use"
        )
    return min(rows, MOST_ROWS) if asked is None else asked


def batches(entries: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """Consecutive entries, `size` at a time."""
    return [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]


class Followed(NamedTuple):
    """What a call of branches gave, without its unit: rows of two tables."""

    sensitivity: list[Row]
    growth: list[Row]


class Brancher:
    """Follows branches of a few pairs; the trunk runs once, before the first of them.

    Args:
        pipe: a guided pipeline.
        generation: its steps, scale and further arguments.
        pairs: (prompt_id, prompt, seed) of every image.
        metrics: names in `METRICS`.
        max_rows: of one denoiser evaluation.
        loop: its number of steps and its scheduler, where these are not the generation's and the
            pipeline's own.
        form: name of a number format. The masks then switch it, and every step is guided.
    """

    def __init__(
        self,
        pipe: Pipeline,
        generation: Generation,
        pairs: Pairs,
        *,
        metrics: Sequence[str],
        max_rows: int,
        loop: Variant = LOOP,
        form: str | None = None,
    ) -> None:
        """Run nothing yet."""
        self.pipe = pipe
        self.generation = generation
        self.pairs = pairs
        self.metrics = tuple(metrics)
        self.max_rows = max_rows
        self._loop = loop
        self._form = form
        self._trunk = Trunk()
        self._path: dict[int, Float[Tensor, "pairs values"]] = {}
        self._reference: Float[Tensor, "pairs *frames 3 height width"] | None = None

    def compare_with(self, images: Float[Tensor, "pairs *frames 3 height width"]) -> None:
        """Judge images against these, one per pair, instead of against the trunk's."""
        self._reference = images

    def calls(self, branches: Sequence[Branch]) -> list[tuple[Branch, ...]]:
        """The branches of each pipeline call: the trunk alone, the others in the allowed rows."""
        trunk = [branch for branch in branches if branch.is_trunk]
        others = [branch for branch in branches if not branch.is_trunk]
        return [*batches(trunk, 1), *batches(others, max(1, self.max_rows // len(self.pairs)))]

    def follow(self, branches: Sequence[Branch], *, growth: bool = False) -> Followed:
        """Run one pipeline call of some branches.

        Args:
            branches: as `calls` divides them.
            growth: keep how far the latents are from the trunk's at every step, too.

        Returns:
            All branches of the first pair, then those of the next.
        """
        steps = len(branches[0].mask)
        if not branches[0].is_trunk and not self._trunk.is_known(steps):
            self.follow([baseline(steps)], growth=growth)

        followed = [branch.mask for branch in branches]
        kind = Branches if self._form is None else SwitchedBranches
        masks = kind(followed, len(self.pairs), self._trunk, max_rows=self.max_rows)

        distances = Distances(self._path)
        images = self._images(masks, [distances] if growth else [])
        if self._reference is None:  # the trunk's own call
            self._reference = images

        # Rows stand as images do: all branches of the first pair, then those of the next.
        identities = [of_pair(pair) | of_mask(branch) for pair in self.pairs for branch in branches]
        costs = self._costs(branches, masks.rows) * len(self.pairs)
        parts = zip(identities, costs, self.quality(images), strict=True)
        common = about(self.pipe, self.generation, steps)
        if self._form is not None:
            common["switch"] = f"precision:{self._form}"
        rows = [common | identity | cost | quality for identity, cost, quality in parts]
        return Followed(rows, distances.rows(identities))

    def alone(self, variant: Variant) -> list[Row]:
        """Run a variant that is no branch of the trunk, in calls for itself, once the trunk ran.

        Returns:
            One row per pair: `variant`, the pair, `nfe` and the metrics.
        """
        images, evaluated = self.images_of(variant)
        ran = {"variant": variant.name, "nfe": evaluated // len(images)}
        judged = zip(self.pairs, self.quality(images), strict=True)
        return [ran | of_pair(pair) | quality for pair, quality in judged]

    def images_of(
        self, variant: Variant
    ) -> tuple[Float[Tensor, "pairs *frames 3 height width"], int]:
        """The images of a variant in calls for itself, and the denoiser rows that they took."""
        parts = []
        evaluated = 0
        for pairs in batches(self.pairs, max(1, self.max_rows // 2)):
            with ready(self.pipe, Call(self.generation, variant, pairs)) as run:
                parts.append(run.judgeable())
            evaluated += int(run.trace.steps["rows"].sum())
        return eight_bit(torch.cat(parts)), evaluated

    def quality(self, images: Float[Tensor, "n *frames 3 height width"]) -> list[dict[str, float]]:
        """Every metric of every image; each pair has the same number, the first pair's first."""
        assert self._reference is not None
        count = len(images) // len(self.pairs)
        prompts = [prompt for _, prompt, _ in self.pairs for _ in range(count)]
        if images.ndim == 5:
            references = [video for video in self._reference for _ in range(count)]
            return [
                video_quality.judged(self.metrics, video, prompt=prompt, reference=reference)
                for video, prompt, reference in zip(images, prompts, references, strict=True)
            ]

        reference = self._reference.repeat_interleave(count, dim=0)

        values = {}
        for name in self.metrics:
            metric, _ = find_metric(name)
            against = prompts if metric.needs == "prompt" else reference
            values[metric.name] = score(name, images, against).tolist()
        return [
            {name: column[index] for name, column in values.items()} for index in range(len(images))
        ]

    def _images(
        self, masks: Branches, listeners: Sequence[Listener]
    ) -> Float[Tensor, "rows *frames 3 height width"]:
        """The images of one pipeline call, a row for each pair and mask."""
        variant = replace(self._loop, policy=lambda _: masks)
        if isinstance(masks, SwitchedBranches):
            assert self._form is not None
            variant = replace(variant, precision=Precision(self._form, follow=masks.follow))
        pairs = tuple(pair for pair in self.pairs for _ in masks.masks)
        call = Call(self.generation, variant, pairs)
        with decoding_in_pieces(self.pipe, self.generation.batch):
            return eight_bit(generate(self.pipe, call, listeners=listeners))

    def _costs(self, branches: Sequence[Branch], rows: Sequence[int]) -> list[Row]:
        """What an image of each branch takes alone, and what it took here."""
        alone = [
            GuidanceSchedule(branch.mask if self._form is None else (True,) * len(branch.mask))
            for branch in branches
        ]
        return [
            {"nfe": schedule.nfe, "rows": taken // len(self.pairs)}
            for schedule, taken in zip(alone, rows, strict=True)
        ]


def about(pipe: Pipeline, generation: Generation, steps: int) -> Row:
    """What all rows of a sweep have in common, given the steps of the loop."""
    return {
        "model": generation.model,
        "scheduler": type(pipe.scheduler).__name__,
        "num_steps": steps if generation.lists_steps else generation.num_steps,
        "guidance_scale": generation.guidance_scale,
    }


def of_pair(pair: Pair) -> Row:
    """The columns that name an image."""
    prompt_id, prompt, seed = pair
    return {"prompt_id": prompt_id, "prompt": prompt, "seed": seed}


def of_mask(branch: Branch) -> Row:
    """The columns that name a branch."""
    return {
        "kind": branch.kind,
        "start": branch.start,
        "length": branch.length,
        "mask": branch.text,
    }


@contextmanager
def decoding_in_pieces(pipe: Pipeline, size: int) -> Iterator[None]:
    """Let the autoencoder decode the many images of a call in pieces.

    All at once they would need more memory, and gain nothing.

    Args:
        pipe: whose `vae` decodes; without one nothing changes.
        size: images at a time.
    """
    vae: Any = getattr(pipe, "vae", None)
    if vae is None:
        yield
        return
    whole = vae.decode

    @functools.wraps(whole)
    def decode(latents: Float[Tensor, "images ..."], *args: Any, **kwargs: Any) -> Any:
        pieces = (whole(piece, *args, **kwargs) for piece in latents.split(size))
        return functools.reduce(joined, pieces)

    with replaced(vae, "decode", decode):
        yield
