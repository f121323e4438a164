import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sdbench.report.tables import (
    frontier_markdown,
    legend,
    markdown,
    plan_text,
    ranking_note,
    ranking_text,
    summary_table,
)


@pytest.fixture
def summary():
    def spread(name, estimate, half):
        return {name: estimate, f"{name}_lo": estimate - half, f"{name}_hi": estimate + half}

    row = {
        "nfe": 100.0,
        "failed": 0,
        "unsupported": "",
        "batch": 8,
        "latency_s": 2.5,
        "ideal_saving": 0.1,
        "predicted_saving": 0.08,
        "peak_bytes": 2.1e8,
    }
    row |= (
        spread("saving", 0.123, 0.01)
        | spread("lpips", 0.012, 0.004)
        | spread("lpips_median", 0.006, 0.001)
        | spread("lpips_changed", 0.25, 0.05)
        | spread("alignment_difference", -0.02, 0.05)
    )
    row |= {"denoise_saving": 0.13, "alignment": 0.95, "clip_score": np.nan}
    names = ["cfg", "last:20%", "last:50%", "random:25@0", "steps:38", "unguided", "lora"]
    return pd.DataFrame([{"variant": name} | row for name in names])


def printed(summary, *, wide=False):
    console = Console(width=400 if wide else 80, file=io.StringIO())
    console.print(summary_table(summary, wide=wide))
    return console.file.getvalue()


def test_the_table_has_a_line_per_variant_within_80_columns(summary):
    lines = printed(summary).splitlines()
    assert len(lines) == 2 + len(summary)
    assert all(len(line) <= 80 for line in lines)
    assert " ".join(lines[3].split()) == "last:20% 100 2.50 12.3 [11.3,13.3] 0.012 25 [20,30] 0.95"


def test_the_wide_table_has_every_column_with_its_interval(summary):
    lines = printed(summary, wide=True).splitlines()
    assert len(lines) == 2 + len(summary)
    assert " ".join(lines[3].split()) == (
        "last:20% 100 2.50 12.3 [11.3,13.3] 13.0 10.0 8.0 210 0.012 [0.008,0.016] "
        "0.006 [0.005,0.007] 25 [20,30] 0.95 -0.02 [-0.07,+0.03]"
    )


def test_the_narrow_table_breaks_no_number_and_no_name(summary):
    long = summary.assign(
        nfe=87.125, latency_s=12.345, saving=-0.123, saving_lo=-0.135, saving_hi=-0.111
    )
    text = printed(long.replace({"variant": {"lora": "mask:110010101"}}))
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ["mask:110010101", "87.12", "[-13.5,-11.1]", "[20,30]"]:
        assert word in text
    assert text.count("0.95") == len(summary)


def test_the_time_gives_way_where_another_metric_needs_the_room(summary):
    more = summary.assign(flicker=0.05, saving_lo=-1.113, saving_hi=-1.111)
    text = printed(more)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "time" not in text
    assert "0.050" in text
    assert "time:" not in legend(more)
    assert "2.50" in printed(more, wide=True)


def test_a_mean_without_a_share_that_changed_keeps_its_interval(summary):
    assert "0.012 [0.008,0.016]" in printed(summary.assign(lpips_changed=np.nan))


def test_short_times_are_in_milliseconds(summary):
    assert "| time ms/8 images |" in markdown(summary.assign(latency_s=0.25))
    assert "| 250 |" in markdown(summary.assign(latency_s=0.25))


@pytest.mark.parametrize(
    ("batches", "heading"),
    [
        ([8] * 7, "time s/8 images"),
        ([1] * 7, "time s/image"),
        ([8, 4, 8, 8, 8, 8, np.nan], "time s/4 to 8 images"),
    ],
)
def test_a_time_says_of_how_many_images_it_is(summary, batches, heading):
    summary["batch"] = batches
    assert f"| {heading} |" in markdown(summary)
    assert heading.split()[1] in printed(summary)


def test_where_rows_are_other_work_nothing_is_ideal_or_expected(summary):
    undefined = ["ideal_saving", "predicted_saving"]
    summary.loc[6, undefined] = np.nan
    cells = [cell.strip() for cell in markdown(summary).splitlines()[-1].split("|")]
    heads = [cell.strip() for cell in markdown(summary).splitlines()[0].split("|")]
    assert [cells[heads.index(name)] for name in ("ideal %", "predicted %")] == ["-", "-"]


def test_missing_numbers_are_dashes_and_missing_intervals_left_out(summary):
    summary.loc[0, ["predicted_saving", "saving_lo", "saving_hi"]] = np.nan
    assert (
        markdown(summary)
        .splitlines()[2]
        .startswith("| cfg | 100 | 2.50 | 12.3 | 13.0 | 10.0 | - |")
    )


def test_column_without_any_value_is_left_out_of_table_and_legend(summary):
    empty = summary.assign(lpips=np.nan, lpips_median=np.nan, lpips_changed=np.nan)
    assert "LPIPS" not in markdown(empty)
    assert "LPIPS:" not in legend(empty, wide=True)
    assert "noise floor" in legend(summary, wide=True)


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
    assert [line.split(":")[0] for line in legend(summary, wide=True).splitlines()[:-1]] == headings


