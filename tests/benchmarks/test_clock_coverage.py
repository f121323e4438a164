"""The clock's intervals hold, whatever the noise on the timeline that calls share."""

import numpy as np
import pytest

from benchmarks.clock_coverage import NOISES, intervals, judged, simulated, table, works

SLICES = "lockstep, slices"


def rounds(monkeypatch, noise, *, turns, repeats=3):
    monkeypatch.setitem(NOISES, "given", noise)
    generator = np.random.default_rng(0)
    chosen = works(7, 12, repeats, generator)
    return chosen, simulated(chosen, "given", 2, generator, turns=turns)


def test_variants_do_the_work_that_their_names_say():
    chosen = {work.name: work for work in works(7, 20, 4, np.random.default_rng(0))}
    assert chosen["cfg"].cost.sum(axis=1).tolist() == [20] * 4
    assert chosen["last:20%"].cost.sum(axis=1) == pytest.approx([16 + 4 * 0.55] * 4)
    assert chosen["steps:10"].cost.shape == (4, 10)
    assert chosen["deepcache:3"].kinds is None
    drawn = chosen["random:50%"].kinds
    assert drawn.sum(axis=1).tolist() == [10] * 4
    assert len(np.unique(drawn, axis=0)) > 1


@pytest.mark.parametrize("turns", [True, False])
def test_every_slice_has_its_own_place_on_the_timeline(monkeypatch, turns):
    def places(shape, generator):
        return np.log1p(np.tile(np.arange(shape[1]), (shape[0], 1)))

    chosen, times = rounds(monkeypatch, places, turns=turns)
    length = sum(work.cost.shape[1] + 2 for work in chosen)
    places = [own.steps[0] / work.cost for own, work in zip(times, chosen, strict=True)]
    first = np.concatenate([np.round(one[0]) for one in places])
    assert len(first) == length - 2 * len(chosen)

    # In turns a step is as far from the baseline's as there are variants; else calls are apart.
    apart = np.abs(places[4][0] - places[0][0])
    assert apart.max() < 2 * len(chosen) if turns else apart.min() > 12


def test_coverage_counts_the_draws_whose_interval_holds_the_truth():
    ratios = np.exp([[0.0, 0.1, 0.2, 0.1], [0.0, 0.1, 0.2, 0.1], [1.0, 1.1, 1.2, 1.1]])
    told = intervals(ratios, np.exp(np.full(4, 0.1)), "any")
    assert told.coverage == pytest.approx(2 / 3)
    assert told.bias == pytest.approx(-100 * np.exp(0.1) / 3)


@pytest.mark.parametrize("noise", ["spikes", "two states, 40 slices"])
def test_slices_hold_with_narrow_intervals_where_others_disturb(noise):
    found = judged(noise, repeats=6, variants=4, steps=12, draws=60)
    widths = {way: [] for way in ("calls, sums", SLICES)}
    for way, figure, told in found:
        if figure == "loop" and way in widths:
            widths[way].append(told.half_width)
            assert told.coverage > 0.85
    assert np.mean(widths[SLICES]) < np.mean(widths["calls, sums"]) / 5


@pytest.mark.slow
def test_the_clocks_intervals_hold_under_every_noise():
    found = table(repeats=(6, 12), variants=(4, 8), steps=(12, 50), draws=200)
    slices = found[found["way"] == SLICES]
    assert len(slices) == 2 * 2 * len(NOISES)
    assert slices["coverage"].between(0.93, 0.97).all()
    assert (slices["least"] > 0.88).all()  # of a dozen sizes and variants
    assert (slices["bias"].abs() < 1).all()
    sums = found[found["way"] == "calls, sums"].set_index(["noise", "repeats", "figure"])
    widths = slices.set_index(["noise", "repeats", "figure"])["half_width"] / sums["half_width"]
    assert widths.drop("independent", level="noise").mean() < 0.4
