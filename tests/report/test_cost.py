import numpy as np
import pandas as pd
from rich.console import Console

from sdbench.report.tables import cost_heading, cost_table

POINT = pd.DataFrame(
    [
        {
            "variant": "last:50%",
            "ideal_saving": 0.25,
            "predicted_denoise_saving": 0.2,
            "predicted_denoise_saving_lo": 0.19,
            "predicted_denoise_saving_hi": 0.21,
            "denoise_saving": 0.19,
            "denoise_saving_lo": 0.17,
            "denoise_saving_hi": 0.21,
            "share_of_ideal": 0.76,
            "predicted_saving": 0.15,
            "predicted_saving_lo": np.nan,
            "predicted_saving_hi": np.nan,
            "saving": 0.14,
            "saving_lo": np.nan,
            "saving_hi": np.nan,
            "batch": 2,
            "height": 512,
            "width": 768,
            "ratio": 1.667,
            "ratio_lo": 1.6,
            "ratio_hi": 1.7,
            "guided_s": 7.5,
            "unguided_s": 4.5,
            "denoise_share": 0.75,
            "compile_s": 0.0,
        }
    ]
)


def test_the_heading_says_what_steps_take():
    assert cost_heading(POINT) == (
        "512 x 768, batch 2: guided step 7.5 s, unguided 4.5 s, R = 1.667 [1.600, 1.700], "
        "loop 75.0% of a call"
    )
    assert cost_heading(POINT.assign(compile_s=61.2)).endswith("compiled in 61 s")


def test_every_saving_stands_in_the_table():
    console = Console(width=120)
    with console.capture() as captured:
        console.print(cost_table(POINT))
    row = captured.get().splitlines()[-1].split()
    assert row == [
        "last:50%",
        "25.0%",
        "20.0%",
        "[19.0%,",
        "21.0%]",
        "19.0%",
        "[17.0%,",
        "21.0%]",
        "76%",
        "15.0%",
        "14.0%",
    ]


def test_of_an_accelerator_nothing_is_ideal_or_expected():
    columns = ["ideal_saving", "share_of_ideal", "predicted_saving", "predicted_denoise_saving"]
    console = Console(width=120)
    with console.capture() as captured:
        console.print(cost_table(POINT.assign(**dict.fromkeys(columns, np.nan))))
    row = captured.get().splitlines()[-1].split()
    assert row == ["last:50%", "-", "-", "19.0%", "[17.0%,", "21.0%]", "-", "-", "14.0%"]
