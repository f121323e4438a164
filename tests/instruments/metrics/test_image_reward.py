import sys
import types

import pytest
import torch

from sdbench.instruments.metrics.image_reward import reward_network
from sdbench.instruments.quality import score


def test_image_reward_is_the_packages_own_score(pair, monkeypatch):
    class Network(torch.nn.Linear):
        def score(self, prompt, picture):
            return len(prompt) + picture.size[0] / 1000

    package = types.SimpleNamespace(load=lambda model: Network(1, 1))
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    reward_network.cache_clear()
    scores = score("image_reward:v1", pair[0], ["a" * (index + 1) for index in range(len(pair[0]))])
    width = pair[0].shape[3]
    assert scores.tolist() == pytest.approx(
        [index + 1 + width / 1000 for index in range(len(pair[0]))]
    )
    reward_network.cache_clear()


def test_image_reward_without_its_package_is_an_error(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    reward_network.cache_clear()
    with pytest.raises(ValueError, match="image_reward needs the package image-reward"):
        score("image_reward:v1", pair[0], ["a"] * len(pair[0]))
