"""The branching engine: what the image loses when guidance is dropped at some steps, for many masks at once.

One pipeline call guides every image at every step; the branches of later calls leave that trunk where their masks do
(`variants/branches.py`), so a mask costs no more than its steps after its first unguided one. Every row has its own
generator with the image's seed, and the pipeline's own loop runs, so a branch ends where its mask ends alone.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.quality import find_metric, provenance, score
from sdbench.models.random_weights import free_bytes, has_random_weights
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.records.schema import SWEEP, frame
from sdbench.records.store import StudyFolder, Sweep, read_sweep
from sdbench.study.plan import BASELINE, Study, Unit
from sdbench.study.runner import call_arguments, eight_bit, loop_length, prepare, progress_bar
from sdbench.variants.branches import Branches, Mask, Trunk
from sdbench.variants.guidance import guided_by
from sdbench.variants.registry import parse
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener, Step

KINDS = ("single", "window", "last", "first", "interval")
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
        """One letter per step, 1 where it is guided."""
        return "".join("01"[guided] for guided in self.mask)


def branches_of(kind: str, steps: int, *, length: int | None = None, stride: int = 1) -> list[Branch]:
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
            (start, count) for start in range(0, steps, stride) for count in lengths if start + count <= steps
        ],
    }[kind]
    inside = kind == "interval"
    made = (
        Branch(kind, start, count, tuple((start <= step < start + count) == inside for step in range(steps)))
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
        if not found:
            raise ValueError(f"no mask of kind '{self.kind}' leaves a step unguided in {steps} steps")
        return sorted(found, key=lambda branch: branch.mask, reverse=True)


def _mask(text: str, steps: int) -> Mask:
    if set(text) - {"0", "1"}:
        raise ValueError(f"mask '{text}' may hold only 0 and 1")
    if len(text) != steps:
        raise ValueError(f"mask '{text}' has {len(text)} steps but the loop runs {steps}")
    if "0" not in text:
        raise ValueError(f"mask '{text}' guides every step: that is the baseline")
    return tuple(letter == "1" for letter in text)


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


def sweep(pipe: Any, study: Study, plan: SweepPlan, out: str | Path | None = None, *, mode: str = "new") -> Sweep:
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
    work = prepare(pipe, study)
    branches = plan.branches(loop_length(pipe, study))
    max_rows = _affordable_rows(pipe, work.row_peak_bytes) if plan.max_rows is None else plan.max_rows
    if max_rows < 1:
        raise ValueError(f"max_rows must be at least 1, not {max_rows}")
    settings = {name: getattr(plan, name) for name in ("kind", "length", "stride", "masks", "growth")}
    record = study.as_json() | {"quality": quality, "sweep": settings}
    out = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="sdbench-"))
    env = environment() | layout(pipe)
    with StudyFolder.create(out, record, environment=env, mode=mode, tables=SWEEP) as folder:  # type: ignore[arg-type]
        finished = folder.finished()
        groups = [_Group(study, pairs, branches, max_rows) for pairs in _batches(study.pairs, study.batch)]
        try:
            with progress_bar() as progress:
                total = sum(len(group.calls) for group in groups)
                task = progress.add_task("branching", total=total, completed=0, what="")
                for group in groups:
                    follower = _Follower(pipe, group, growth=plan.growth)
                    for number, call in enumerate(group.calls):
                        progress.update(task, what=f"{len(group.pairs)} x {len(call)} branches")
                        if group.unit(number) not in finished:
                            folder.add(group.unit(number), **follower.follow(number))
                        progress.advance(task)
        finally:
            folder.compact()
    return read_sweep(out)


def _affordable_rows(pipe: Any, row_peak_bytes: float) -> int:
    free = free_bytes(pipe.device)
    rows = int(MEMORY_SHARE * free / row_peak_bytes)
    if rows < 1:
        raise ValueError(
            f"one denoiser row needs {row_peak_bytes / 1e9:.1f} GB and {free / 1e9:.1f} GB are free, half of it to use"
        )
    return min(rows, MOST_ROWS)


def _batches(entries: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    return [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]


@dataclass(frozen=True)
class _Group:
    """Pairs that share their calls: the trunk first, then the branches, as many at a time as rows are allowed."""

    study: Study
    pairs: tuple[tuple[str, str, int], ...]
    branches: list[Branch]
    max_rows: int

    @property
    def calls(self) -> list[tuple[Branch, ...]]:
        trunk = Branch("baseline", None, None, (True,) * len(self.branches[0].mask))
        return [(trunk,), *_batches(self.branches, max(1, self.max_rows // len(self.pairs)))]

    def unit(self, number: int) -> str:
        """Short hash of what a call computes."""
        content = json.dumps([self.study.as_json(), self.pairs, [branch.text for branch in self.calls[number]]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass
class _Follower:
    """Runs the calls of one group; the trunk when the first of them needs it."""

    pipe: Any
    group: _Group
    growth: bool
    trunk: Trunk = field(default_factory=Trunk)
    path: dict[int, Tensor] = field(default_factory=dict)
    reference: Float[Tensor, "pairs 3 height width"] | None = None

    def follow(self, number: int) -> dict[str, pd.DataFrame]:
        """The rows of every table of the sweep from one call."""
        if number > 0 and self.reference is None:
            self.follow(0)  # of a sweep that goes on
        group, study = self.group, self.group.study
        branches = group.calls[number]
        pairs = [pair for pair in group.pairs for _ in branches]
        masks = Branches([branch.mask for branch in branches], len(group.pairs), self.trunk, max_rows=group.max_rows)
        distances = _Distances(self.path)
        arguments = call_arguments(study, Unit(study, parse(BASELINE), tuple(pairs), 0, "measured"), self.pipe)
        with _decoding_one_by_one(self.pipe), guided_by(self.pipe, masks, listeners=[distances] if self.growth else []):
            images = eight_bit(self.pipe(**arguments, output_type="pt").images)
        if number == 0:
            self.reference = images
        assert self.reference is not None
        known = [
            {"unit": group.unit(number), "prompt_id": prompt_id, "prompt": prompt, "seed": seed}
            | {"kind": branch.kind, "start": branch.start, "length": branch.length, "mask": branch.text}
            for (prompt_id, prompt, seed), branch in zip(pairs, list(branches) * len(group.pairs), strict=True)
        ]
        cost = [
            {"nfe": GuidanceSchedule(branch.mask).nfe, "rows": rows // len(group.pairs)}
            for branch, rows in zip(branches, masks.rows, strict=True)
        ] * len(group.pairs)
        about = {
            "model": study.model,
            "scheduler": type(self.pipe.scheduler).__name__,
            "num_steps": study.num_steps,
            "guidance_scale": study.guidance_scale,
        }
        quality = self._quality(images, [prompt for _, prompt, _ in pairs], len(branches))
        rows = [a | about | b | c for a, b, c in zip(known, cost, quality, strict=True)]
        growth = [
            row | {"step": step, "distance": float(distance[index])}
            for step, distance in distances.by_step.items()
            for index, row in enumerate(known)
        ]
        return {"sensitivity": frame("sensitivity", rows), "growth": frame("growth", growth)}

    def _quality(
        self, images: Float[Tensor, "n 3 height width"], prompts: list[str], branches: int
    ) -> list[dict[str, float]]:
        assert self.reference is not None
        values = {}
        for name in self.group.study.metrics or ():
            metric, _ = find_metric(name)
            against: Any = prompts if metric.needs == "prompt" else self.reference.repeat_interleave(branches, dim=0)
            values[metric.name] = score(name, images, against).tolist()
        return [{name: column[index] for name, column in values.items()} for index in range(len(images))]


class _Distances(Listener):
    """How far the latents of every branch are from the trunk's, step by step; the trunk's own call lays down the path.

    The distance before step k is the norm of the difference over the norm of the trunk's latents, after k steps.
    """

    def __init__(self, path: dict[int, Tensor]) -> None:
        self.path = path
        self.by_step: dict[int, Float[Tensor, " rows"]] = {}

    def scheduler_begins(self, step: Step) -> None:
        """Compare, or keep, the latents that the step starts from."""
        assert step.sample is not None
        sample = step.sample.detach().float()
        trunk = self.path.setdefault(step.index, sample)
        branches = len(sample) // len(trunk)
        base = trunk.repeat_interleave(branches, dim=0)
        self.by_step[step.index] = (sample - base).flatten(1).norm(dim=1) / base.flatten(1).norm(dim=1)


@contextmanager
def _decoding_one_by_one(pipe: Any) -> Iterator[None]:
    """Have the autoencoder decode the many images of a call one after the other, where it can."""
    vae: Any = getattr(pipe, "vae", None)
    if not hasattr(vae, "use_slicing") or vae.use_slicing:
        yield
        return
    vae.use_slicing = True
    try:
        yield
    finally:
        vae.use_slicing = False
