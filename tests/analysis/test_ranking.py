from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.ranking import ranking
from sdbench.analysis.tables import PAIRS
from sdbench.records.store import read


def rows(values):
    """Images of one seed, by variant."""
    return [
        {
            "unit": f"{variant}/0/0",
            "variant": variant,
            "prompt_id": f"{pair:03d}",
            "seed": 0,
            "lpips": value,
        }
        for variant, of_pairs in values.items()
        for pair, value in enumerate(of_pairs)
    ]


@pytest.fixture
def results(study):
    """Twelve pairs: `near` and `close` differ by noise alone, `far` from both by much."""
    generator = np.random.default_rng(0)
    means = {"near": 0.1, "close": 0.1, "far": 0.3}
    values = {name: mean + 0.01 * generator.normal(size=12) for name, mean in means.items()}
    return study({name: [1, 1] for name in ("cfg", *means)}, images=rows(values))


def test_ranks_overlap_where_a_difference_is_not_clear(results):
    table = ranking(results, "lpips", higher_is_better=False).set_index("variant")
    assert table.index[-1] == "far"
    assert table[["best_rank", "worst_rank"]].T.to_dict("list") == {
        "near": [1, 2],
        "close": [1, 2],
        "far": [3, 3],
    }
    assert (table["p"] < 0.05).tolist() == [
        False,
        True,
        False,
    ]  # against the next; the last has none


def test_the_direction_turns_the_order(results):
    up, down = (
        ranking(results, "lpips", higher_is_better=better)["variant"].tolist()
        for better in (True, False)
    )
    assert up == down[::-1]


def test_among_many_equal_variants_next_to_none_seems_to_differ(study):
    """Of 66 comparisons three seem clear at 5 % each, and in most studies one does."""
    names = [f"v{number:02d}" for number in range(12)]
    plain = study({"cfg": [1, 1]})
    found = 0
    for seed in range(5):
        generator = np.random.default_rng(seed)
        values = {name: generator.lognormal(0, 1, 64) for name in names}
        runs = [plain.runs.iloc[:1].assign(unit=f"{name}/0/0", variant=name) for name in names]
        made = replace(
            plain,
            runs=pd.concat(runs),
            images=study({"cfg": [1, 1]}, images=rows(values)).images,
        )
        table = ranking(made, "lpips", higher_is_better=False)
        found += bool((table["best_rank"] > 1).any())
    assert found <= 1


def test_where_most_pairs_contradict_the_mean_the_difference_is_not_clear(study):
    steady = np.full(100, 0.02)
    flips = np.where(np.arange(100) < 10, 0.5, 0.01)
    made = study(
        {name: [1, 1] for name in ("cfg", "steady", "flips")},
        images=rows({"steady": steady, "flips": flips}),
    )
    table = ranking(made, "lpips", higher_is_better=False)
    assert table["variant"].tolist() == ["steady", "flips"]
    assert table[["best_rank", "worst_rank"]].to_numpy().tolist() == [[1, 2], [1, 2]]


def test_a_metric_that_no_image_has_is_refused(results):
    with pytest.raises(ValueError, match="no image has a value of clip_score"):
        ranking(results, "clip_score", higher_is_better=True)


def test_a_stored_study_is_ranked_alike_from_the_columns_that_are_needed():
    folder = Path(__file__).parents[2] / "results" / "mini-sd" / "default"
    some, whole = (
        ranking(read(folder, columns=columns), "lpips", higher_is_better=False)
        for columns in (PAIRS, None)
    )
    pd.testing.assert_frame_equal(some, whole, check_exact=True)
