import pytest
import torch

from sdbench.study import cost
from sdbench.study.cost import cost_study, read_bandwidth, sweep
from tests import tiny


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    pipe, folder = tiny.stable_diffusion(), tmp_path_factory.mktemp("cost")
    pipe.vae.decode = lambda *_, **__: pytest.fail("latents were decoded")
    study = cost_study("tiny", height=16, width=16, num_steps=10, guidance_scale=5.0, repeats=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "loaded", lambda study: pipe)
        return list(sweep(study, batches=[1, 2], sides=[(16, 16)], out=folder)), folder


def test_a_sweep_measures_every_batch_and_keeps_its_tables(points):
    tables, folder = points
    assert [table["batch"].unique().tolist() for table in tables] == [[1], [2]]
    assert {path.name for path in folder.iterdir()} == {"16x16-batch1", "16x16-batch2"}
    for table in tables:
        assert table["variant"].tolist() == ["last:20%", "last:50%", "last:100%"]
        assert table["ideal_saving"].tolist() == pytest.approx([0.1, 0.25, 0.5])
        assert (table["ratio"] > 0).all()
        assert (table["reason"] != "").all()


def test_bandwidth_is_that_of_the_fastest_reading(monkeypatch):
    moments = iter([0.0, 2.0, 2.0, 2.5, 3.0, 7.0])  # readings of 2, 0.5 and 4 seconds
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(moments))
    assert read_bandwidth(torch.device("cpu"), megabytes=1, rounds=3) == 2**20 / 0.5
