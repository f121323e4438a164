"""What a training run's outcome depends on, besides its code."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

import torch


def record(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The settings, with versions and hardware."""
    packages = ("torch", "diffusers", "transformers", "numpy")
    hardware = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    )
    return {
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
        },
        "hardware": f"{hardware}, {torch.get_num_threads()} threads",
    }


def has_bfloat16(device: str) -> bool:
    """Whether the device computes faster in bfloat16.

    A CPU does with AMX. AVX-512 BF16 alone has the instructions too, and training was slower there.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_amx_tile_supported())
