"""A GPU from outside, by NVIDIA's management library: its clock, its energy, who else is on it."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pynvml
import torch

# Without the power limit, at which a busy GPU always is.
HELD_BACK = (
    pynvml.nvmlClocksEventReasonHwSlowdown
    | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown
    | pynvml.nvmlClocksEventReasonSwThermalSlowdown
)
"""Reasons for a lower clock that come and go."""


class GpuReading(NamedTuple):
    """A GPU at one moment; what it does not tell is None.

    Attributes:
        held_back: whether its clock is lowered by heat or by a fault of its power supply.
        others: processes that compute on it, less one for this; a list without any hides them.
    """

    held_back: bool | None
    others: int | None


def gpu_reading(device: torch.device) -> GpuReading:
    """What a CUDA device tells now."""
    handle = _handle_of(device)
    reasons = _answer(pynvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
    # In a container it may list processes by other numbers, so they are only counted.
    processes = _answer(pynvml.nvmlDeviceGetComputeRunningProcesses, handle)
    return GpuReading(
        None if reasons is None else bool(reasons & HELD_BACK),
        len(processes) - 1 if processes else None,
    )


def gpu_energy_j(device: torch.device) -> float | None:
    """Energy that a CUDA device took since its driver was loaded, in joules.

    Returns:
        None where it does not tell, as of those before Volta.
    """
    millijoules = _answer(pynvml.nvmlDeviceGetTotalEnergyConsumption, _handle_of(device))
    return None if millijoules is None else millijoules / 1e3


def _handle_of(device: torch.device) -> Any:
    return _handle(str(torch.cuda.get_device_properties(device).uuid))


@cache
def _handle(uuid: str) -> Any:
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def _answer(ask: Any, handle: Any) -> Any:
    try:
        return None if handle is None else ask(handle)
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None
