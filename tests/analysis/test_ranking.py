from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.ranking import ranking
from sdbench.analysis.tables import PAIRS
from sdbench.records.store import read


@pytest.fixture
def results(study):
    """Twelve pairs: `near` and `close` differ by noise alone, `far` from both by much."""
    generator = np.random.default_rng(0)
    images = [
        {
            "unit": f"{variant}/0/0",
            "variant": variant,
            "prompt_id": f"{pair:03d}",
            "seed": 0,
            "lpips": distance + 0.01 * generator.normal(),
        }
        for variant, distance in (("near", 0.1), ("close", 0.1), ("far", 0.3))
        for pair in range(12)
    ]
    return study({name: [1, 1] for name in ("cfg", "near", "close", "far")}, images=images)


def test_ranks_overlap_where_a_difference_is_not_clear(results):
    table = ranking(results, "lpips", higher_is_better=False).set_index("variant")
    assert table.index[-1] == "far"
    assert table[["best_rank", "worst_rank"]].T.to_dict("list") == {
        "near": [1, 2],
        "close": [1, 2],
        "far": [3, 3],
    }


def test_the_direction_turns_the_order(results):
    up, down = (
        ranking(results, "lpips", higher_is_better=better)["variant"].tolist()
        for better in (True, False)
    )
    assert up == down[::-1]


def test_a_metric_that_no_image_has_is_refused(results):
    with pytest.raises(ValueError, match="has clip_score"):
        ranking(results, "clip_score", higher_is_better=True)


def test_a_stored_study_is_ranked_alike_from_the_columns_that_are_needed():
    folder = Path(__file__).parents[2] / "results" / "mini-sd" / "default"
    some, whole = (
        ranking(read(folder, columns=columns), "lpips", higher_is_better=False)
        for columns in (PAIRS, None)
    )
    pd.testing.assert_frame_equal(some, whole, check_exact=True)
