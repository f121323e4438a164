"""What the benchmarks of the clock make of two tables; what they measure takes minutes."""

import numpy as np
import pandas as pd
import psutil
import pytest

from benchmarks.lockstep import differences, larger, others, widths


def summary(half):
    """A summary of one variant whose saving is known to `half`."""
    rows = [
        {"variant": "cfg", "saving_lo": float("nan"), "saving_hi": float("nan")},
        {"variant": "unguided", "saving_lo": 0.2 - half, "saving_hi": 0.2 + half},
    ]
    return pd.DataFrame(rows)


def savings(middle, spread, *, repeats=60):
    """Savings of one variant in points, some repeats of which are far off."""
    values = np.random.default_rng(int(10 * middle)).normal(middle, spread, repeats)
    values[::10] += 40
    return pd.DataFrame({"unguided": values})


def test_half_widths_are_in_points_and_compared():
    found = widths({"calls": summary(0.06), "lockstep": summary(0.015)})
    assert found.loc["unguided"].to_dict() == pytest.approx(
        {"calls": 6.0, "lockstep": 1.5, "ratio": 0.25}
    )
    assert found.loc["mean", "ratio"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("own", "spread", "equal"), [(20.3, 1.0, True), (20.3, 8.0, False), (21.5, 0.5, False)]
)
def test_savings_are_equal_where_the_interval_lies_within_a_point(own, spread, equal):
    found = differences({"calls": savings(20.0, spread), "lockstep": savings(own, 0.1)})
    assert found["equal"].to_dict() == {"unguided": equal}
    unguided = found.loc["unguided"]
    assert unguided["lo"] < own - 20 < unguided["hi"]


def test_other_processes_end_with_the_block():
    before = psutil.Process().children()
    with others(1):
        assert len(psutil.Process().children()) == len(before) + 1
    assert psutil.Process().children() == before
    with pytest.raises(RuntimeError, match="stop"), others(1):
        raise RuntimeError("stop")
    assert psutil.Process().children() == before


@pytest.mark.slow  # builds the whole of Stable Diffusion first
def test_the_larger_denoiser_is_as_wide_as_asked():
    pipe = larger(32)
    assert pipe.unet.config.block_out_channels[-1] == 4 * 32
