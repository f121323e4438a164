import numpy as np
import pandas as pd
import pytest

from benchmarks.bold import STORED, Population, before, dominated, drawn, rates, stored


def made(logs, losses):
    index = pd.MultiIndex.from_product(
        [[f"{n:03d}" for n in range(len(losses))], [0]], names=["prompt_id", "seed"]
    )
    return Population(pd.DataFrame(logs), losses.set_axis(index))


@pytest.fixture(scope="module")
def near_ties():
    """Each of four variants has a twin that is a little slower and a little worse."""
    rng = np.random.default_rng(0)
    logs, losses = {"cfg": np.zeros(6)}, {"cfg": np.zeros(64)}
    for place in range(4):
        time = rng.normal(0, 0.06, 6)
        loss = rng.lognormal(0, 0.5, 64) * 0.02 * 2**place
        logs[f"v{place}"] = time - time.mean() - 0.2 * (place + 1)
        losses[f"v{place}"] = loss

        twin = rng.normal(0, 0.06, 6)
        logs[f"twin{place}"] = twin - twin.mean() - 0.2 * (place + 1) + 0.005
        losses[f"twin{place}"] = loss + rng.permutation(loss - loss.mean()) / 3 + 0.02 * loss.mean()
    return made(logs, pd.DataFrame(losses))


def test_what_is_dominated_is_known():
    """`b` has the larger mean of `a`, and the smaller loss in most pairs."""
    losses = pd.DataFrame({"cfg": 0.0, "a": 0.1, "b": [0.9, 0.05, 0.05, 0.05]})
    both = made({"cfg": [1.0, 1.0], "a": [0.5, 0.5], "b": [0.5, 0.5]}, losses)
    assert dominated(both, most=False).tolist() == [False, False, True]
    assert dominated(both, most=True).tolist() == [False, False, False]


def test_a_table_is_drawn_by_prompts_and_repeats(near_ties):
    table = drawn(near_ties, np.random.default_rng(0), repeats=9)
    assert (len(table.logs), len(table.losses)) == (9, 64)
    assert table.losses.index.get_level_values("prompt_id").nunique() == 64
    assert 20 < len(table.losses.drop_duplicates()) < 60


def test_the_stored_studies_are_a_population():
    population = stored(STORED / "quality", STORED / "time")
    assert list(population.logs) == list(population.losses)
    assert (population.losses["cfg"] == 0).all()
    assert not dominated(population, most=True)[list(population.logs).index("cfg")]


def test_the_rule_before_takes_estimates_for_the_truth(near_ties):
    np.testing.assert_array_equal(before(near_ties), ~dominated(near_ties, most=False))


def test_a_dominated_variant_is_bold_in_few_tables(near_ties):
    """Of 20 tables at most three, which a share of 5 % exceeds in 2 % of draws."""
    old, new = rates(near_ties, tables=20, repeats=6)
    assert old.dominated_in_mean > 0.5
    assert new.dominated_in_mean <= 3 / 20
    assert new.wrongly_beaten <= 3 / 20
    assert new.efficient >= 1
