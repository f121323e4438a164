"""The contracts that a variant and a metric must keep, for people who register their own.

`check_variant` and `check_metric` run them and raise an `AssertionError` that says what is broken:

    register_variant(Method("middle", ..., examples=("middle:2",)))
    check_variant("middle:2")
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sdbench.instruments.clock import clock_for
from sdbench.instruments.metric import Metric
from sdbench.instruments.quality import find_metric, score
from sdbench.instruments.steps import GiveWay, StepProbe
from sdbench.models.pipeline import Pipeline, denoiser_of
from sdbench.models.registry import load
from sdbench.records.files import first_line
from sdbench.records.names import BASELINE
from sdbench.study.call import Call, ready
from sdbench.study.generation import Generation, Pairs
from sdbench.study.lockstep import Alone, Ended, take_turns
from sdbench.variants.grammar import methods_of, parse
from sdbench.variants.rows import first_tensor

PROMPTS = (
    "a small dotted green cross on a black background",
    "a large blue ring on a white background",
)
STEPS = 8
"""Of the loop in which a variant is tried; the examples of a method are for this number."""
BATCH_TOLERANCE = 2e-3
"""Of a pixel in [0, 1]: convolutions of another batch size sum in another order."""
WORK_TOLERANCE = 0.01
"""Share of a row's work that counts as a saving."""


@dataclass(frozen=True)
class _Made:
    """What a call gave: images in [0, 1], denoiser rows, and work where it was counted."""

    images: Float[Tensor, "n 3 height width"]
    rows: int
    flop: int


