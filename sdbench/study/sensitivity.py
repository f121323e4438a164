"""The branching engine: what the image loses when guidance is dropped at some steps, for many masks at once.

One pipeline call guides every image at every step; the branches of later calls leave that trunk where their masks do
(`variants/branches.py`), so a mask costs no more than its steps after its first unguided one. Every row has its own
generator with the image's seed, and the pipeline's own loop runs, so a branch ends where its mask ends alone.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from sdbench.instruments.quality import find_metric, provenance, score
from sdbench.models.random_weights import free_bytes, has_random_weights
from sdbench.models.registry import layout
from sdbench.records.environment import environment
from sdbench.records.schema import SWEEP, frame
from sdbench.records.store import Mode, StudyFolder, Sweep, read_sweep
from sdbench.study.images import eight_bit
from sdbench.study.plan import BASELINE, Study, Unit
from sdbench.study.runner import progress_bar
from sdbench.study.trial import call_arguments, loop_length, prepare
from sdbench.variants.branches import Branches, Trunk
from sdbench.variants.guidance import guided_by, replaced
from sdbench.variants.registry import parse
from sdbench.variants.rows import joined
from sdbench.variants.schedule import GuidanceSchedule, Mask, mask_of, mask_text
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
        """The mask as `mask_text` writes it."""
        return mask_text(self.mask)


def baseline(steps: int) -> Branch:
    """The branch that guides every step."""
    return Branch("baseline", None, None, (True,) * steps)


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
        if len({branch.mask for branch in found}) < len(found):
            raise ValueError("a mask is there twice")
        if not found:
            raise ValueError(f"no mask of kind '{self.kind}' leaves a step unguided in {steps} steps")
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


def sweep(pipe: Any, study: Study, plan: SweepPlan, out: str | Path | None = None, *, mode: Mode = "new") -> Sweep:
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
    settings = {name: getattr(plan, name) for name in ("kind", "length", "stride", "masks", "growth")}
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
                    left = [b for b in (trunk, *branches) if (prompt_id, seed, b.text) not in finished]
                    progress.advance(task, len(pairs) * (1 + len(branches) - len(left)))
                    for call in group.calls(left):
                        progress.update(task, what=f"{len(pairs)} x {len(call)} branches")
                        rows, growth = group.follow(call, growth=plan.growth)
                        unit, tables = _unit(study, pairs, call), {"sensitivity": rows, "growth": growth}
                        folder.add(
                            unit, **{n: frame(n, [{"unit": unit} | row for row in t]) for n, t in tables.items()}
                        )
                        progress.advance(task, len(pairs) * len(call))
        finally:
            folder.compact()
    return read_sweep(out)


def require_plain(study: Study) -> None:
    """Refuse what branches cannot do, so that no record says what did not run.

    Raises:
        ValueError: a study that stops at latents, compiles, or splits guided steps.
    """
    for name, plain in (("output", "image"), ("execution", "eager"), ("guidance_execution", None)):
        if getattr(study, name) != plain:
            raise ValueError(f"{name} '{getattr(study, name)}' is for studies of time; branches have no such choice")


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
        raise ValueError(f"one denoiser row needs more than the {free / 1e9:.1f} GB that are free") from None
    rows = int(MEMORY_SHARE * free / row_bytes)
    if rows < 1:
        raise ValueError(f"one denoiser row needs {row_bytes / 1e9:.1f} GB; {free / 1e9:.1f} GB are free, half to use")
    return min(rows, MOST_ROWS) if asked is None else asked


def batches(entries: Sequence[Any], size: int) -> list[tuple[Any, ...]]:
    """Consecutive entries, `size` at a time."""
    return [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]


def _unit(study: Study, pairs: tuple[tuple[str, str, int], ...], branches: Sequence[Branch]) -> str:
    """Short hash of what a call computes."""
    content = json.dumps([study.as_json(), pairs, [branch.text for branch in branches]])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class Brancher:
    """Follows branches of a few pairs; the trunk runs once, before the first of them.

    Args:
        pipe: a guided pipeline.
        study: its steps, scale, metrics and further arguments.
        pairs: (prompt_id, prompt, seed) of every image.
        max_rows: of one denoiser evaluation.
    """

    def __init__(self, pipe: Any, study: Study, pairs: tuple[tuple[str, str, int], ...], max_rows: int) -> None:
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
        masks = Branches([branch.mask for branch in branches], len(self.pairs), self._trunk, max_rows=self.max_rows)
        distances = _Distances(self._path)
        arguments = call_arguments(
            self.study, Unit(self.study, parse(BASELINE), tuple(pairs), 0, "measured"), self.pipe
        )
        listeners = [distances] if growth else []
        with decoding_in_pieces(self.pipe, self.study.batch), guided_by(self.pipe, masks, listeners=listeners):
            images = eight_bit(self.pipe(**arguments, output_type="pt").images)
        if self._reference is None:
            self._reference = images
        known = [
            {"prompt_id": prompt_id, "prompt": prompt, "seed": seed}
            | {"kind": branch.kind, "start": branch.start, "length": branch.length, "mask": branch.text}
            for (prompt_id, prompt, seed), branch in zip(pairs, [*branches] * len(self.pairs), strict=True)
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

    def quality(self, images: Float[Tensor, "n 3 height width"], prompts: list[str]) -> list[dict[str, float]]:
        """Every metric of every image: as many for each pair, those of the first pair first."""
        assert self._reference is not None
        reference = self._reference.repeat_interleave(len(images) // len(self.pairs), dim=0)
        values = {}
        for name in self.study.metrics or ():
            metric, _ = find_metric(name)
            values[metric.name] = score(name, images, prompts if metric.needs == "prompt" else reference).tolist()
        return [{name: column[index] for name, column in values.items()} for index in range(len(images))]


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
        return functools.reduce(joined, (whole(piece, *args, **kwargs) for piece in latents.split(size)))

    with replaced(vae, "decode", decode):
        yield
