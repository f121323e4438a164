"""LPIPS: perceptual distance to a reference image, by the reference package on AlexNet."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from sdbench.instruments import weights
from sdbench.instruments.metric import Features, Metric, Pixels, Scores

EPSILON = 1e-10  # that the package adds to the length of a unit


def lpips(images: Pixels, reference: Pixels) -> Scores:
    """Distance of each image to its reference; 0 is identical.

    Source: Zhang et al. 2018, arXiv 1801.03924.
    """
    network = lpips_network(str(images.device))
    return network(images, reference.to(images.device), normalize=True).flatten()


def lpips_features(images: Pixels) -> Features:
    """Features of which LPIPS is the squared distance; they have a gradient by the images.

    Of the layers l with units of length one, F_l = sqrt(w_l / (H_l W_l)) f_l, so that
    LPIPS(x, y) = ||F(x) - F(y)||^2.

    Source: Zhang et al. 2018, arXiv 1801.03924, equation 1.
    """
    network: Any = lpips_network(str(images.device))
    layers = network.net.forward(network.scaling_layer(2 * images - 1))
    parts = []
    for layer, head in zip(layers, network.lins, strict=True):
        square = layer.square().sum(dim=1, keepdim=True)
        length = square.clamp(min=EPSILON**2).sqrt()  # whose slope at zero has no value
        weight = head.model[-1].weight / layer[0, 0].numel()
        parts.append((weight.sqrt() * layer / (length + EPSILON)).flatten(1))
    return torch.cat(parts, dim=1)


@cache
def lpips_network(device: str) -> torch.nn.Module:
    """The reference implementation, `lpips` v0.1 on AlexNet, once per process and device."""
    # It is imported here, since it loads slowly and most studies do without.
    import lpips as package

    alexnet = weights.resolve()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lpips calls torchvision by an argument that torchvision deprecates.
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")
        # Its constructor would download AlexNet; with `pnet_rand` it fills AlexNet at random.
        network = package.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False)

    # Its slices, slice1 to slice5, keep torchvision's indices.
    for layers in network.net.children():
        layers.load_state_dict({name: alexnet.features[name] for name in layers.state_dict()})
    return network.requires_grad_(False).to(device)


def _provenance() -> dict[str, str]:
    """The network by its digest; where this machine found it stands in `sdbench weights`."""
    description = weights.describe()
    identity = {name: description[name] for name in ("network", "sha256")}
    return {"package": f"lpips {version('lpips')}", "heads": "v0.1"} | identity


METRIC = Metric(
    "lpips",
    lpips,
    "reference",
    higher_is_better=False,
    provenance=_provenance,
    meaning="perceptual distance, the reference package, AlexNet v0.1; 0 is identical",
    place=1,
    smallest_side=31,  # what AlexNet's three poolings leave something of
    features=lpips_features,
)
