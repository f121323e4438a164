import numpy as np
import pandas as pd
import pytest

from benchmarks.observers import Observer, simulated
from sdbench.analysis.perception.answered import answer_table
from sdbench.analysis.perception.perceive import judged
from sdbench.analysis.perception.preference import scores
from sdbench.analysis.perception.settings import Settings


def table(*rows):
    return pd.DataFrame(rows, columns=["variant", "against", "wins", "trials"])


def test_scores_are_those_of_two_meetings():
    """Without a cycle each score is the log-odds of its own meeting."""
    found = scores(table(("a", "cfg", 30, 40), ("b", "cfg", 10, 40)), "cfg").set_index("variant")
    assert found.loc["a", "score"] == pytest.approx(np.log(3))
    assert found.loc["b", "score"] == pytest.approx(-np.log(3))
    assert found.loc["cfg", "score"] == 0
    half = 1.96 * np.sqrt(1 / (40 * 0.75 * 0.25))
    assert found.loc["a", "score_hi"] - np.log(3) == pytest.approx(half, rel=1e-3)
    assert list(found.index) == ["a", "cfg", "b"]


def test_scores_satisfy_the_equations_of_bradley_and_terry():
    """The expected number of wins of every variant is the one that was seen (Hunter 2004)."""
    rows = (("a", "cfg", 12, 30), ("b", "cfg", 7, 25), ("a", "b", 21, 40))
    found = scores(table(*rows), "cfg").set_index("variant")["score"]
    for name in ("a", "b", "cfg"):
        seen = expected = 0.0
        for one, other, wins, trials in rows:
            share = 1 / (1 + np.exp(found[other] - found[one]))
            if name in (one, other):
                seen += wins if name == one else trials - wins
                expected += trials * (share if name == one else 1 - share)
        assert expected == pytest.approx(seen)


def test_two_variants_have_no_score():
    assert scores(table(("a", "cfg", 30, 40)), "cfg").empty


def test_a_variant_that_won_all_has_a_score_without_end():
    found = scores(table(("a", "cfg", 40, 40), ("b", "cfg", 10, 40)), "cfg")
    assert found["score"].isna().all()


def test_observers_of_preference_rank_by_distance(results):
    settings = Settings("preference", ("last:20%", "unguided"), 48)
    files = simulated(results, settings, [Observer()] * 6, half=0.01)
    found = judged(answer_table(results, files))
    assert found.mode == "preference"
    assert found.variants.empty
    assert list(found.scores["variant"])[-1] == "unguided"
    against = found.wins.set_index(["variant", "against"])
    assert against.loc[("unguided", "cfg"), "p"] < 0.001
    assert against.loc[("unguided", "cfg"), "share"] < 0.3
