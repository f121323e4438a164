from pathlib import Path

import numpy as np
import pytest

from benchmarks.observers import Observer, simulated
from sdbench.analysis.perception.answered import answer_table
from sdbench.analysis.perception.perceive import judged
from sdbench.analysis.perception.settings import Settings
from sdbench.records.store import read
from sdbench.report.figures import perception_figure, psychometric_figure
from sdbench.report.tables import (
    perception_legend,
    perception_markdown,
    perception_table,
    perception_words,
)

STORED = Path(__file__).parents[2] / "results" / "mini-sd" / "default"


@pytest.fixture(scope="module")
def answers():
    results = read(STORED)
    observers = [Observer()] * 6 + [Observer(lapse=1.0)]
    settings = Settings(variants=("steps:18", "unguided"), trials=16)
    return answer_table(results, simulated(results, settings, observers, half=0.01, seed=1))


@pytest.fixture(scope="module")
def found(answers):
    return judged(answers)


@pytest.fixture(scope="module")
def preferred():
    results = read(STORED)
    settings = Settings("preference", ("lora", "unguided"), 24)
    files = simulated(results, settings, [Observer()] * 4, half=0.01)
    return judged(answer_table(results, files))


def test_words_say_first_that_nobody_was_a_person(found, answers):
    assert perception_words(found)[0].startswith("SIMULATED: 7 of 7 who answered are programs")
    human = judged(answers.assign(simulated=False).astype({"simulated": "boolean"}))
    assert perception_words(human)[0].startswith("7 people answered 16 trials of variants and 16")


def test_words_say_who_was_left_out_and_what_was_seen(found):
    text = "\n".join(perception_words(found))
    assert "1 left out: simulated-07 (" in text
    assert "The rule, fixed beforehand: left out is who is right in fewer than 85%" in text
    assert "unguided is seen: right in " in text
    assert "steps:18 is not shown to be seen: right in " in text
    assert "with 80 % power" in text
    assert "Right less often than with clear images: p " in text
    assert "Half notice a difference at LPIPS " in text
    assert "in the trials at most" not in text


def test_the_table_has_a_row_per_variant_and_catch_trial(found):
    table = perception_table(found)
    assert table.row_count == 4
    assert [column.header for column in table.columns][:3] == ["variant", "answers", "right %"]
    assert "clear, identical: the catch trials" in perception_legend(found)


def test_all_right_is_said_in_words(answers):
    perfect = judged(answers.assign(correct=True).astype({"correct": "boolean"}))
    text = perception_markdown(perfect)
    assert "(all right)" in text
    assert "inf" not in text
    assert "nan" not in text


def test_nobody_left_is_said(answers):
    alone = judged(answers[answers["person"] == "simulated-07"])
    assert perception_words(alone)[-1] == "Nobody is left, so nothing is said of any variant."
    assert perception_table(alone).row_count == 0


def test_the_summary_names_every_person_and_that_they_are_simulated(found):
    text = perception_markdown(found)
    assert all(f"simulated-0{number} (simulated)" in text for number in range(1, 8))
    assert "| unguided |" in text


def test_preference_has_wins_and_scores(preferred):
    text = perception_markdown(preferred)
    assert "unguided fits the caption better than cfg in " in text
    assert "Bradley-Terry scores (log-odds against cfg): " in text
    assert "| cfg | +0.00 |" in text
    assert "wins: share of answers" in perception_legend(preferred)


def test_figures_draw_what_was_found_and_say_simulated(found, preferred):
    figure = perception_figure(found)
    assert figure.get_suptitle().startswith("SIMULATED")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["steps:18", "unguided", "clear", "identical"]
    assert "fits the caption better" in perception_figure(preferred).axes[0].get_xlabel()
    curves = psychometric_figure(found)
    assert [axes.get_xlabel() for axes in curves.axes] == [
        "LPIPS to the reference",
        "FLIP to the reference",
    ]
    shares = curves.axes[0].lines[-3].get_ydata()
    assert np.all((np.asarray(shares) >= 49) & (np.asarray(shares) <= 101))