class VariantContract:
    """The contract of variants on one pipeline; the baseline runs once for all of them.

    Args:
        pipe: a guided pipeline; mini-sd by default.
        guidance_scale: w, above 1.
        prompts: two at least, so that one batch can be compared with another.
    """

    def __init__(
        self,
        pipe: Pipeline | None = None,
        *,
        guidance_scale: float = 5.0,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        """Run the baseline."""
        self.pipe = load("mini-sd") if pipe is None else pipe
        self._generation = Generation(
            model=type(self.pipe).__name__,
            prompts=tuple(prompts),
            seeds=(0,),
            num_steps=STEPS,
            guidance_scale=guidance_scale,
        )
        self._pairs: Pairs = tuple(
            (f"{seed:03d}", prompt, seed) for seed, prompt in enumerate(prompts)
        )
        self._baseline = self._made(BASELINE, self._pairs, counted=True)

    def check(self, text: str) -> None:
        """Hold a variant against what its methods say of themselves.

        It saves the rows and the work that they promise, and no others. It changes the images,
        which stay finite. Repeated, it gives the same bits, also where a call of the baseline runs
        between its steps, unless its accelerator takes no turns. An image does not depend on its
        batch. Afterwards the pipeline makes the baseline's images again, bit for bit.

        Args:
            text: of the variant grammar.

        Raises:
            AssertionError: what is broken.
            ValueError: a text that is no variant, or one that cannot run on this pipeline.
        """
        made = self._made(text, self._pairs, counted=True)
        self._check_savings(text, made)

        images = made.images
        _require(not torch.equal(images, self._baseline.images), f"{text} changes no image")
        _require(bool(torch.isfinite(images).all()), f"{text} makes values that are not finite")
        repeated = self._made(text, self._pairs)
        _require(torch.equal(repeated.images, images), f"{text} repeated gives another image")
        for index, pair in enumerate(self._pairs):
            alone = self._made(text, (pair,)).images
            away = float((alone - images[[index]]).abs().max())
            _require(
                away < BATCH_TOLERANCE,
                f"{text}: image {index} differs by {away:g} from the one that is made alone",
            )

        after = self._made(BASELINE, self._pairs).images
        _require(torch.equal(after, self._baseline.images), f"{text} leaves the pipeline changed")
        self._check_turns(text, images)

    def _check_turns(self, text: str, images: Float[Tensor, "n 3 height width"]) -> None:
        """In lockstep with the baseline both make the images that they make alone."""
        method = parse(text).accelerator
        if method is not None and not method.takes_turns:
            return

        def in_turn(own: Pipeline, give_way: GiveWay, name: str) -> Float[Tensor, "n ..."]:
            probe = StepProbe(own.scheduler, clock_for(own.device), give_way)
            call = Call(self._generation, parse(name), self._pairs)
            with ready(own, call, listeners=[probe], copies_weights=True) as run:
                return run().images

        calls = [partial(in_turn, name=name) for name in (text, BASELINE)]
        for name, end, expected in zip(
            (text, BASELINE),
            take_turns(self.pipe, calls, seed=text),
            (images, self._baseline.images),
            strict=True,
        ):
            reason = end.reason if isinstance(end, Alone) else "it makes another image"
            same = isinstance(end, Ended) and torch.equal(end.returned, expected)
            _require(same, f"{text} beside {BASELINE}, step by step: {name} fails, {reason}")

    def _check_savings(self, text: str, made: _Made) -> None:
        """Rows, work, and work in a row, against what the methods promise."""
        methods = methods_of(text)
        saves_rows = any(method.saves_rows for method in methods)
        saves_work = any(method.saves_work for method in methods)
        plain = self._baseline
        _require(
            (made.rows < plain.rows) == saves_rows,
            f"{text} evaluates {made.rows} rows, full guidance {plain.rows}, "
            f"but saves_rows is {saves_rows}",
        )
        _require(
            (made.flop < plain.flop) == (saves_rows or saves_work),
            f"{text} takes {made.flop:.3g} FLOP, full guidance {plain.flop:.3g}, "
            f"but saves_rows is {saves_rows} and saves_work {saves_work}",
        )
        if any(method.saves_work is None for method in methods):
            return  # it depends on the network
        in_a_row = made.flop / made.rows / (plain.flop / plain.rows)
        _require(
            (in_a_row < 1 - WORK_TOLERANCE) == saves_work,
            f"a row of {text} takes {in_a_row:.1%} of a row's work, but saves_work is {saves_work}",
        )

    def _made(self, text: str, pairs: Pairs, *, counted: bool = False) -> _Made:
        rows: list[int] = []

        def counting(module: nn.Module, args: Any, kwargs: Any) -> None:
            rows.append(len(first_tensor((args, kwargs))))

        # Rows are counted at the denoiser, not taken from the trace's word. A copy of it in another
        # number format has this hook, too.
        counter = FlopCounterMode(display=False) if counted else nullcontext()
        call = Call(self._generation, parse(text), pairs)
        denoiser = denoiser_of(self.pipe)
        hook = denoiser.register_forward_pre_hook(counting, with_kwargs=True)
        try:
            with counter as work, ready(self.pipe, call) as run:
                images = run().images  # what is not finite is for the contract to see
        finally:
            hook.remove()
        return _Made(images, sum(rows), work.get_total_flops() if work is not None else 0)


@cache
def _contract_of_mini_sd() -> VariantContract:
    return VariantContract()


def check_variant(text: str, *, pipe: Pipeline | None = None, guidance_scale: float = 5.0) -> None:
    """Hold a variant against its contract, as `VariantContract.check` says.

    Args:
        text: of the variant grammar; it has to run in a loop of 8 steps.
        pipe: a guided pipeline; mini-sd by default.
        guidance_scale: w, above 1, of a pipeline that is given.

    Raises:
        AssertionError: what is broken.
        ValueError: a text that is no variant, or one that cannot run on this pipeline.
    """
    if pipe is None:
        contract = _contract_of_mini_sd()
    else:
        contract = VariantContract(pipe, guidance_scale=guidance_scale)
    contract.check(text)


def check_metric(
    name: str,
    *,
    images: Float[Tensor, "n 3 height width"] | None = None,
    prompts: Sequence[str] = PROMPTS,
) -> None:
    """Hold a metric against its contract.

    It gives one number per image. Repeated, it gives the same numbers. A number does not depend on
    the batch. Of a metric with a reference and a direction, no image is nearer to the reference
    than itself. It judges the smallest images that it says it takes, and those of which one side
    alone is so small. Its provenance can be stored.

    Args:
        name: in `METRICS`, with its option where it takes one.
        images: to be judged, in [0, 1], two at least; by default noise of 64 pixels a side, or of
            the sides that it takes.
        prompts: one per image, for a metric that needs them.

    Raises:
        AssertionError: what is broken.
        ValueError: an unknown metric, or images that it does not take.
    """
    metric, options = find_metric(name)
    if images is None:
        side = metric.only_side or max(64, metric.smallest_side)
        images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    other = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    against: Any = list(prompts[: len(images)]) if metric.needs == "prompt" else other

    values = score(name, images, against)
    _require(
        values.shape == (len(images),), f"{name} gives {tuple(values.shape)}, not one per image"
    )
    _require(_same(score(name, images, against), values), f"{name} repeated gives other numbers")
    alone = torch.cat([score(name, images[[i]], against[i : i + 1]) for i in range(len(images))])
    _require(
        _same(alone, values, tolerance=1e-4), f"{name} gives an image another number when alone"
    )

    if metric.needs == "reference" and metric.higher_is_better is not None:
        itself = score(name, images, images).nan_to_num(torch.inf)  # PSNR of the same image
        sign = 1 if metric.higher_is_better else -1
        is_best = bool((sign * itself >= sign * values).all()) or bool(itself.isinf().all())
        _require(is_best, f"{name} puts another image nearer to the reference than itself")

    _check_sizes(name, metric, prompts)

    try:
        json.dumps(metric.provenance(*options), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"the provenance of {name} cannot be stored: {error}") from None


def _check_sizes(name: str, metric: Metric, prompts: Sequence[str]) -> None:
    """A metric judges the smallest images that it says it takes."""
    small = metric.only_side or metric.smallest_side
    longer = metric.only_side or 2 * small + 32
    for height, width in {(small, small), (small, longer), (longer, small)}:
        noise = torch.rand(2, 1, 3, height, width, generator=torch.Generator().manual_seed(2))
        images, reference = noise
        try:
            score(name, images, list(prompts[:1]) if metric.needs == "prompt" else reference)
        except Exception as error:
            raise AssertionError(
                f"{name} says that it takes images of {small} pixels a side, but fails on "
                f"{height} x {width}: {type(error).__name__}: {first_line(error)}"
            ) from error


def _same(
    values: Float[Tensor, " n"], others: Float[Tensor, " n"], *, tolerance: float = 0.0
) -> bool:
    return torch.allclose(values, others, rtol=tolerance, atol=tolerance, equal_nan=True)


def _require(holds: bool, message: str) -> None:
    """An assertion that holds under `python -O`, too."""
    if not holds:
        raise AssertionError(message)
