import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.dominance import dominance

PAIRS = pd.MultiIndex.from_product(
    [[f"{prompt:03d}" for prompt in range(60)], [0]], names=["prompt_id", "seed"]
)


def tables(time, loss, *, seed=0, noise_s=0.01, noise=0.02):
    """Six repeats and sixty pairs of variants with these mean log-times and losses."""
    generator = np.random.default_rng(seed)
    logs = pd.DataFrame(
        generator.normal(0, noise_s, (6, len(time))) + list(time.values()), columns=list(time)
    )
    values = generator.normal(0, noise, (60, len(loss))) + list(loss.values())
    return logs, pd.DataFrame(values, PAIRS, columns=list(loss))


def verdicts(time, loss, **options):
    made = {name: options.pop(name) for name in ("seed", "noise_s", "noise") if name in options}
    tested = dominance(
        *tables(time, loss, **made), **({"higher_is_better": False, "most": True} | options)
    )
    return {name: (row["verdict"], row["rival"]) for name, row in tested.iterrows()}


TIME = {"slow": 1.0, "fast": 0.0, "lame": 1.0, "near": 0.0}
LOSS = {"slow": 0.1, "fast": 0.3, "lame": 0.4, "near": 0.3001}


def test_what_is_shown_to_be_beaten_or_not_is_told_from_what_is_open():
    assert verdicts(TIME, LOSS) == {
        "slow": ("efficient", ""),
        "fast": ("open", "near"),
        "lame": ("beaten", "slow"),
        "near": ("open", "fast"),
    }


def test_the_direction_turns_better_to_worse():
    turned = {name: -loss for name, loss in LOSS.items()}
    assert verdicts(TIME, turned, higher_is_better=True) == verdicts(TIME, LOSS)


def test_a_rival_that_takes_little_longer_beats_and_one_that_takes_more_does_not():
    loss = {"own": 0.3, "rival": 0.1}
    beaten = {
        late: verdicts({"own": 0.0, "rival": late}, loss, noise_s=0.001)["own"][0]
        for late in (0.0, 0.1)
    }
    assert beaten == {0.0: "beaten", 0.1: "efficient"}


def test_of_two_that_make_the_same_images_the_faster_one_wins():
    logs, values = tables({"own": 0.2, "rival": 0.0}, {"own": 0.3, "rival": 0.3})
    values["rival"] = values["own"]
    tested = dominance(logs, values, higher_is_better=False, most=True)
    assert tested["verdict"].to_dict() == {"own": "beaten", "rival": "efficient"}


def test_what_differs_from_the_reference_is_worse_without_a_test():
    logs, values = tables({"cfg": 0.0, "near": 0.0}, {"cfg": 0.0, "near": 0.0}, noise=0)
    values.loc[values.index[0], "near"] = 1e-3
    verdict = {
        name: dominance(logs, values, higher_is_better=False, most=True, reference=name)["verdict"][
            "cfg"
        ]
        for name in (None, "cfg")
    }
    assert verdict == {None: "open", "cfg": "efficient"}


def test_an_infinite_figure_is_perfect():
    logs, values = tables({"cfg": 0.0, "near": 0.0}, {"cfg": 50.0, "near": 50.0})
    values["cfg"] = np.inf
    assert (
        dominance(logs, values, higher_is_better=True, most=True)["verdict"]["cfg"] == "efficient"
    )


def test_without_times_only_the_best_is_efficient():
    logs, values = tables(TIME, LOSS)
    tested = dominance(logs * np.nan, values, higher_is_better=False, most=True)
    assert tested["verdict"].to_dict() == {"slow": "efficient"} | dict.fromkeys(
        ["fast", "lame", "near"], "open"
    )


@pytest.mark.parametrize("most", [True, False])
def test_where_mean_and_most_pairs_disagree_nothing_is_shown_if_most_pairs_count(most):
    logs, values = tables({"a": 0.0, "b": 0.0}, {"a": 0.1, "b": 0.1}, noise=0.001)
    values["a"] += np.where(np.arange(60) < 12, 0.5, -0.01)
    shown = dominance(logs, values, higher_is_better=False, most=most)["verdict"].to_dict()
    assert (shown["b"] == "efficient") != most


def test_variants_that_share_no_pair_were_not_shown_to_make_the_same_images():
    logs, values = tables({"slow": 1.0, "fast": 0.0}, {"slow": 0.1, "fast": 0.1})
    values.iloc[:30, 0] = values.iloc[30:, 1] = np.nan
    tested = dominance(logs, values, higher_is_better=False, most=True)
    assert tested.loc["slow", ["verdict", "rival"]].tolist() == ["open", "fast"]


@pytest.mark.parametrize(("most", "verdict"), [(True, "beaten"), (False, "open")])
def test_equal_values_are_equal_images_only_where_a_metric_compares_images(most, verdict):
    # Eight captions whose attributes are all there say little of those that were not drawn.
    logs, values = tables({"slow": 1.0, "fast": 0.0}, {"slow": 0.8, "fast": 0.8}, noise=0)
    tested = dominance(logs, values, higher_is_better=True, most=most)
    assert tested.loc["slow", ["verdict", "rival"]].tolist() == [verdict, "fast"]
