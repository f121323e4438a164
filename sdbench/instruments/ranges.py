"""A trace of one pipeline call for Chrome's and Perfetto's viewers, with named ranges.

torch's profiler writes what every operation took; the ranges say to which step it belongs. A
profiled call is slow, so it is not timed.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from sdbench.variants.trace import Listener, Step

TEXT, DECODE, DENOISER, SCHEDULER = "text", "decode", "denoiser", "scheduler"


class Ranges(Listener):
    """Opens a range for the text, every step, its denoiser calls and its scheduler, and the end."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._open: list[Any] = []
        self._names: dict[str, str] = {}
        self._loops = 0
        self._step = 0

    @contextmanager
    def written(self, file: Path, device: torch.device) -> Iterator[None]:
        """Profile a block, which holds one pipeline call, and write its trace.

        Args:
            file: ends in `.json.gz`.
            device: where the pipeline runs.
        """
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        with profile(activities=activities) as profiler:
            self._begin(TEXT)
            try:
                yield
            finally:
                while self._open:
                    self._end()
        plain = file.with_suffix("")
        profiler.export_chrome_trace(str(plain))
        trace = json.loads(plain.read_text("utf-8"))
        plain.unlink()
        # Whether a step was guided is known at its end, but a range gets its name at its beginning.
        for event in trace["traceEvents"]:
            event["name"] = self._names.get(event.get("name"), event.get("name"))
        with gzip.open(file, "wt", encoding="utf-8") as stream:
            json.dump(trace, stream)

    def loop_begins(self, call: int, iterations: int, images: int) -> None:
        """The text is done."""
        self._end()
        self._step = 0
        self._loops += 1
        self._begin(self._name())

    def denoiser_begins(self, step: Step, rows: int) -> None:
        """One of the step's denoiser calls."""
        self._begin(f"{DENOISER}, {rows} rows")

    def denoiser_ends(self, step: Step) -> None:
        """It is over."""
        self._end()

    def scheduler_begins(self, step: Step) -> None:
        """The scheduler's part."""
        self._begin(SCHEDULER)

    def scheduler_ends(self, step: Step) -> None:
        """It is over."""
        self._end()

    def step_ends(self, step: Step) -> None:
        """The next step begins, or the decoding."""
        self._end()
        kind = "guided" if step.guided else "unguided"
        self._names[self._name()] = f"step {step.index}, {kind}"
        self._step += 1
        self._begin(self._name())
        self._names[self._name()] = DECODE  # unless another step ends

    def _name(self) -> str:
        """What a step's range is called until its kind is known."""
        return f"sdbench loop {self._loops} step {self._step}"

    def _begin(self, name: str) -> None:
        opened = record_function(name)
        opened.__enter__()
        self._open.append(opened)

    def _end(self) -> None:
        self._open.pop().__exit__(None, None, None)
