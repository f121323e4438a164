"""What training and inference hold in memory, by part, measured and by arithmetic.

`python -m sdbench.distill.ledger` prints it. Every byte that torch's CPU allocator holds at the
peak is put down to a part by when it was taken and given back, so the parts sum to the peak. The
denoiser is run by itself, on zeros: memory does not depend on values.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from sdbench.distill.ledger_arithmetic import predicted
from sdbench.distill.ledger_methods import INFERENCE, METHODS, TRAINING, Setup
from sdbench.distill.ledger_trace import traced
from sdbench.instruments.denoiser_arguments import arguments
from sdbench.models.architectures import ARCHITECTURES
from sdbench.models.mini_sd import networks
from sdbench.records.environment import environment
from sdbench.records.schema import LEDGER, frame
from sdbench.records.store import StudyFolder


def ledger(
    make: Callable[[], Any],
    call: Callable[[Any], dict[str, Any]],
    *,
    methods: Sequence[str] = (*TRAINING, *INFERENCE),
    rank: int,
    targets: Sequence[str],
    checkpoint_gradients: bool = False,
) -> Iterator[list[dict[str, Any]]]:
    """Run every method on a fresh denoiser and put its memory down part by part.

    Args:
        make: makes the denoiser, in the dtype in which it is loaded.
        call: its arguments for a guided step, both halves of the rows.
        methods: of `TRAINING` and `INFERENCE`.
        rank: of the LoRA.
        targets: of the LoRA, as `add_lora` takes them.
        checkpoint_gradients: compute activations again in the backward pass.

    Yields:
        Per method the rows of the table `ledger`.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown:
        raise ValueError(f"unknown method '{unknown[0]}'; there are: {'; '.join(METHODS)}")

    setup = Setup(make, call, rank, targets, checkpoint_gradients)
    for name in methods:
        images, predicted_bytes = predicted(setup, METHODS[name])
        at_peak, most, step_s = traced(setup, METHODS[name])
        # Cycles would keep this method's weights in memory while the next is traced.
        gc.collect()

        shared = {"unit": name, "method": name, "checkpoint_gradients": checkpoint_gradients}
        shared |= {"step_s": step_s, "rows": images}
        yield [
            shared
            | {"part": part, "at_peak_bytes": at_peak.get(part, 0), "most_bytes": most.get(part, 0)}
            | {"predicted_bytes": predicted_bytes.get(part)}
            for part in dict.fromkeys([*predicted_bytes, *most])
        ]


def ledger_of(
    model: str,
    *,
    height: int,
    batch: int,
    rank: int,
    targets: Sequence[str],
    methods: Sequence[str] = (*TRAINING, *INFERENCE),
    checkpoint_gradients: bool = False,
) -> Iterator[pd.DataFrame]:
    """The ledger of a full-size architecture or of mini-sd, in float32 on the CPU.

    Args:
        model: a name in `ARCHITECTURES`, or "mini-sd".
        height: pixels, and as many across.
        batch: images of a step.
        rank: of the LoRA.
        targets: of the LoRA.
        methods: as `ledger` takes them.
        checkpoint_gradients: as `ledger` takes it.

    Yields:
        Per method the rows of the table `ledger`.
    """
    make, size = denoiser_of(model)
    for rows in ledger(
        lambda: make().eval(),
        lambda denoiser: arguments(
            denoiser, rows=2 * batch, height=height, width=height, dtype=torch.float32, **size
        ),
        methods=methods,
        rank=rank,
        targets=targets,
        checkpoint_gradients=checkpoint_gradients,
    ):
        yield frame("ledger", rows)


def denoiser_of(model: str) -> tuple[Callable[[], Any], dict[str, int]]:
    """What makes a model's denoiser, and how large the latents and texts are that it takes."""
    if model == "mini-sd":
        return networks.denoiser, {"vae_factor": 4, "tokens": networks.TOKENS}
    parts = ARCHITECTURES[model].networks
    return (parts.get("unet") or parts["transformer"]).make, {"vae_factor": 8}


def main(
    model: Annotated[str, typer.Option(help="an architecture, or mini-sd")] = "sd15",
    height: Annotated[int, typer.Option(help="pixels, and as many across")] = 256,
    batch: Annotated[int, typer.Option(help="images of a step")] = 1,
    rank: Annotated[int, typer.Option(help="of the LoRA")] = 4,
    targets: Annotated[
        str, typer.Option(help="of the LoRA: attention, feed-forward, convolutions, timestep")
    ] = "attention",
    checkpoint_gradients: Annotated[
        bool, typer.Option("--checkpoint-gradients", help="less memory, slower")
    ] = False,
    methods: Annotated[str, typer.Option(help="with ; between them")] = ";".join(
        (*TRAINING, *INFERENCE)
    ),
    out: Annotated[Path | None, typer.Option(help="gets the table")] = None,
) -> None:
    """Print every method's memory at its peak, part by part, and the seconds of a step.

    All of it is in float32 on the CPU.
    """
    out = out or Path(tempfile.mkdtemp(prefix="sdbench-"))
    settings = {"model": model, "height": height, "batch": batch, "rank": rank, "targets": targets}
    tables = ledger_of(
        model,
        height=height,
        batch=batch,
        rank=rank,
        targets=targets.split(","),
        methods=methods.split(";"),
        checkpoint_gradients=checkpoint_gradients,
    )
    with StudyFolder.create(out, settings, environment=environment(), tables=LEDGER) as folder:
        for table in tables:
            folder.add(str(table["unit"].iloc[0]), ledger=table)
            folder.compact()
            typer.echo(_text(table))


def _text(rows: pd.DataFrame) -> str:
    """One method's lines: its peak and its time, then every part in MB."""
    first = rows.iloc[0]
    peak_bytes = rows["at_peak_bytes"].sum()
    lines = [f"{first['method']}: peak {peak_bytes / 1e6:.0f} MB, {first['step_s']:.2f} s a step"]
    for _, row in rows.iterrows():
        at_peak_mb = row["at_peak_bytes"] / 1e6
        most_mb = row["most_bytes"] / 1e6
        line = f"  {row['part']}: {at_peak_mb:.0f} at the peak, {most_mb:.0f} at most"
        # Only arithmetic's own parts have a prediction.
        if not pd.isna(row["predicted_bytes"]):
            line += f", predicted {row['predicted_bytes'] / 1e6:.0f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
