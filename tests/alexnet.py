"""LPIPS on a made-up AlexNet, so that no network is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torchvision

from sdbench.instruments import weights
from sdbench.instruments.metrics.lpips import lpips_network


@contextmanager
def made_up() -> Iterator[torch.nn.Module]:
    """Within this block LPIPS has random convolutions; yields the AlexNet that they are of."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        alexnet = torchvision.models.alexnet()
    found = weights.AlexNet(alexnet.features.state_dict(), "made up")
    with mock.patch.object(weights, "resolve", return_value=found):
        lpips_network.cache_clear()
        try:
            yield alexnet
        finally:
            lpips_network.cache_clear()
