"""What CONTRIBUTING.md shows runs as it stands."""

import importlib
import re
import textwrap
from pathlib import Path

import pytest
import torch

from sdbench.instruments.quality import METRICS, score
from sdbench.testing import check_metric, check_variant
from sdbench.variants import methods
from sdbench.variants.grammar import VARIANTS, parse, register_variant
from tests import tiny

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
SHOWN = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def _registries_come_back():
    before = dict(VARIANTS), dict(METRICS)
    yield
    for registry, entries in zip((VARIANTS, METRICS), before, strict=True):
        registry.clear()
        registry.update(entries)


def test_each_example_is_short():
    assert len(SHOWN) == 2
    assert all(len(example.splitlines()) < 20 for example in SHOWN)


def test_a_method_is_one_file_that_is_found_by_itself(tmp_path, monkeypatch):
    (tmp_path / "middle.py").write_text(SHOWN[0])
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    new = [method for method in methods.all_methods() if method.name not in VARIANTS]
    assert [method.name for method in new] == ["middle"]

    register_variant(new[0])
    assert parse("middle:2").rule(6).mask == (True, True, False, False, True, True)
    for example in new[0].examples:
        check_variant(example, pipe=tiny.stable_diffusion(), guidance_scale=7.5)


def test_the_metric_scores():
    exec(textwrap.dedent(SHOWN[1]), {})
    dark, bright = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5)
    assert score("brightness", bright, dark).item() == 0.5
    check_metric("brightness")
