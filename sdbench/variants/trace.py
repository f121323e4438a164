"""The events of a denoising loop, who may listen to them, and the trace that keeps them.

The events come from the seam in `seam.py`; what listeners make of them (times, memory) is in
`instruments`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sdbench.models.causes import MissingPackage as MissingPackage


class Unsupported(ValueError):
    """A method that cannot run on this pipeline or with these versions: a fact to report."""


@dataclass
class Step:
    """One iteration of a denoising loop, filled in as it runs.

    `rows` and `forwards` count what the denoiser evaluated; `requested` the rows that the pipeline
    asked for. `cond` and `uncond` are the two predictions of a guided step, `sample` and `result`
    the latents before and after the scheduler's part, (images, ...), and `latents` what the
    denoiser got in the first call. A step in which only some images were guided has no `uncond`.
    `given` is what the pipeline got for it. `answered` are the halves that the pipeline has asked
    for and got, in their order. A step is `spent` where both were evaluated though it is not
    guided, to find out which half is which.
    """

    call: int
    index: int
    guided: bool = False
    rows: int = 0
    forwards: int = 0
    requested: int = 0
    answered: tuple[str, ...] = ()
    spent: bool = False
    cond: Float[Tensor, "images ..."] | None = None
    uncond: Float[Tensor, "images ..."] | None = None
    given: Float[Tensor, "images ..."] | None = None
    sample: Float[Tensor, "images ..."] | None = None
    result: Float[Tensor, "images ..."] | None = None
    timestep: Any = None
    sigma: Float[Tensor, ""] | None = None
    output: Any = field(default=None, repr=False)
    latents: Any = field(default=None, repr=False)


def number(value: Any) -> float:
    """A number or a tensor that holds one (or one per row, all the same); NaN for None."""
    if value is None:
        return float("nan")
    return float(value.flatten()[0]) if isinstance(value, Tensor) else float(value)


class Listener:
    """Gets the events of a run; the methods do nothing until overridden."""

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """The first denoiser call of a pipeline call is about to run."""

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """The denoiser is about to evaluate this many rows."""

    def denoiser_ends(self, step: Step) -> None:
        """The denoiser has returned."""

    def scheduler_begins(self, step: Step) -> None:
        """`scheduler.step` is about to run; `step.sample` is the noisy latent."""

    def scheduler_ends(self, step: Step) -> None:
        """`scheduler.step` has returned."""

    def step_ends(self, step: Step) -> None:
        """The step is over and `step` is complete, sigma and predictions included."""


class Trace(Listener):
    """What ran: one row per step of every call, whatever was asked for.

    Attributes:
        weights_bytes: of the denoiser's weights that ran, where it was in another number format;
            else None.
    """

    def __init__(self) -> None:
        """Start without rows."""
        self.weights_bytes: int | None = None
        self._iterations: list[int] = []
        self._steps: list[Step] = []

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """Keep the length of the loop."""
        self._iterations.append(iterations)

    def step_ends(self, step: Step) -> None:
        """Keep the step."""
        self._steps.append(step)

    @property
    def loops(self) -> int:
        """How many have begun."""
        return len(self._iterations)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per step: call, step, timestep, sigma, guided, rows, forwards.

        Sigma is the noise-to-signal ratio.
        """
        rows = [
            {
                "call": step.call,
                "step": step.index,
                "timestep": number(step.timestep),
                "sigma": number(step.sigma),
                "guided": step.guided,
                "rows": step.rows,
                "forwards": step.forwards,
            }
            for step in self._steps
        ]
        return pd.DataFrame(
            rows, columns=["call", "step", "timestep", "sigma", "guided", "rows", "forwards"]
        )

    @property
    def calls(self) -> pd.DataFrame:
        """One row per pipeline call: call, iterations of its loop, steps that ran, complete.

        A call is not complete while its loop runs, and where the loop ended early.
        """
        ran = Counter(step.call for step in self._steps)
        rows = [
            {
                "call": call,
                "iterations": iterations,
                "steps": ran[call],
                "complete": ran[call] == iterations,
            }
            for call, iterations in enumerate(self._iterations)
        ]
        return pd.DataFrame(rows, columns=["call", "iterations", "steps", "complete"])

    def require_complete(self) -> None:
        """Refuse calls whose loop ended early: what they made is not what was asked for.

        Raises:
            RuntimeError: the first of them.
        """
        for row in self.calls.itertuples():
            if not row.complete:
                raise RuntimeError(f"the loop ended after {row.steps} of {row.iterations} steps")
