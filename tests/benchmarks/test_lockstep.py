"""What the benchmarks of the clock make of two tables; what they measure takes minutes."""

import pandas as pd
import psutil
import pytest

from benchmarks.lockstep import differences, larger, others, widths


def table(half, saving=0.2):
    """A summary of one variant whose saving is known to `half`."""
    rows = [
        {"variant": "cfg", "saving": 0.0, "saving_lo": float("nan"), "saving_hi": float("nan")},
        {
            "variant": "unguided",
            "saving": saving,
            "saving_lo": saving - half,
            "saving_hi": saving + half,
        },
    ]
    return pd.DataFrame(rows).set_index("variant")


def test_half_widths_are_in_points_and_compared():
    found = widths({"calls": table(0.06), "lockstep": table(0.015)})
    assert found.loc["unguided"].to_dict() == pytest.approx(
        {"calls": 6.0, "lockstep": 1.5, "ratio": 0.25}
    )
    assert found.loc["mean", "ratio"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("own", "half", "equal"), [(0.203, 0.004, True), (0.203, 0.02, False), (0.215, 0.001, False)]
)
def test_savings_are_equal_where_the_interval_lies_within_a_point(own, half, equal):
    found = differences({"calls": table(0.004), "lockstep": table(half, own)})
    assert found["equal"].to_dict() == {"unguided": equal}
    assert found["estimate"]["unguided"] == pytest.approx(100 * (own - 0.2))


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
