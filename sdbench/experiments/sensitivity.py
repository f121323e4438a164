"""Which steps need guidance: what the image loses when it is dropped at some of them.

The kinds of masks are in `branch_choice.py`, the engine that runs them is in `branching.py`, and
what the curves say in `analysis/sensitivity.py`.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.experiments.branch_choice import GUIDANCE, BranchChoice
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
    switch: str = GUIDANCE,
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
        switch: as `BranchChoice` takes it: "guidance", or "precision:FORMAT" for how far an image
            ends from its own in the pipeline's format.
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
    choice = BranchChoice(kind, length, stride, tuple(masks), max_rows, switch=switch)
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
    # Folders from before there was another switch go on.
    settings |= {} if choice.form is None else {"switch": choice.switch}
    record = generation.as_json() | {"metrics": metrics, "quality": quality, "sweep": settings}
    record["pipeline"] = identity(pipe, full=generation.full_hash)
    machine = environment() | settings_of(pipe)

    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="sdbench-"))
    with StudyFolder.create(out, record, environment=machine, mode=mode, tables=SWEEP) as folder:
        # One at a time: each keeps the trunk of its pairs.
        groups = (
            Follower(pipe, generation, pairs, metrics=metrics)
            if choice.is_estimate
            else Brancher(
                pipe, generation, pairs, metrics=metrics, max_rows=max_rows, form=choice.form
            )
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
