import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from sdbench.analysis.perception.logistic import fit
from sdbench.analysis.perception.mixed import mixed_shares


def rows_of(people, pairs, right):
    person, pair = (axis.ravel() for axis in np.indices((people, pairs)))
    return pd.DataFrame(
        {"person": person, "prompt_id": pair, "seed": 0, "variant": "a", "correct": right}
    )


def drawn(people, pairs, spread, mean=1.0, seed=0):
    generator = np.random.default_rng(seed)
    of_people = generator.normal(0, spread, people)
    odds = mean + np.repeat(of_people, pairs)
    return rows_of(people, pairs, generator.random(people * pairs) < expit(odds))


@pytest.mark.parametrize(("people", "pairs"), [(5, 20), (20, 5)])
def test_too_few_people_or_pairs_have_no_row(people, pairs):
    assert mixed_shares(drawn(people, pairs, 0.0)).empty


def test_the_interval_is_wider_than_that_of_a_share_and_holds_it():
    row = mixed_shares(drawn(12, 24, 0.0)).iloc[0]
    share = drawn(12, 24, 0.0)["correct"].mean()
    assert row["mixed"] == pytest.approx(share, abs=0.03)
    exact = 1.96 * np.sqrt(share * (1 - share) / 288)
    assert row["mixed_hi"] - row["mixed_lo"] > 2 * exact


def test_people_who_differ_make_it_wider_and_are_seen():
    alike, unlike = (mixed_shares(drawn(12, 24, spread)).iloc[0] for spread in (0.0, 1.5))
    width = {"alike": alike["mixed_hi"] - alike["mixed_lo"]}
    assert unlike["mixed_hi"] - unlike["mixed_lo"] > 1.3 * width["alike"]
    assert unlike["people_sd"] > 2 * alike["people_sd"]


def test_all_right_is_finite():
    row = mixed_shares(rows_of(6, 8, [True] * 48)).iloc[0]
    assert 0.8 < row["mixed_lo"] < row["mixed"] < row["mixed_hi"] < 1


def test_a_fit_without_penalty_is_that_of_counting():
    design, zero = np.eye(2), np.zeros(2)
    found = fit(design, np.array([3.0, 9.0]), np.array([10.0, 12.0]), zero, zero)
    assert expit(found.mode) == pytest.approx([0.3, 0.75])
    assert np.diag(found.covariance) == pytest.approx([1 / (10 * 0.21), 1 / (12 * 0.1875)])


def test_an_infinite_answer_is_refused():
    with pytest.raises((ValueError, np.linalg.LinAlgError)):
        fit(np.eye(1), np.array([4.0]), np.array([4.0]), np.zeros(1), np.zeros(1))
