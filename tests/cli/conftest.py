"""Finished studies for the commands that read one; a test that changes a study copies it."""

import shutil
from contextlib import contextmanager

import pandas as pd
import pytest

from sdbench.models import registry
from tests.cli.commands import QUICK, STEPS, bench, invoke

BENCHMARK = """
model = "mini-sd"
variants = ["cfg", "last:50%"]
prompts = ["a red circle"]
seeds = [0]
num_steps = 2
guidance_scale = 5.0
repeats = 1
threads = 1
metrics = ["ssim"]
"""


@contextmanager
def layout_as_it_is():
    """Choosing a memory format takes seconds at every opening of a model; it has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "lay_out", lambda pipe: None)
        yield


@pytest.fixture(autouse=True)
def _quick_opening():
    with layout_as_it_is():
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "study"
    with layout_as_it_is():
        done = invoke(*QUICK, "--out", out)
    assert done.exit_code == 0, done.output
    return out


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A finished study with a method that cannot run here, and what the command said."""
    folder = tmp_path_factory.mktemp("small") / "x"
    variants = ["--variants", "cfg,last:50%,cached:2,split,pab:2", "--controls"]
    with layout_as_it_is():
        return folder, invoke("run", *STEPS, *variants, "--metrics", "ssim", "--out", folder)


@pytest.fixture
def untimed(small, tmp_path):
    """The small study, if its machine had been busy with something else in every call."""
    folder = shutil.copytree(small[0], tmp_path / "untimed")
    runs = pd.read_parquet(folder / "runs.parquet").assign(exclusive=False)
    runs["exclusive"] = runs["exclusive"].astype("boolean")
    runs.to_parquet(folder / "runs.parquet", index=False)
    return folder


@pytest.fixture(scope="session")
def quick_bench(tmp_path_factory):
    """A study file of seconds, its run accepted as the first baseline; its times decide nothing."""
    place = tmp_path_factory.mktemp("bench")
    (place / "quick.toml").write_text(BENCHMARK)
    with layout_as_it_is():
        done = bench(place, "first", "--accept", "the first", "--force")
    assert done.exit_code == 0, done.output
    return place
