"""What fewer steps cost on mini-sd: `python -m benchmarks.step_counts ddim --out DIR`.

Full guidance with 8 to 50 steps of a scheduler, from the same first noise level on, on the captions
that mini-sd never saw: LPIPS to its own 50 steps, and alignment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from diffusers import DPMSolverMultistepScheduler

import sdbench
from sdbench.models.pipeline import Pipeline
from sdbench.records.store import Mode
from sdbench.report.tables import markdown
from sdbench.study import protocols
from sdbench.variants.grammar import parse

COUNTS = (8, 10, 12, 16, 20, 25, 35)
STEPS = 50
SCHEDULERS = {"ddim": None, "dpmpp-2m": DPMSolverMultistepScheduler}
"""By name; None stands for the model's own."""
HELD_OUT = Path(protocols.__path__[0]) / "mini-sd-held-out.txt"


def scheduled(scheduler: str, *, model: str = "mini-sd") -> Pipeline:
    """The model with a scheduler of `SCHEDULERS`.

    Raises:
        ValueError: another name.
    """
    if scheduler not in SCHEDULERS:
        raise ValueError(f"unknown scheduler '{scheduler}'; there are: {', '.join(SCHEDULERS)}")
    pipe: Pipeline = sdbench.load(model)
    kind = SCHEDULERS[scheduler]
    if kind is not None:
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    return pipe


def main(
    scheduler: Annotated[str, typer.Argument(help=", ".join(SCHEDULERS))],
    out: Annotated[Path, typer.Option(help="the study's folder; what is there is continued")],
    model: Annotated[str, typer.Option(help="name, hub id or folder")] = "mini-sd",
    captions: Annotated[int, typer.Option(help="of the held-out ones")] = 256,
    batch: Annotated[int, typer.Option(help="images per call")] = 64,
) -> None:
    """Run the study and print what it says."""
    study = sdbench.Study(
        name=f"steps-{scheduler}",
        model=model,
        variants=tuple(map(parse, ("cfg", *(f"steps:{count}" for count in COUNTS)))),
        prompts=tuple(HELD_OUT.read_text("utf-8").splitlines()[:captions]),
        seeds=(0,),
        num_steps=STEPS,
        guidance_scale=5.0,
        batch=batch,
        repeats=1,
        warmups=0,
        metrics=("lpips", "alignment"),
    )
    mode: Mode = "resume" if out.exists() else "new"
    results = sdbench.run(study, out, pipe=scheduled(scheduler, model=model), mode=mode)
    typer.echo(markdown(sdbench.summarise(results)))


if __name__ == "__main__":
    typer.run(main)
