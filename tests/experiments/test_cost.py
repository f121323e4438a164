from dataclasses import replace

import pytest

from sdbench.analysis.cost import cost_point
from sdbench.experiments import cost
from sdbench.experiments.cost import cost_study, footprint_table, sweep
from sdbench.models.architectures import ARCHITECTURES
from sdbench.records.store import read
from tests import tiny


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    pipe, folder = tiny.stable_diffusion(), tmp_path_factory.mktemp("cost")
    pipe.vae.decode = lambda *_, **__: pytest.fail("latents were decoded")
    study = cost_study("tiny", height=16, width=16, num_steps=10, guidance_scale=5.0, repeats=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "loaded", lambda study: pipe)
        return list(sweep(study, batches=[1, 2], sides=[(16, 16)], out=folder)), folder


@pytest.mark.slow
def test_a_sweep_measures_every_batch_and_keeps_its_tables(points):
    tables, folder = points
    assert [table["batch"].unique().tolist() for table in tables] == [[1], [2]]
    assert {path.name for path in folder.iterdir()} == {"16x16-batch1", "16x16-batch2"}
    for table in tables:
        assert table["variant"].tolist() == ["last:20%", "last:50%", "last:100%"]
        assert table["ideal_saving"].tolist() == pytest.approx([0.1, 0.25, 0.5])
        assert (table["ratio"] > 0).all()
        assert (table["reason"] != "").all()


def test_a_stored_point_is_what_the_sweep_gave(points):
    tables, folder = points
    point = cost_point(read(folder / "16x16-batch2"))
    assert (point["model"], point["batch"], point["height"], point["width"]) == ("tiny", 2, 16, 16)
    for name in ("ratio", "guided_s", "unguided_s", "fixed_s", "denoise_share"):
        assert (tables[1][name] == point[name]).all()


@pytest.fixture
def two_layers(monkeypatch):
    """PixArt Sigma with two of its layers."""
    whole = ARCHITECTURES["pixart-sigma"]
    denoiser = whole.networks["transformer"]
    short = replace(denoiser, config={**denoiser.config, "num_layers": 2})
    networks = {**whole.networks, "transformer": short}
    monkeypatch.setitem(ARCHITECTURES, "pixart-sigma", replace(whole, networks=networks))


@pytest.mark.usefixtures("two_layers")
def test_a_guided_step_is_counted_with_twice_the_rows_and_the_same_weights():
    table = footprint_table(
        ["pixart-sigma"], sides=[(256, 256), (512, 512)], batches=[3], dtype="bfloat16"
    )
    assert table[["height", "step", "rows"]].to_numpy().tolist() == [
        [256, "guided", 6],
        [256, "unguided", 3],
        [512, "guided", 6],
        [512, "unguided", 3],
    ]
    guided, unguided = (
        table[table["step"] == step].reset_index() for step in ("guided", "unguided")
    )
    assert (guided["flop"] == 2 * unguided["flop"]).all()
    assert (guided["weights_bytes"] == unguided["weights_bytes"]).all()
