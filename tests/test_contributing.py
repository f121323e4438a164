"""What CONTRIBUTING.md shows runs as it stands."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from sdbench.instruments.quality import METRICS, score
from sdbench.variants.registry import VARIANTS, parse

SHOWN = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(),
    flags=re.DOTALL,
)


@pytest.fixture(autouse=True)
def _registries_come_back():
    before = dict(VARIANTS), dict(METRICS)
    yield
    for registry, known in zip((VARIANTS, METRICS), before, strict=True):
        registry.clear()
        registry.update(known)


def test_each_example_is_short():
    assert len(SHOWN) == 2
    assert all(len(example.splitlines()) < 20 for example in SHOWN)


def test_the_variant_is_in_the_grammar():
    exec(textwrap.dedent(SHOWN[0]), {})
    assert parse("middle:2").rule(6).mask == (True, True, False, False, True, True)


def test_the_metric_scores():
    exec(textwrap.dedent(SHOWN[1]), {})
    dark, bright = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    assert score("brightness", bright, dark).item() == 0.5
