import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.frontier import frontier


def summary(**columns):
    names = ["cfg", "fast", "good", "bad", "same"]
    values = {
        "variant": names,
        "pairs": 8,
        "saving": 0.0,
        "denoise_saving": [0.0, 0.5, 0.2, 0.2, 0.1],
    }
    values |= {"denoise_saving_lo": np.nan, "denoise_saving_hi": np.nan}
    values |= {
        "lpips": [np.nan, 0.3, 0.1, 0.2, 0.1],
        "lpips_lo": np.nan,
        "alignment": [0.9, 0.6, 0.8, 0.7, 0.95],
    }
    return pd.DataFrame(values | columns)


def test_what_is_beaten_in_time_and_quality_is_not_efficient():
    table = frontier(summary(), "lpips", higher_is_better=False).set_index("variant")
    assert table.index.tolist() == ["fast", "good", "bad", "same", "cfg"]
    assert table["efficient"].to_dict() == {
        "fast": True,
        "good": True,
        "bad": False,
        "same": False,
        "cfg": True,
    }


def test_where_high_is_good_the_baseline_can_be_beaten():
    table = frontier(summary(), "alignment", higher_is_better=True).set_index("variant")
    assert table["efficient"].to_dict() == {
        "fast": True,
        "good": True,
        "bad": False,
        "same": True,
        "cfg": False,
    }


def test_a_saving_that_was_not_shown_is_none():
    near = {"lpips": [np.nan, 0.3, 0.1, 0.2, 0.05]}
    noisy = {
        "denoise_saving_lo": [np.nan, 0.4, 0.1, 0.1, -0.1],
        "denoise_saving_hi": [np.nan, 0.6, 0.3, 0.3, 0.3],
    }
    marked = [
        frontier(summary(**near | interval), "lpips", higher_is_better=False).set_index("variant")[
            "efficient"
        ]["same"]
        for interval in ({}, noisy)
    ]
    assert marked == [True, False]  # as it takes the baseline's time, the baseline is better


def test_times_come_from_the_study_of_time():
    timing = summary(denoise_saving=[0.0, 0.1, 0.3, 0.4, 0.5], saving=[0.0, 0.1, 0.3, 0.4, 0.5])
    table = frontier(summary(), "lpips", higher_is_better=False, timing=timing).set_index("variant")
    assert (
        table["denoise_saving"].to_dict() == timing.set_index("variant")["denoise_saving"].to_dict()
    )
    assert table["saving"].to_dict() == timing.set_index("variant")["saving"].to_dict()


def test_a_variant_without_a_time_is_named():
    with pytest.raises(ValueError, match="the study of time has no 'same'"):
        frontier(summary(), "lpips", higher_is_better=False, timing=summary().iloc[:4])


@pytest.mark.parametrize("seed", range(5))
def test_the_frontier_falls_with_time(seed):
    generator = np.random.default_rng(seed)
    names = ["cfg", *(str(index) for index in range(30))]
    table = frontier(
        pd.DataFrame(
            {
                "variant": names,
                "pairs": 1,
                "denoise_saving": generator.random(31),
                "alignment": generator.random(31),
            }
            | {"denoise_saving_lo": np.nan, "denoise_saving_hi": np.nan}
        ),
        "alignment",
        higher_is_better=True,
    )
    efficient = table[table["efficient"]]
    assert efficient["alignment"].is_monotonic_increasing  # the slower, the better
    assert efficient["alignment"].max() == table["alignment"].max()
