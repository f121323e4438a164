"""What goes on around a call, or around several that run in turn: memory of the process, others."""

from __future__ import annotations

from typing import Any, Self

import torch

from sdbench.instruments.disturbance import Disturbance
from sdbench.instruments.rss import PeakRss


class Surroundings:
    """Watches the process and the machine during a block.

    After exit `columns` are those of the table `runs`: `rss_peak_bytes`, and what `Disturbance`
    says.
    """

    def __init__(self, device: torch.device) -> None:
        """Take where the calls run."""
        self._rss = PeakRss()
        self._disturbance = Disturbance(device)
        self.columns: dict[str, Any] = {}

    def __enter__(self) -> Self:
        """Begin."""
        self._rss.__enter__()
        self._disturbance.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        """Sum up."""
        self._disturbance.__exit__(*exc)
        self._rss.__exit__(*exc)
        self.columns = {"rss_peak_bytes": self._rss.peak_bytes} | self._disturbance.columns
