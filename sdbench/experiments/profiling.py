"""Where time and work go: by kind of layer and by block, of a guided and of an unguided step.

Steps with a hook on every layer take turns with steps without any, so that what the hooks cost is
on record. Work is counted in a call of its own, which is slow.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from sdbench.analysis.modules import GUIDED, UNGUIDED
from sdbench.experiments.counted_work import places
from sdbench.instruments.clock import clock_for
from sdbench.instruments.layers import Place
from sdbench.instruments.modules import ModuleCounter, ModuleTimer, Timed, Work, watching
from sdbench.instruments.peaks import peaks
from sdbench.models.pipeline import Pipeline, denoiser_of, networks_of
from sdbench.models.settings import settings_of
from sdbench.records.environment import environment
from sdbench.records.schema import MODULES, frame
from sdbench.records.store import Mode, StudyFolder
from sdbench.study.call import Call, ready
from sdbench.study.check import prepare
from sdbench.study.generation import Generation
from sdbench.study.study import Study
from sdbench.variants.grammar import parse

KINDS_OF_STEPS = {True: GUIDED, False: UNGUIDED}
HALF = "every:2"  # steps of both kinds take turns
FEW = 4  # steps of the call in which work is counted


def profile(
    pipe: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    guidance_scale: float,
    num_steps: int = 12,
    rounds: int = 4,
    out: str | Path | None = None,
    mode: Mode = "new",
    **fields: Any,
) -> pd.DataFrame:
    """Time and work of a guided and an unguided step, by kind of layer and by block.

    Text encoders and the decoding stand beside the steps, under the step "text" and "decode".

    Args:
        pipe: a guided pipeline that runs in eager mode.
        prompts: of the call; as many images as prompts times seeds.
        seeds: of the images.
        guidance_scale: w, above 1; it does not change the cost.
        num_steps: of a call; every second one is unguided, and half of each kind are watched.
        rounds: calls, an even number; in every second one other steps are watched.
        out: folder that gets the table.
        mode: "new" or "overwrite", for a folder that holds a profile.
        **fields: further fields of `Generation`, such as `height` or `arguments`.

    Returns:
        The table `modules`: means of the middle half of the steps and calls.

    Raises:
        ValueError: before the first call, for anything that cannot run.

    Warns:
        UserWarning: an operation has no FLOP formula; then no work is in the table.
    """
    settings: dict[str, Any] = {"model": type(pipe).__name__, "batch": len(prompts) * len(seeds)}
    settings |= fields | {"prompts": prompts, "seeds": seeds}
    generation = Generation(**settings, num_steps=num_steps, guidance_scale=guidance_scale)
    return measured(pipe, generation, rounds=rounds, out=out, mode=mode)


def measured(
    pipe: Pipeline,
    generation: Generation,
    *,
    rounds: int = 4,
    out: str | Path | None = None,
    mode: Mode = "new",
) -> pd.DataFrame:
    """The table `modules` of a generation's first batch; arguments as `profile` takes them."""
    if generation.num_steps < FEW:
        raise ValueError(f"a profile takes at least {FEW} steps, not {generation.num_steps}")
    if rounds < 2 or rounds % 2:
        raise ValueError(f"a profile takes an even number of rounds, not {rounds}")
    half = parse(HALF)
    study = Study(**generation.settings, variants=(parse("cfg"), half), metrics=(), repeats=rounds)
    prepare(pipe, study)
    call = Call(generation, half, tuple(study.pairs[: generation.batch]))

    # The first call also warms up.
    counter = ModuleCounter(networks_of(pipe))
    few = replace(call, generation=replace(generation, num_steps=FEW))
    _run(pipe, few, counter)
    if counter.unknown:
        warnings.warn(
            f"no work is counted: there is no FLOP formula for {counter.unknown}", stacklevel=2
        )
    taken = []
    for number in range(rounds):
        clock = clock_for(pipe.device)
        timer = ModuleTimer(networks_of(pipe), clock, watches_first=number % 2 == 0)
        _run(pipe, call, timer)
        taken += timer.taken

    top = peaks(pipe.device, next(denoiser_of(pipe).parameters()).dtype)
    most = {"peak_flop_s": top.flop_s, "peak_copy_s": top.copy_s}
    table = frame("modules", [row | most for row in _rows(counter, taken)])
    if out is not None:
        record = generation.as_json() | {"rounds": rounds}
        machine = environment() | settings_of(pipe) | {"peaks": top._asdict()}
        how: dict[str, Any] = {"environment": machine, "mode": mode, "tables": MODULES}
        with StudyFolder.create(out, record, **how) as folder:
            folder.rewrite("modules", table)
    return table


def _run(pipe: Pipeline, call: Call, observer: ModuleTimer | ModuleCounter) -> None:
    with ready(pipe, call, listeners=[observer]) as run, observer.call():
        run()


def _rows(counter: ModuleCounter, taken: Sequence[Timed]) -> Iterator[dict[str, Any]]:
    """The rows of the table: of both kinds of steps, and of what is around the loop."""
    # The first step may evaluate more than its kind, to find out which half is which.
    work: dict[str | bool, Work] = counter.around | dict(counter.steps)
    for name, own in work.items():
        of_name = [timed for timed in taken if timed.name == name]
        watched = _middle(of_name, watched=True)
        plain_s = fmean(one.whole_s for one in _middle(of_name, watched=False))
        added_s = fmean(one.whole_s for one in watched) - plain_s

        places_s = _means([one.places or {} for one in watched])
        watch_s = watching(_means([one.entered for one in watched]), added_s)
        step = name if isinstance(name, str) else KINDS_OF_STEPS[name]
        for place, row in places(step, own, places_s, has_flop=not counter.unknown):
            spent = {"plain_s": plain_s}
            if place in places_s:
                spent["watch_s"] = min(watch_s[place], places_s[place])
                spent["seconds"] = places_s[place] - spent["watch_s"]
            yield row | spent


def _middle(taken: Sequence[Timed], *, watched: bool) -> list[Timed]:
    """The middle half of what was timed: places of whole steps add up, as their medians do not."""
    own = sorted(
        (one for one in taken if (one.places is not None) == watched), key=lambda one: one.whole_s
    )
    cut = len(own) // 4
    return own[cut : len(own) - cut]


def _means(watched: Sequence[Mapping[Place, float]]) -> dict[Place, float]:
    """The mean of every place; a call that did not come there has zero."""
    places = {place: None for spent in watched for place in spent}
    return {place: fmean(spent.get(place, 0.0) for spent in watched) for place in places}
