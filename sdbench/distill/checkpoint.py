"""The checkpoint of a training run on disk: what it holds, and how it is read and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from jaxtyping import Shaped
from torch import Tensor

from sdbench.models.causes import is_machines
from sdbench.records.files import first_line, write_whole

CHECKPOINT = "checkpoint.pt"


class Checkpoint(TypedDict):
    """What a run goes on from.

    Attributes:
        learnt: the trained weights by name.
        optimiser: its state.
        schedule: state of the learning rate's schedule.
        scaler: state of the gradients' scaler, where float16 needs one.
        done: steps taken.
        seconds: that they took.
        losses: of the steps since the last row of the curve.
        channels_last: memory format of the denoiser's kernels.
        threads: of torch.
    """

    learnt: dict[str, Shaped[Tensor, "*shape"]]
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    scaler: NotRequired[dict[str, Any]]
    done: int
    seconds: float
    losses: list[float]
    channels_last: bool
    threads: int


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The last checkpoint; None where there is none yet.

    Raises:
        ValueError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        checkpoint: Checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    # torch does not list the ways in which a file that it did not write fails.
    except Exception as error:
        if isinstance(error, OSError) and is_machines(error):
            raise  # to start again would not help
        raise ValueError(
            f"the checkpoint '{path}' cannot be read: {first_line(error)}; "
            "--overwrite starts from the beginning"
        ) from None
    return checkpoint


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all; the last one stays until then."""
    write_whole(path, lambda file: torch.save(checkpoint, file))
