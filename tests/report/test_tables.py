import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sdbench.report.tables import legend, markdown, plan_text, summary_table


@pytest.fixture
def summary():
    def spread(name, estimate, half):
        return {name: estimate, f"{name}_lo": estimate - half, f"{name}_hi": estimate + half}

    row = {
        "nfe": 100.0,
        "failed": 0,
        "unsupported": "",
        "latency_s": 2.5,
        "ideal_saving": 0.1,
        "predicted_saving": 0.08,
        "peak_bytes": 2.1e8,
    }
    row |= (
        spread("saving", 0.123, 0.01)
        | spread("lpips", 0.012, 0.004)
        | spread("alignment_difference", -0.02, 0.05)
    )
    row |= {"denoise_saving": 0.13, "alignment": 0.95, "clip_score": np.nan}
    names = ["cfg", "last:20%", "last:50%", "random:25@0", "steps:38", "unguided", "lora"]
    return pd.DataFrame([{"variant": name} | row for name in names])


def printed(summary, width):
    console = Console(width=width, file=io.StringIO())
    console.print(summary_table(summary, width=width))
    return console.file.getvalue()


def test_wide_terminal_has_one_line_per_variant(summary):
    lines = printed(summary, 120).splitlines()
    assert len(lines) == 2 + len(summary)
    cells = (
        "last:20% 100 2.50 12.3 [11.3,13.3] 13.0 10.0 8.0 210 0.012 [0.008,0.016] 0.95 "
        "-0.02 [-0.07,+0.03]"
    )
    assert " ".join(lines[3].split()) == cells


def test_narrow_terminal_breaks_no_number_and_no_name(summary):
    wide = summary.assign(
        nfe=87.125, latency_s=12.345, saving=-0.123, saving_lo=-0.135, saving_hi=-0.111
    )
    text = printed(wide.replace({"variant": {"lora": "mask:110010101"}}), 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ["mask:110010101", "87.12", "[-13.5,-11.1]", "[0.008,0.016]", "predicted"]:
        assert word in text
    assert text.count("0.95") == len(summary)


def test_wide_numbers_wrap_but_are_not_cut_off(summary):
    wide = summary.assign(
        nfe=87.125, saving=-0.123, saving_lo=-0.135, saving_hi=-0.111, peak_bytes=123456e6
    )
    text = printed(wide, 120)
    for word in ["[-13.5,-11.1]", "123456", "[0.008,0.016]", "[-0.07,+0.03]", "0.95"]:
        assert text.count(word) == len(summary)


def test_short_times_are_in_milliseconds(summary):
    assert "| time ms |" in markdown(summary.assign(latency_s=0.25))
    assert "| 250 |" in markdown(summary.assign(latency_s=0.25))


def test_missing_numbers_are_dashes_and_missing_intervals_left_out(summary):
    summary.loc[0, ["predicted_saving", "saving_lo", "saving_hi"]] = np.nan
    assert (
        markdown(summary)
        .splitlines()[2]
        .startswith("| cfg | 100 | 2.50 | 12.3 | 13.0 | 10.0 | - |")
    )


def test_column_without_any_value_is_left_out_of_table_and_legend(summary):
    empty = summary.assign(lpips=np.nan)
    assert "LPIPS" not in markdown(empty) + legend(empty)
    assert "noise floor" in legend(summary)


def test_failed_calls_stand_beside_the_variant(summary):
    assert "| lora (3 failed) |" in markdown(summary.assign(failed=[0, 0, 0, 0, 0, 0, 3]))


def test_what_cannot_run_is_there_and_says_so(summary):
    reasons = ["", "", "", "", "", "", "T-GATE has no loop for it"]
    assert "| lora (unsupported) |" in markdown(summary.assign(unsupported=reasons))


def test_tiny_loss_is_not_a_negative_zero(summary):
    assert "-0.0 " not in markdown(summary.assign(denoise_saving=-1e-5))


def test_legend_explains_every_column(summary):
    headings = [
        heading.strip().split(" ")[0]
        for heading in markdown(summary).splitlines()[0].split("|")[2:-1]
    ]
    assert [line.split(":")[0] for line in legend(summary).splitlines()[:-1]] == headings


def test_plans_are_printed_whole_on_a_narrow_terminal():
    def spread(name, estimate, half):
        return {name: estimate, f"{name}_lo": estimate - half, f"{name}_hi": estimate + half}

    row = (
        {"unguided": 25, "nfe": 75.0}
        | spread("saving", 0.201, 0.02)
        | spread("lpips", 0.0123, 0.0022)
    )
    plan = row | {"variant": "plan", "verdict": ""} | spread("worse", 0.0, 0.0)
    control = (
        row
        | {"variant": "interval:10+25", "verdict": "undecided"}
        | spread("worse", 0.0051, 0.0071)
    )
    console = Console(width=80, file=io.StringIO())
    console.print(plan_text(pd.DataFrame([plan, control]), "lpips"))
    cells = console.file.getvalue().split()
    assert "plan of 25 75 20% [18%,22%] 0.0123 -" in " ".join(cells)
    assert {"[0.0101,0.0145]", "[-0.0020,+0.0122]"} <= set(cells)
    assert "interval:10+25 75 20% [18%,22%] 0.0123 +0.0051 undecided" in " ".join(cells)
