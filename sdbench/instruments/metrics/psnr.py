"""PSNR: peak signal-to-noise ratio against a reference image, by torchmetrics."""

from __future__ import annotations

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio

from sdbench.instruments.metric import Metric, Pixels, Scores, of_package


def psnr(images: Pixels, reference: Pixels) -> Scores:
    """Ratio in dB for each image; NaN for one that is identical to its reference."""
    ratio = peak_signal_noise_ratio(
        images, reference.to(images.device), data_range=1.0, dim=(1, 2, 3), reduction="none"
    )
    # Of identical images it is infinite: no mean can hold that, and a cap would be made up.
    return torch.where(ratio.isinf(), torch.nan, ratio)


METRIC = Metric(
    "psnr",
    psnr,
    "reference",
    higher_is_better=True,
    provenance=of_package("torchmetrics", settings="peak 1"),
    meaning="peak signal-to-noise ratio in dB; missing for identical images",
    place=4,
)
