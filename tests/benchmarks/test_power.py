import math

import numpy as np
import pytest
from typer.testing import CliRunner

from benchmarks import power
from benchmarks.power import VARIANTS, Noise, found, found_as_named, judged, named, power_table
from sdbench.analysis.timing import USUAL, repeats_needed

KINDS = ("normal", "laplace", "mixed", "t5", "t3", "lognormal")


def sampling_error(share, runs):
    """Two and a half standard errors of a share."""
    return 2.5 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_the_stated_spread_and_is_shared_by_the_variants(kind):
    ratios = Noise(0.05, kind).ratios(20_000, 2, np.random.default_rng(0))
    assert ratios.shape == (20_000, VARIANTS, 2)
    assert ratios.std() == pytest.approx(0.05, rel=0.1)
    assert np.corrcoef(ratios[:, 0, 0], ratios[:, 1, 0])[0, 1] == pytest.approx(0.5, abs=0.05)
    assert abs(np.corrcoef(ratios[:, 0, 0], ratios[:, 0, 1])[0, 1]) < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("spread", "repeats"), [(0.01, 6), (0.02, 10), (0.127, 10)])
def test_runs_of_the_same_code_raise_few_alarms(kind, spread, repeats):
    """Over all variants together, at most one pair of runs in twenty."""
    told = judged(Noise(spread, kind), repeats, runs=2000)
    alarms = np.isin(told, ["regression", "improvement"]).any(axis=1).mean()
    assert alarms <= 0.05 + sampling_error(0.05, 2000)


@pytest.mark.parametrize("kind", KINDS)
def test_the_repeats_of_a_known_spread_find_the_threshold_with_the_stated_power(kind):
    repeats = repeats_needed(0.05, math.inf, VARIANTS)
    share = found(Noise(0.05, kind), repeats, slowdown=USUAL.threshold, runs=1500)
    assert share == pytest.approx(USUAL.power, abs=sampling_error(0.8, 1500))


@pytest.mark.parametrize("kind", ["normal", "laplace", "mixed", "t5"])
def test_the_repeats_that_a_few_repeats_name_find_the_threshold_at_least_as_often(kind):
    noise = Noise(0.03, kind)
    share = found_as_named(noise, named(noise, runs=400))
    assert USUAL.power - sampling_error(0.8, 400) <= share <= 0.93


def test_a_slowdown_of_the_thresholds_size_is_found_the_more_surely_the_more_repeats():
    shares = [
        found(Noise(0.01), repeats, slowdown=USUAL.threshold, runs=1000) for repeats in (3, 6, 40)
    ]
    assert shares == sorted(shares)
    assert shares[-1] >= 0.975 - sampling_error(0.975, 1000)


def test_against_the_noise_of_a_busy_machine_little_is_found_and_nothing_passes():
    head, *lines = power_table("normal", runs=300)
    busy = dict(zip(head, lines[-3], strict=True))
    assert (busy["spread"], busy["repeats"]) == ("12.7%", "10")
    assert float(busy["finds 10%"].rstrip("%")) < 25
    assert float(busy["same code: passes"].rstrip("%")) < 5


def test_the_command_prints_both_tables(monkeypatch):
    monkeypatch.setattr(power, "SPREADS", (0.02,))
    monkeypatch.setattr(power, "REPEATS", (6,))
    monkeypatch.setattr(power.typer, "run", lambda main: None)
    app = power.typer.Typer()
    app.command()(power.main)
    done = CliRunner().invoke(app, ["--runs", "20"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line[:8] for line in lines[:3]] == ["| spread", "| --- | ", "| 2.0% |"]
    assert len([line for line in lines if line.startswith("| lognormal | 2.0%")]) == 1
    assert CliRunner().invoke(app, ["--kind", "pink"]).exit_code == 2
