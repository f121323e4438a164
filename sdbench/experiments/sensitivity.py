"""Which steps need guidance: what the image loses when it is dropped at some of them.

Here are the kinds of masks and the sweep that follows all masks of a kind; the engine that runs
them is in `branching.py`, and what the curves say in `analysis/sensitivity.py`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.experiments.branching import (
    Branch,
    Brancher,
    allowed_rows,
    baseline,
    batches,
    judgeable,
)
from sdbench.experiments.first_order import Follower, require_features
from sdbench.instruments.quality import provenance
from sdbench.models.identity import identity
from sdbench.models.pipeline import Pipeline
from sdbench.models.random_weights import has_random_weights
from sdbench.models.settings import settings_of
from sdbench.records.environment import environment
from sdbench.records.schema import SWEEP, frame
from sdbench.records.store import Mode, StudyFolder, Sweep, read_sweep
from sdbench.study.check import loop_length
from sdbench.study.generation import Generation
from sdbench.study.progress import progress_bar
from sdbench.variants.schedule import Mask, mask_of

Runs = list[tuple[int, int]]
"""(start, length) of some consecutive steps."""


def _singles(steps: int, window: int, stride: int) -> Runs:
    return [(start, 1) for start in range(0, steps, stride)]


def _windows(steps: int, window: int, stride: int) -> Runs:
    return [(start, window) for start in range(0, steps - window + 1, stride)]


def _ends(steps: int, window: int, stride: int) -> Runs:
    return [(steps - count, count) for count in range(stride, steps + 1, stride)]


def _beginnings(steps: int, window: int, stride: int) -> Runs:
    return [(0, count) for count in range(stride, steps + 1, stride)]


def _intervals(steps: int, window: int, stride: int) -> Runs:
    return [
        (start, count)
        for start in range(0, steps, stride)
        for count in range(stride, steps - start + 1, stride)
    ]


KINDS: dict[str, Callable[[int, int, int], Runs]] = {
    "single": _singles,
    "window": _windows,
    "last": _ends,
    "first": _beginnings,
    "interval": _intervals,
    "estimate": _singles,
}
"""The runs of a kind, from the loop's steps, the window's length and the stride."""


def branches_of(
    kind: str, steps: int, *, length: int | None = None, stride: int = 1
) -> list[Branch]:
    """The branches of one kind.

    Args:
        kind: "single" drops each step by itself, "window" a run of `length` steps wherever it fits,
            "last" and "first" every number of steps at that end, "interval" all steps outside of a
            run, for every run; "estimate" is "single", by the first-order model.
        steps: of the loop.
        length: of the window; a quarter of the steps by default.
        stride: starts, lengths and ends are multiples of it.

    Raises:
        ValueError: an unknown kind, a stride or a length that does not fit, a length that the kind
            has no use for.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind '{kind}'; there are: {', '.join(KINDS)}")
    if not 1 <= stride <= steps:
        raise ValueError(f"stride must be between 1 and {steps}, not {stride}")
    if length is not None and kind != "window":
        raise ValueError(f"length is the window's; kind '{kind}' has none")
    window = max(1, round(steps / 4)) if length is None else length
    if not 1 <= window <= steps:
        raise ValueError(f"length must be between 1 and {steps}, not {length}")

    # An interval is where guidance stays; the runs of other kinds are where it goes.
    inside = kind == "interval"
    branches = [
        Branch(kind, start, count, _mask_of_run(start, count, steps, inside=inside))
        for start, count in KINDS[kind](steps, window, stride)
    ]
    return [branch for branch in branches if not branch.is_trunk]


def _mask_of_run(start: int, length: int, steps: int, *, inside: bool) -> Mask:
    """Guided inside of a run, or outside of it."""
    return tuple((start <= step < start + length) == inside for step in range(steps))


