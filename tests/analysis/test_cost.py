import numpy as np
import pytest
from scipy import stats

from sdbench.analysis.cost import StepCost, reason, saving_table, step_cost
from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import summarise

MASKS = {"cfg": [1, 1, 1, 1], "last:50%": [1, 1, 0, 0], "unguided": [0, 0, 0, 0]}


def cost(*, ratio=1.8, unguided_s=1.0, denoise_share=0.98):
    guided_s = ratio * unguided_s
    return StepCost(
        Interval(ratio, np.nan, np.nan),
        guided_s,
        unguided_s,
        2 * unguided_s - guided_s,
        denoise_share,
    )


def test_the_ratio_is_that_of_the_steps_within_calls_that_hold_both_kinds(study):
    results = study(MASKS)
    results.steps["latency_s"] *= np.random.default_rng(1).normal(1, 0.02, len(results.steps))
    steps = results.steps[results.steps["variant"] == "last:50%"].astype({"guided": bool})
    medians = steps.groupby(["repeat", "guided"])["latency_s"].median().unstack()
    test = stats.ttest_1samp(np.log(medians[True] / medians[False]), 0).confidence_interval()
    found = step_cost(results).ratio
    assert found.estimate == pytest.approx(0.4 / 0.25, rel=0.03)
    np.testing.assert_allclose([found.lo, found.hi], [np.exp(test.low), np.exp(test.high)])


def test_the_fixed_part_is_what_a_step_of_no_rows_would_take(study):
    found = step_cost(study(MASKS))
    assert found.fixed_s / found.unguided_s == pytest.approx((2 * 0.25 - 0.4) / 0.25)
    assert found.denoise_share == pytest.approx(1.6 / 2.6, rel=0.01)


def test_a_step_that_costs_more_than_in_proportion_has_no_fixed_part(study):
    results = study(MASKS)
    results.steps.loc[results.steps["guided"], "latency_s"] *= 2
    assert step_cost(results).fixed_s == 0


def test_a_study_without_an_unguided_step_is_refused(study):
    with pytest.raises(ValueError, match="no repeat has both guided and unguided steps"):
        step_cost(study({"cfg": [1, 1], "steps:1": [1]}))


def test_measured_saving_stands_beside_the_ideal_and_the_predicted_one(study):
    results = study(MASKS, repeats=8)
    table = saving_table(summarise(results)).set_index("variant")
    assert list(table.index) == ["last:50%", "unguided"]
    assert table["ideal_saving"].tolist() == [0.25, 0.5]
    assert table["predicted_denoise_saving"]["unguided"] == pytest.approx(1 - 0.25 / 0.4, rel=1e-3)
    assert table["denoise_saving"]["unguided"] == pytest.approx(1 - 0.25 / 0.4, rel=0.03)
    share = table["denoise_saving"] / table["ideal_saving"]
    np.testing.assert_allclose(table["share_of_ideal"], share)


@pytest.mark.parametrize(
    ("given", "read_s", "words"),
    [
        (
            cost(),
            0.15,
            "memory-bound: 20% of an unguided step depend on no row, reading the weights takes 15%",
        ),
        (
            cost(),
            0.01,
            "launch-bound: 20% of an unguided step depend on no row, of which reading the weights "
            "is little",
        ),
        (
            cost(ratio=1.99, denoise_share=0.6),
            0.01,
            "fixed share: 40% of a call are text and decoding",
        ),
        (cost(ratio=1.99), 0.01, "none: nearly ideal"),
    ],
)
def test_the_reason_names_what_does_not_shrink(given, read_s, words):
    assert reason(given, read_s=read_s) == words
