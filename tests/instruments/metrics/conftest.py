import pytest
import torch
import torchvision

from sdbench.instruments import weights
from sdbench.instruments.metrics.lpips import lpips_network


@pytest.fixture
def random_alexnet(monkeypatch):
    """LPIPS and torchvision with the same made-up AlexNet, so that no network is needed."""
    torch.manual_seed(0)
    alexnet = torchvision.models.alexnet()
    found = weights.AlexNet(alexnet.features.state_dict(), "made up")
    monkeypatch.setattr(weights, "resolve", lambda path=None: found)
    lpips_network.cache_clear()
    yield alexnet
    lpips_network.cache_clear()
