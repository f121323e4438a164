"""A study says how many repeats it took, and why no more."""

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.ended import ended


def summary(repeats, half_width):
    """Of the baseline, a variant that is known well, one that is not, and one without a time."""
    return pd.DataFrame(
        {
            "variant": ["cfg", "last:50%", "lora", "random:50%@0..7"],
            "repeats": [repeats, repeats, repeats, 0],
            "saving_lo": [np.nan, 0.24, 0.5 - half_width / 100, np.nan],
            "saving_hi": [np.nan, 0.26, 0.5 + half_width / 100, np.nan],
        }
    )


@pytest.mark.parametrize(
    ("repeats", "half_width", "said"),
    [
        (9, 1.8, "9 repeats: the saving of lora is known to ±1.8 points, and every other one"),
        (24, 3.1, "24 repeats, which are the most: the saving of lora is known to ±3.1 points"),
        (7, 3.1, "7 repeats so far: the saving of lora is known to ±3.1 points, and ±2 were asked"),
    ],
)
def test_the_number_of_repeats_has_its_reason(repeats, half_width, said):
    assert ended("until 2 points", summary(repeats, half_width)).startswith(said)


def test_a_number_of_repeats_needs_no_reason():
    assert ended(9, summary(9, 1.8)) == ""
    assert ended("until 2 points", summary(0, np.nan).tail(1)) == ""
