"""A study whose images are stored, and what simulated observers answer to a test of it."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.observers import Observer, simulated
from sdbench.analysis.perception.settings import Settings
from sdbench.records.store import read

STORED = Path(__file__).parents[3] / "results" / "mini-sd" / "default"


@pytest.fixture(scope="session")
def results():
    return read(STORED)


@pytest.fixture(scope="session")
def observers():
    """Seven who see and one who only guesses."""
    acuities = np.exp(np.random.default_rng(0).normal(0, 0.2, 7))
    return [*(Observer(acuity=float(one)) for one in acuities), Observer(lapse=1.0)]


@pytest.fixture(scope="session")
def files(results, observers):
    settings = Settings(variants=("last:20%", "unguided"), trials=32)
    return simulated(results, settings, observers, half=0.01)
