import pandas as pd
import pytest

from sdbench.analysis.known import LIKED, OPEN, TOLD, answer_table, known_columns, likes
from sdbench.records.schema import frame


def known(values, *, answer="black", baseline=0.9, higher=True, metric="taste"):
    """A table in which an answer has some values, of a prompt each."""
    return frame(
        "known",
        [
            {"metric": metric, "answer": answer, "prompt_id": f"{index:03d}", "prompt": "a"}
            | {"seed": 0, "value": value, "baseline": baseline, "higher_is_better": higher}
            for index, value in enumerate(values)
        ],
    )


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.1] * 5, TOLD),
        ([0.1] * 4, OPEN),  # worse in all of 4 pairs may be chance
        ([0.95] * 2, LIKED),  # a mean above the baseline needs no test
        ([0.9] * 8, LIKED),
        ([0.1] * 7 + [0.95], TOLD),
        ([0.1] * 6 + [0.95] * 2, LIKED),  # 6 of 8: p is 0.14
        ([0.1] * 6 + [9.0], LIKED),  # most pairs, but not the mean
        ([0.1] * 5 + [None] * 9, TOLD),
    ],
)
def test_a_bad_answer_must_be_worse_in_mean_and_sign(values, verdict):
    assert answer_table(known(values))["verdict"].tolist() == [verdict]


def test_the_direction_is_the_metrics_own():
    distances = known([0.8] * 6, baseline=0.01, higher=False)
    assert answer_table(distances)["verdict"].tolist() == [TOLD]
    assert answer_table(known([0.8] * 6, baseline=0.01))["verdict"].tolist() == [LIKED]


def test_what_is_as_good_has_no_verdict():
    table = answer_table(known([0.95] * 8, answer="other seed"))
    assert table["verdict"].tolist() == [""]
    assert table[["pairs", "value", "baseline", "worse"]].iloc[0].tolist() == pytest.approx(
        [8, 0.95, 0.9, 0]
    )


def test_a_summary_says_what_each_metric_likes_and_its_scale():
    table = pd.concat(
        [
            known([0.95] * 8),
            known([0.1] * 8, answer="noise"),
            known([0.99] * 8, answer="other prompt"),
            known([0.1] * 8, metric="sense"),
            known([0.7, 0.8], metric="sense", answer="other seed"),
        ]
    )
    assert likes(table) == {"taste": "black, other prompt", "sense": ""}
    assert known_columns(table) == {
        "taste_likes": "black, other prompt",
        "sense_likes": "",
        "sense_other_seed": pytest.approx(0.75),
    }


def test_a_study_without_known_answers_says_nothing():
    assert known_columns(frame("known", [])) == {}


def test_both_means_are_of_the_pairs_that_have_both_values():
    table = known([0.1, 0.2, None])
    table.loc[2, "baseline"] = 0.3
    row = answer_table(table).iloc[0]
    assert (row["pairs"], row["value"], row["baseline"]) == (2, pytest.approx(0.15), 0.9)
