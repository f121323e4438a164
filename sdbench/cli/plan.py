"""`sdbench plan`: a guidance schedule is searched, judged on other prompts, and timed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from sdbench.cli.console import command, console
from sdbench.cli.options import (
    Arguments,
    Device,
    Dtype,
    GuidanceScale,
    HeldOutFile,
    HeldOutPairs,
    MaxRows,
    Model,
    NumSteps,
    Out,
    Overwrite,
    Seeds,
    SharedBatch,
    TuningFile,
    WeightsVariant,
    compared,
    running,
)
from sdbench.cli.values import new_folder, positive, share, split, study_fields, whole, write_mode
from sdbench.records.names import BASELINE

if TYPE_CHECKING:
    from sdbench.experiments.planning import Plans, Target

# What a plan is for: one of these three.
_Unguided = Annotated[str | None, compared(help="numbers of unguided steps, separated by commas")]
_MaxLpips = Annotated[
    float | None, compared(help="as many unguided steps as keep LPIPS within this")
]
_Saving = Annotated[
    str | None, compared(help="as few unguided steps as save this share of time, such as 15%")
]

# How it is searched.
_Metric = Annotated[str, compared(help="metric that the search makes better")]
_Scales = Annotated[
    str | None, compared(help="also try these guidance scales on the steps that stay guided")
]
_Rounds = Annotated[int, running(help="most rounds of the search")]


@command
def plan(
    unguided: _Unguided = None,
    max_lpips: _MaxLpips = None,
    saving: _Saving = None,
    metric: _Metric = "lpips",
    scales: _Scales = None,
    model: Model = None,
    tuning_file: TuningFile = None,
    held_out_file: HeldOutFile = None,
    pairs: HeldOutPairs = 128,
    seeds: Seeds = None,
    num_steps: NumSteps[int | None] = None,
    guidance_scale: GuidanceScale = None,
    arguments: Arguments = None,
    rounds: _Rounds = 6,
    batch: SharedBatch = None,
    max_rows: MaxRows = None,
    dtype: Dtype[str | None] = None,
    device: Device = None,
    weights_variant: WeightsVariant = None,
    out: Out = None,
    overwrite: Overwrite = False,
) -> None:
    """Search which steps to leave unguided, and judge the choice on other prompts.

    Give one of --unguided, --max-lpips and --saving. The plan is compared with every simple choice
    of as many steps.
    """
    target = _target(unguided, max_lpips, saving, metric)
    from sdbench.experiments import planning
    from sdbench.study.check import loaded
    from sdbench.study.study import Study

    fields = study_fields(locals())
    study = Study.protocol("mini-sd", **fields, variants=[BASELINE], metrics=[metric])
    sets = planning.tuning_and_held_out(study.generation, tuning_file, held_out_file, pairs=pairs)
    plans = planning.plan(
        loaded(study),
        sets.tuning,
        sets.held_out,
        target,
        out or new_folder("plan"),
        metric=metric,
        metrics=sets.metrics,
        scales=[positive("--scales", scale) for scale in split(scales) or ()],
        rounds=rounds,
        max_rows=max_rows,
        mode=write_mode(resume=False, overwrite=overwrite, out=out),
    )
    _report(plans, metric)


def _target(
    unguided: str | None, max_lpips: float | None, saving: str | None, metric: str
) -> Target:
    """What the plans are for."""
    if max_lpips is not None and metric != "lpips":
        raise ValueError(f"--max-lpips needs --metric lpips, not {metric}")
    from sdbench.experiments.planning import Target

    counts = () if unguided is None else tuple(whole("--unguided", unguided))
    return Target(counts, max_lpips, None if saving is None else share("--saving", saving))


def _report(plans: Plans, metric: str) -> None:
    """The verdicts by the metric of the search and by alignment, their picture, and the files."""
    from sdbench.analysis.plans import plan_table
    from sdbench.analysis.tables import summarise
    from sdbench.instruments.quality import find_metric
    from sdbench.report.figures import plan_figure
    from sdbench.report.tables import plan_text

    kind, _ = find_metric(metric)
    timing = summarise(plans.timing)
    higher = bool(kind.higher_is_better)
    table = plan_table(plans.judged, kind.name, higher_is_better=higher, timing=timing)
    console.print(plan_text(table, kind.name, width=console.width))

    judged = plans.judged
    is_aligned = "alignment" in judged and judged["alignment"].notna().any()
    if is_aligned and metric != "alignment":
        by_alignment = plan_table(judged, "alignment", higher_is_better=True, timing=timing)
        console.print(plan_text(by_alignment, "alignment", width=console.width))

    plan_figure(table, kind.name).savefig(plans.folder / "plan.png")
    console.print(
        f"Schedules (plan-K.json), judged.parquet, timing/ and plan.png are in {plans.folder}",
        soft_wrap=True,
    )
