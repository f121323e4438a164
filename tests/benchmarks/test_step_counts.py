"""The study of step counts, at a small size."""

import pytest

import sdbench
from benchmarks import step_counts


def test_every_scheduler_has_its_counts_from_one_start(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_counts, "STEPS", 4)
    monkeypatch.setattr(step_counts, "COUNTS", (2, 3))
    for name in step_counts.SCHEDULERS:
        step_counts.main(name, tmp_path / name, captions=2, batch=2)
        runs = sdbench.read(tmp_path / name).runs
        assert set(runs["variant"]) == {"cfg", "steps:2", "steps:3"}
        assert runs["first_timestep"].nunique() == 1
        assert "steps:3" in capsys.readouterr().out

    kinds = {
        name: sdbench.read(tmp_path / name).runs["scheduler"][0] for name in step_counts.SCHEDULERS
    }
    assert kinds == {"ddim": "DDIMScheduler", "dpmpp-2m": "DPMSolverMultistepScheduler"}


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(ValueError, match="unknown scheduler 'euler'; there are: ddim, dpmpp-2m"):
        step_counts.scheduled("euler")
