"""Which steps need guidance: what the image loses when it is dropped at some of them, in every way of one kind."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sdbench.experiments.branching import (
    Branch,
    Brancher,
    allowed_rows,
    baseline,
    batches,
    require_plain,
)
from sdbench.instruments.quality import provenance
from sdbench.models.random_weights import has_random_weights
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.records.names import BASELINE
from sdbench.records.schema import SWEEP, frame
from sdbench.records.store import Mode, StudyFolder, Sweep, read_sweep
from sdbench.study.check import loop_length
from sdbench.study.runner import progress_bar
from sdbench.study.study import Study
from sdbench.variants.schedule import Mask, mask_of

KINDS = ("single", "window", "last", "first", "interval")


def branches_of(
    kind: str, steps: int, *, length: int | None = None, stride: int = 1
) -> list[Branch]:
    """The branches of one kind.

    Args:
        kind: "single" drops each step by itself, "window" a run of `length` steps wherever it fits, "last" and "first"
            every number of steps at that end, "interval" all steps outside of a run, for every run.
        steps: of the loop.
        length: of the window; a quarter of the steps by default.
        stride: starts, lengths and ends are multiples of it.

    Raises:
        ValueError: an unknown kind, a stride or a length that does not fit, a length that the kind has no use for.
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
    lengths = range(stride, steps + 1, stride)
    runs = {
        "single": [(start, 1) for start in range(0, steps, stride)],
        "window": [(start, window) for start in range(0, steps - window + 1, stride)],
        "last": [(steps - count, count) for count in lengths],
        "first": [(0, count) for count in lengths],
        "interval": [
            (start, count)
            for start in range(0, steps, stride)
            for count in lengths
            if start + count <= steps
        ],
    }[kind]
    inside = kind == "interval"
    made = (
        Branch(
            kind,
            start,
            count,
            tuple((start <= step < start + count) == inside for step in range(steps)),
        )
        for start, count in runs
    )
    return [branch for branch in made if not all(branch.mask)]


@dataclass(frozen=True)
class SweepPlan:
    """Which branches a sweep follows.

    Args:
        kind: as `branches_of` takes it.
        length: of the window.
        stride: as `branches_of` takes it.
        masks: a list of masks in place of a kind.
        max_rows: of one denoiser evaluation, and branches of one call; as many as fit in half of the free memory by
            default, and at most 64.
        growth: keep how far the latents are from the baseline's at every step, too.
    """

    kind: str = "single"
    length: int | None = None
    stride: int = 1
    masks: tuple[str, ...] = ()
    max_rows: int | None = None
    growth: bool = False

    def branches(self, steps: int) -> list[Branch]:
        """The branches for a loop of this length, those with common beginnings side by side.

        Raises:
            ValueError: as `branches_of`; a mask that does not fit the loop, or that guides every step.
        """
        if not self.masks:
            found = branches_of(self.kind, steps, length=self.length, stride=self.stride)
        else:
            found = [Branch("mask", None, None, _mask(text, steps)) for text in self.masks]
        if len({branch.mask for branch in found}) < len(found):
            raise ValueError("a mask is there twice")
        if not found:
            raise ValueError(
                f"no mask of kind '{self.kind}' leaves a step unguided in {steps} steps"
            )
        return sorted(found, key=lambda branch: branch.mask, reverse=True)


def _mask(text: str, steps: int) -> Mask:
    mask = mask_of(text)
    if len(mask) != steps:
        raise ValueError(f"mask '{text}' has {len(text)} steps but the loop runs {steps}")
    if "0" not in text:
        raise ValueError(f"mask '{text}' guides every step: that is the baseline")
    return mask


def sensitivity(
    pipe: Any,
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
        kind: "single", "window", "last", "first" or "interval", as `branches_of` says.
        length: of the window; a quarter of the steps by default.
        stride: starts and lengths are multiples of it.
        masks: texts such as "1101", one letter per step of the loop, in place of a kind.
        max_rows: of one denoiser evaluation; from the free memory by default.
        metrics: names in `METRICS`; those that need a reference compare with the fully guided image.
        **fields: further fields of `Study`, such as `batch`, `negative_prompt` or `arguments`.

    Returns:
        One row per (prompt, seed) pair and mask, the baseline among them: the columns of the table `sensitivity`.

    Raises:
        ValueError: before the first image, for anything that cannot run.
    """
    known: dict[str, Any] = {"model": type(pipe).__name__, "variants": (BASELINE,), **fields}
    known |= {"prompts": prompts, "seeds": seeds, "metrics": tuple(metrics)}
    study = Study(**known, num_steps=num_steps, guidance_scale=guidance_scale)
    plan = SweepPlan(kind, length, stride, tuple(masks), max_rows)
    return sweep(pipe, study, plan).sensitivity


def sweep(
    pipe: Any, study: Study, plan: SweepPlan, out: str | Path | None = None, *, mode: Mode = "new"
) -> Sweep:
    """Follow the branches of a plan for every pair of a study, and keep each finished call.

    Args:
        pipe: a guided pipeline.
        study: its pairs, steps, scale, metrics and batch; the variants have no part in it.
        plan: which masks.
        out: the sweep's folder; a temporary one when not given.
        mode: "new", "resume" or "overwrite", for a folder that holds a sweep already.

    Raises:
        ValueError: before the first image, for anything that cannot run; a folder that does not fit the mode.
    """
    if has_random_weights(pipe):
        study = replace(study, random_weights=True)
    quality = provenance(study.metrics or ())
    require_plain(study)
    max_rows = allowed_rows(pipe, study, plan.max_rows)
    branches = plan.branches(loop_length(pipe, study))
    settings = {
        name: getattr(plan, name) for name in ("kind", "length", "stride", "masks", "growth")
    }
    record = study.as_json() | {"quality": quality, "sweep": settings}
    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="sdbench-"))
    env = environment() | layout(pipe)
    with StudyFolder.create(out, record, environment=env, mode=mode, tables=SWEEP) as folder:
        done = read_sweep(out).sensitivity
        finished = set(zip(done["prompt_id"], done["seed"], done["mask"], strict=True))
        try:
            with progress_bar() as progress:
                task = progress.add_task(
                    "branching", total=len(study.pairs) * (1 + len(branches)), completed=0, what=""
                )
                for pairs in batches(study.pairs, study.batch):
                    group, (prompt_id, _, seed) = Brancher(pipe, study, pairs, max_rows), pairs[0]
                    trunk = baseline(len(branches[0].mask))
                    left = [
                        b for b in (trunk, *branches) if (prompt_id, seed, b.text) not in finished
                    ]
                    progress.advance(task, len(pairs) * (1 + len(branches) - len(left)))
                    for call in group.calls(left):
                        progress.update(task, what=f"{len(pairs)} x {len(call)} branches")
                        rows, growth = group.follow(call, growth=plan.growth)
                        unit, tables = (
                            _unit(study, pairs, call),
                            {"sensitivity": rows, "growth": growth},
                        )
                        folder.add(
                            unit,
                            **{
                                n: frame(n, [{"unit": unit} | row for row in t])
                                for n, t in tables.items()
                            },
                        )
                        progress.advance(task, len(pairs) * len(call))
        finally:
            folder.compact()
    return read_sweep(out)


def _unit(study: Study, pairs: tuple[tuple[str, str, int], ...], branches: Sequence[Branch]) -> str:
    """Short hash of what a call computes."""
    content = json.dumps([study.as_json(), pairs, [branch.text for branch in branches]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