@dataclass(frozen=True)
class BranchChoice:
    """Which branches a sweep follows.

    Args:
        kind: as `branches_of` takes it.
        length: of the window.
        stride: as `branches_of` takes it.
        masks: a list of masks instead of a kind.
        max_rows: of one denoiser evaluation, and branches of one call. By default what fits in half
            of the free memory, at most 64.
        growth: keep how far the latents are from the baseline's at every step, too.
    """

    kind: str = "single"
    length: int | None = None
    stride: int = 1
    masks: tuple[str, ...] = ()
    max_rows: int | None = None
    growth: bool = False

    @property
    def is_estimate(self) -> bool:
        """Whether the branches are estimated, and none of them runs."""
        return self.kind == "estimate" and not self.masks

    def branches(self, steps: int) -> list[Branch]:
        """The branches for a loop of this length, those with common beginnings side by side.

        Raises:
            ValueError: as `branches_of`; a mask that does not fit the loop, or that guides every
                step.
        """
        if self.masks:
            chosen = [Branch("mask", None, None, _mask(text, steps)) for text in self.masks]
        else:
            chosen = branches_of(self.kind, steps, length=self.length, stride=self.stride)

        if len({branch.mask for branch in chosen}) < len(chosen):
            raise ValueError("a mask is there twice")
        if self.growth and self.is_estimate:
            raise ValueError("an estimate follows no branch, so it has no growth to keep")
        if not chosen:
            raise ValueError(
                f"no mask of kind '{self.kind}' leaves a step unguided in {steps} steps"
            )
        return sorted(chosen, key=lambda branch: branch.mask, reverse=True)


def _mask(text: str, steps: int) -> Mask:
    mask = mask_of(text)
    if len(mask) != steps:
        raise ValueError(f"mask '{text}' has {len(text)} steps but the loop runs {steps}")
    if "0" not in text:
        raise ValueError(f"mask '{text}' guides every step: that is the baseline")
    return mask


def sensitivity(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_steps: int,
    guidance_scale: float,
    kind: str = "single",
    length: int | None = None,
    stride: int = 1,
    masks: Sequence[str] = (),
    max_rows: int | None = None,
    metrics: Sequence[str] = ("lpips",),
    **fields: Any,
) -> pd.DataFrame:
    """How far each image ends from its fully guided one when guidance is dropped at some steps.

    Args:
        pipe: a guided pipeline.
        prompts: each is run with every seed.
        seeds: the noise of a pair is `torch.Generator("cpu").manual_seed(seed)`.
        num_steps: denoising steps asked of the pipeline.
        guidance_scale: w, above 1.
        kind: "single", "window", "last", "first" or "interval", as `branches_of` says. "estimate"
            gives "single" by a first-order model, at less than a tenth of the cost for 50 steps
            (`first_order.py`).
        length: of the window; a quarter of the steps by default.
        stride: starts and lengths are multiples of it.
        masks: texts such as "1101", one letter per step of the loop, instead of a kind.
        max_rows: of one denoiser evaluation; from the free memory by default.
        metrics: names in `METRICS`; those that need a reference compare with the fully guided
            image.
        **fields: further fields of `Generation`, such as `batch`, `negative_prompt` or `arguments`.

    Returns:
        One row per (prompt, seed) pair and mask, the baseline among them: the columns of the table
        `sensitivity`.

    Raises:
        ValueError: before the first image, for anything that cannot run.
    """
    settings: dict[str, Any] = {"model": type(pipe).__name__, **fields}
    settings |= {"prompts": prompts, "seeds": seeds}
    generation = Generation(**settings, num_steps=num_steps, guidance_scale=guidance_scale)
    choice = BranchChoice(kind, length, stride, tuple(masks), max_rows)
    return sweep(pipe, generation, choice, metrics=metrics).sensitivity


