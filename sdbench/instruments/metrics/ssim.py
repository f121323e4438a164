"""SSIM: structural similarity to a reference image, by torchmetrics."""

from __future__ import annotations

from torchmetrics.functional.image import structural_similarity_index_measure

from sdbench.instruments.metric import Metric, Pixels, Scores, of_package

WINDOW = 11  # pixels, of a Gaussian of sigma 1.5


def ssim(images: Pixels, reference: Pixels) -> Scores:
    """Mean similarity over the windows that lie wholly inside each image; 1 is identical.

    Source: Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """
    # In single precision torchmetrics 1.9 takes a flat picture for less like itself than 1: of
    # rounded variances it cuts off what is below 0, of rounded covariances it does not.
    _, similarity = structural_similarity_index_measure(
        images.double(),
        reference.to(images.device).double(),
        data_range=1.0,
        reduction="none",
        return_full_image=True,
    )
    # The mean of torchmetrics 1.9 would include mirrored borders.
    border = WINDOW // 2
    return similarity[..., border:-border, border:-border].mean((1, 2, 3)).float()


METRIC = Metric(
    "ssim",
    ssim,
    "reference",
    higher_is_better=True,
    provenance=of_package(
        "torchmetrics", settings="Gaussian window of 11 pixels, sigma 1.5, no border"
    ),
    meaning="structural similarity; 1 is identical",
    place=3,
    smallest_side=WINDOW,
)
