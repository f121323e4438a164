from pathlib import Path

import pandas as pd
import pytest

from sdbench.analysis.published import with_published

PUBLISHED = pd.read_csv(Path(__file__).parents[2] / "results" / "published.csv")


def test_figures_stand_beside_the_variants_that_have_them():
    table = pd.DataFrame({"variant": ["last:50%", "cfg", "last:20%"], "saving": [0.2, 0.0, 0.1]})
    found = with_published(table, PUBLISHED, paper="Selective guidance")
    assert found.to_dict("list") == {
        "variant": ["last:50%", "last:20%"],
        "saving": [0.2, 0.1],
        "published time saved": [20.3, 8.2],
    }


def test_every_metric_of_a_paper_is_a_column():
    table = pd.DataFrame({"variant": ["steps:35"]})
    found = with_published(table, PUBLISHED, paper="Tortoise and Hare Guidance, NeurIPS 2025")
    assert found.iloc[0].to_dict() == {
        "variant": "steps:35",
        "published FID": 13.342,
        "published CLIP": 26.321,
        "published ImageReward": 0.127,
    }


@pytest.mark.parametrize(
    ("paper", "message"), [("x", "no figures of 'x'"), ("Clockwork", "choose a machine")]
)
def test_what_cannot_be_joined_is_refused(paper, message):
    with pytest.raises(ValueError, match=message):
        with_published(pd.DataFrame({"variant": ["cfg"]}), PUBLISHED, paper=paper)