def sweep(
    pipe: Pipeline,
    generation: Generation,
    choice: BranchChoice,
    out: str | Path | None = None,
    *,
    metrics: Sequence[str] = ("lpips",),
    mode: Mode = "new",
) -> Sweep:
    """Follow some branches for every pair of a generation, and keep each finished call.

    Args:
        pipe: a guided pipeline.
        generation: its pairs, steps, scale and batch.
        choice: which masks.
        out: the sweep's folder; a temporary one when not given.
        metrics: names in `METRICS`, by which the images are judged.
        mode: "new", "resume" or "overwrite", for a folder that holds a sweep already.

    Raises:
        ValueError: before the first image, for anything that cannot run; a folder that does not fit
            the mode.
    """
    random_weights = generation.random_weights or has_random_weights(pipe)
    generation = Generation(**generation.settings | {"random_weights": random_weights})
    metrics = judgeable(generation, metrics)

    # Everything that can be refused is refused before the folder is made.
    if choice.is_estimate:
        require_features(metrics)
    quality = provenance(metrics)
    max_rows = allowed_rows(pipe, generation, choice.max_rows, metrics=metrics)
    branches = choice.branches(loop_length(pipe, generation))

    names = ("kind", "length", "stride", "masks", "growth")
    settings = {name: getattr(choice, name) for name in names}
    record = generation.as_json() | {"metrics": metrics, "quality": quality, "sweep": settings}
    record["pipeline"] = identity(pipe, full=generation.full_hash)
    machine = environment() | settings_of(pipe)

    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="sdbench-"))
    with StudyFolder.create(out, record, environment=machine, mode=mode, tables=SWEEP) as folder:
        # One at a time: each keeps the trunk of its pairs.
        groups = (
            Follower(pipe, generation, pairs, metrics=metrics)
            if choice.is_estimate
            else Brancher(pipe, generation, pairs, metrics=metrics, max_rows=max_rows)
            for pairs in batches(generation.pairs, generation.batch)
        )
        try:
            _follow_missing(folder, generation, groups, branches, growth=choice.growth)
        finally:
            folder.compact()
    return read_sweep(out)


def _follow_missing(
    folder: StudyFolder,
    generation: Generation,
    groups: Iterable[Brancher | Follower],
    branches: Sequence[Branch],
    *,
    growth: bool,
) -> None:
    """Follow what the folder does not hold yet, and record each call as it ends."""
    # A sweep that was interrupted goes on with other divisions into calls, if need be.
    done = read_sweep(folder.path).sensitivity
    finished = set(zip(done["prompt_id"], done["seed"], done["mask"], strict=True))
    every = [baseline(len(branches[0].mask)), *branches]
    wanted = [
        (prompt_id, seed, branch.text)
        for prompt_id, _, seed in generation.pairs
        for branch in every
    ]
    already = sum(call in finished for call in wanted)

    with progress_bar() as progress:
        task = progress.add_task("branching", total=len(wanted), completed=already, what="")
        for group in groups:
            # A call runs for all pairs of a group, so the first stands for them.
            prompt_id, _, seed = group.pairs[0]
            left = [branch for branch in every if (prompt_id, seed, branch.text) not in finished]
            for call in group.calls(left):
                progress.update(task, what=f"{len(group.pairs)} x {len(call)} branches")
                _record(folder, group, call, growth=growth)
                progress.advance(task, len(group.pairs) * len(call))


def _record(
    folder: StudyFolder, group: Brancher | Follower, branches: Sequence[Branch], *, growth: bool
) -> None:
    """Run a call, and write its rows."""
    tables = group.follow(branches, growth=growth)._asdict()
    unit = _unit(group, branches)
    frames = {
        table: frame(table, [{"unit": unit} | row for row in rows])
        for table, rows in tables.items()
    }
    folder.add(unit, **frames)


def _unit(group: Brancher | Follower, branches: Sequence[Branch]) -> str:
    """Short hash of what a call computes."""
    masks = [branch.text for branch in branches]
    content = [group.generation.as_json(), group.metrics, group.pairs, masks]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