def test_the_short_legend_explains_what_the_narrow_table_shows(summary):
    lines = legend(summary).splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == [
        *("NFE", "time", "saving", "LPIPS", "changed", "alignment")
    ]
    assert all(len(line) <= 80 for line in lines)


@pytest.fixture
def plans():
    def spread(name, estimate, half):
        return {name: estimate, f"{name}_lo": estimate - half, f"{name}_hi": estimate + half}

    row = (
        {"unguided": 25, "nfe": 75.0}
        | spread("saving", 0.201, 0.02)
        | spread("lpips", 0.0123, 0.0022)
        | spread("lpips_median", 0.0061, 0.0011)
        | spread("lpips_changed", 0.25, 0.05)
    )
    plan = row | {"variant": "plan", "verdict": ""} | spread("worse", 0.0, 0.0)
    control = (
        row
        | {"variant": "interval:10+25"}
        | {"verdict": "plan nearer in most images, farther in a few"}
        | spread("worse", -0.0051, 0.0071)
        | spread("plan_better", 0.91, 0.03)
    )
    return pd.DataFrame([plan, control])


@pytest.mark.parametrize("width", [80, 120])
def test_plans_are_printed_whole(plans, width):
    console = Console(width=width, file=io.StringIO())
    console.print(plan_text(plans, "lpips", width=width))
    text = console.file.getvalue()
    cells = " ".join(text.split())
    assert "…" not in text
    assert "plan of 25 75 20% 0.0123 0.0061 25% -" in cells
    assert "interval:10+25 75 20% 0.0123 0.0061 25% -0.0051" in cells
    assert {"[18%,22%]", "[-0.0122,+0.0020]", "nearer", "farther"} <= set(text.split())
    for words in ("[0.0101,0.0145]", "[0.0050,0.0072]", "[20%,30%]", "[88%,94%]"):
        assert (words in text) == (width == 120)


def frontier_row(verdict, rival, **figures):
    row = {"variant": "last:20%", "nfe": 90.0, "verdict": verdict, "rival": rival}
    for name, value in (
        {"denoise_saving": 0.1, "lpips": 0.02, "lpips_median": 0.001} | figures
    ).items():
        row |= {name: value, f"{name}_lo": np.nan, f"{name}_hi": np.nan}
    return row


def test_a_frontier_says_what_was_shown_of_each_variant_and_by_which_rival():
    rows = [
        frontier_row("efficient", ""),
        frontier_row("open", "cfg"),
        frontier_row("beaten", "lora"),
    ]
    lines = frontier_markdown(pd.DataFrame(rows)).splitlines()
    assert lines[0] == "| variant | NFE | loop saved % | lpips (to cfg) | verdict |"
    assert lines[2:] == [
        "| **last:20%** | 90 | 10.0 | 0.020 | efficient |",
        "| *last:20%* | 90 | 10.0 | 0.020 | not told apart from cfg |",
        "| last:20% | 90 | 10.0 | 0.020 | beaten by lora |",
    ]


def test_a_frontier_shows_median_and_changed_share_of_what_has_a_threshold():
    row = frontier_row("open", "cfg", lpips_changed=0.25, alignment=0.9, alignment_median=1.0)
    lines = frontier_markdown(pd.DataFrame([row])).splitlines()
    assert "| lpips (to cfg) | median | changed % | alignment (to prompt) | verdict |" in lines[0]
    assert "| 0.020 | 0.0010 | 25.0 | 0.900 |" in lines[2]


def test_a_frontier_says_where_its_times_come_from_and_what_was_timed():
    rows = [frontier_row("open", "cfg", predicted_saving=0.1) for _ in range(2)]
    joined = pd.DataFrame(rows).assign(batch=8, timed_nfe=[90.0, 88.0])
    lines = frontier_markdown(joined).splitlines()
    head = "| variant | NFE | loop saved % (another study, 8 images a call) | lpips (to cfg) |"
    assert lines[0] == f"{head} verdict |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["90", "90 (timed at 88)"]


def test_a_ranking_says_how_many_comparisons_it_is_corrected_for():
    rows = [
        {"variant": name, "best_rank": best, "worst_rank": 2, "lpips": 0.1, "lpips_median": 0.05}
        for name, best in (("near", 1), ("far", 2))
    ]
    table = pd.DataFrame(rows).assign(
        lpips_lo=np.nan, lpips_hi=np.nan, lpips_median_lo=0.01, lpips_median_hi=0.1
    )
    console = Console(width=80, file=io.StringIO())
    console.print(ranking_text(table, "lpips"))
    printed = " ".join(console.file.getvalue().split())
    assert "1 to 2 0.1000 0.0500 [0.0100,0.1000] near 2 0.1000" in printed
    assert "(1 sign-flip tests, corrected by Holm at 5 %)" in ranking_note(table)
