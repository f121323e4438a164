"""What students of few steps are worth: `python -m benchmarks.few_steps STUDENT --out FOLDER`.

Every way of spending as many evaluations per image on mini-sd, on captions that it never saw, one
seed each: LPIPS to the guided run of 50 steps, and to that of 200. Images are kept in a folder, so
that a run that was ended goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import torch
import typer
from jaxtyping import UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor

import sdbench
from benchmarks.step_counts import HELD_OUT, SCHEDULERS, scheduled
from sdbench.analysis.stats import (
    Interval,
    bounded_mean,
    median_interval,
    share_interval,
    sign_interval,
)
from sdbench.cli.values import split
from sdbench.distill.pipeline_call import call_pipeline
from sdbench.instruments.metric import Pixels
from sdbench.models.students import LORA_FILE, read_card
from sdbench.records.metrics import scale_of
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse

SCALE = 5.0
COMPARED = 8
"""Evaluations at which every way is there."""
PART = 16  # images of a call


class Way(NamedTuple):
    """One way of spending evaluations.

    Attributes:
        variant: in sdbench's grammar.
        steps: of the loop.
        evaluations: per image.
        scheduler: of `benchmarks.step_counts`.
        label: what the table calls the variant; empty for its own text.
    """

    variant: str
    steps: int
    evaluations: int
    scheduler: str = "ddim"
    label: str = ""

    @property
    def folder(self) -> str:
        """Where its images are kept."""
        return f"{self.scheduler}, {self.variant}, {self.steps} steps".replace("/", "_")

    @property
    def name(self) -> str:
        """As the table calls it."""
        return f"{self.scheduler}, {self.label or self.variant}, {self.steps} steps"


def ways(evaluations: int, students: Sequence[Path]) -> Iterator[Way]:
    """The ways of spending as many evaluations per image, or one less where that is odd."""
    for student in students:
        made = read_card(student / LORA_FILE).get("num_steps")
        label = f"lora of {made} steps" if made else ""
        yield Way(f"lora:{student}", evaluations, evaluations, label=label)
    yield Way("lora", evaluations, evaluations)
    for scheduler in SCHEDULERS:
        yield Way("cfg", evaluations // 2, 2 * (evaluations // 2), scheduler)

    if evaluations == COMPARED:
        yield Way("unguided", evaluations, evaluations)
        # A kept offset: every second or third step is guided.
        yield Way("cached:2", 5, 8)
        yield Way("cached:3", 6, 8)


def images_of(way: Way, captions: Sequence[str], kept: Path) -> Pixels:
    """The images of a way in [0, 1], from its folder or made now."""
    folder = kept / way.folder
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, len(captions), PART):
        file = folder / f"{first}.safetensors"
        if not file.exists():
            save_file({"images": _made(way, captions[first : first + PART], first)}, file)
        parts.append(load_file(file)["images"].float() / 255)
    return torch.cat(parts)


@torch.no_grad()
def _made(way: Way, captions: Sequence[str], first: int) -> UInt8[Tensor, "n 3 height width"]:
    pipe = scheduled(way.scheduler)
    # An image depends on its caption's place alone, not on the batch.
    noise = [torch.Generator("cpu").manual_seed(first + place) for place in range(len(captions))]
    with applied(pipe, parse(way.variant), guidance_scale=SCALE) as trace:
        output = call_pipeline(
            pipe,
            captions,
            noise,
            guidance_scale=SCALE,
            num_steps=way.steps,
            output_type="pt",
        )
    spent = trace.steps["rows"].sum() / len(captions)
    if spent != way.evaluations:
        raise ValueError(f"{way.name} took {spent:g} evaluations, not {way.evaluations}")
    images: UInt8[Tensor, "n 3 height width"] = (output.images.clamp(0, 1) * 255).round().byte()
    return images


def losses_of(
    students: Sequence[Path],
    captions: Sequence[str],
    evaluations: Sequence[int],
    references: Sequence[int],
    kept: Path,
) -> pd.DataFrame:
    """LPIPS of every way's image of every caption, one column for each reference.

    The budget is what was asked for; a way may spend one evaluation less.
    """
    against = {
        steps: images_of(Way("cfg", steps, 2 * steps), captions, kept) for steps in references
    }
    tables = []
    asked = [(count, way) for count in evaluations for way in ways(count, students)]
    for budget, way in asked:
        images = images_of(way, captions, kept)
        named = {"budget": budget, "evaluations": way.evaluations, "way": way.name}
        table = pd.DataFrame(named | {"caption": captions})
        for steps, target in against.items():
            table[f"lpips_{steps}"] = sdbench.score("lpips", images, target).numpy()
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def table(losses: pd.DataFrame) -> pd.DataFrame:
    """A line for each way: its distances, and how often those of its budget's first are smaller."""
    references = [name for name in map(str, losses) if name.startswith("lpips")]
    lines = []
    for _, within in losses.groupby("budget", sort=False):
        ways_of_budget = [
            rows.set_index("caption") for _, rows in within.groupby("way", sort=False)
        ]
        own = ways_of_budget[0][references[0]]
        for rows in ways_of_budget:
            line: dict[str, object] = {
                "NFE": rows["evaluations"].iloc[0],
                "way": rows["way"].iloc[0],
            }
            for name in references:
                steps = name.removeprefix("lpips_")
                line |= {
                    f"{word} to {steps}": cell for word, cell in _distances(rows[name]).items()
                }
            lines.append(line | _paired((own - rows[references[0]]).astype(float)))
    return pd.DataFrame(lines)


def _paired(difference: pd.Series[float]) -> dict[str, str]:
    """The mean difference of a student to another way, and how often it is nearer."""
    captions = difference.index
    mean = bounded_mean(difference, captions, bounds=scale_of("lpips").differences)
    nearer = sign_interval(difference, captions)
    return {"student less this": _text(mean), "student nearer %": _text(nearer, 100, 0)}


def _distances(losses: pd.Series[float]) -> dict[str, str]:
    """Mean, median and share of changed images, with their intervals."""
    scale = scale_of("lpips")
    assert scale.changed is not None
    captions = losses.index
    return {
        "LPIPS": _text(bounded_mean(losses, captions, bounds=scale.bounds)),
        "median": _text(median_interval(losses, captions)),
        "changed %": _text(share_interval(losses > scale.changed, captions), 100, 0),
    }


def _text(interval: Interval, unit: float = 1, digits: int = 3) -> str:
    estimate, lo, hi = (f"{unit * end:.{digits}f}" for end in interval)
    return f"{estimate} [{lo}, {hi}]"


def main(
    out: Annotated[Path, typer.Option(help="gets losses.parquet; its images/ are used again")],
    students: Annotated[
        list[Path] | None, typer.Argument(help="folders; the first is compared with the others")
    ] = None,
    captions: Annotated[int, typer.Option(help="of the held-out ones")] = 128,
    evaluations: Annotated[str, typer.Option(help="with , between them")] = "4,8,10,12,16,20,25",
    references: Annotated[str, typer.Option(help="steps of the guided runs")] = "50,200",
) -> None:
    """Make what images are missing, store their distances and print the table."""
    losses = losses_of(
        students or [],
        HELD_OUT.read_text("utf-8").splitlines()[:captions],
        split(evaluations, int) or [],
        split(references, int) or [],
        out / "images",
    )
    losses.to_parquet(out / "losses.parquet")

    lines = table(losses)
    for cells in ([*lines], ["---"] * len(lines.columns), *lines.itertuples(index=False)):
        typer.echo(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    typer.run(main)
