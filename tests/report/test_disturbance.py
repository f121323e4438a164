"""What tables, figures and the page say of a run that was disturbed, undecided, or not timed."""

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sdbench.report.disturbance import disturbance_note, time_legend
from sdbench.report.figures import (
    curves_figure,
    frontier_figure,
    plan_figure,
    saving_figure,
    step_figure,
)
from sdbench.report.tables import (
    comparison_markdown,
    cost_table,
    frontier_markdown,
    latex,
    legend,
    markdown,
    plan_text,
    summary_cells,
    summary_table,
)

CAUSE = "5 of 6 rounds of calls: others took up to 1.9 cores"
NOTE = f"DISTURBED: {CAUSE}. Not to trust: times in seconds, and the savings of lora."


def column(name, estimates, half):
    lo = [estimate - h for estimate, h in zip(estimates, half, strict=True)]
    hi = [estimate + h for estimate, h in zip(estimates, half, strict=True)]
    return {name: estimates, f"{name}_lo": lo, f"{name}_hi": hi}


@pytest.fixture
def summary():
    """`last:20%` is decided, `lora` is not, and `random:20%@0` was not timed."""
    names = ["cfg", "last:20%", "lora", "random:20%@0"]
    half = [np.nan, 0.02, 3.0, np.nan]
    table = {"variant": names, "nfe": 90.0, "steps": 50, "repeats": 6, "pairs": 8, "failed": 0}
    table |= {"unsupported": "", "disturbance": CAUSE, "batch": 8, "latency_s": 2.5}
    for name in ("saving", "denoise_saving"):
        table |= column(name, [0.0, 0.1, -2.0, np.nan], half)
        table |= column(f"predicted_{name}", [0.0, 0.09, 0.45, 0.08], [np.nan, 0.01, 0.01, 0.01])
    table |= column("lpips", [0.0, 0.01, 0.05, 0.03], [np.nan] * 4)
    return pd.DataFrame(table)


@pytest.fixture
def calm(summary):
    table = summary.assign(disturbance="")
    return table[table["variant"].isin(["cfg", "last:20%"])]


def printed(table):
    console = Console(width=140, file=io.StringIO())
    console.print(table)
    return " ".join(console.file.getvalue().split())


def plans(summary):
    rows = summary.iloc[1:3].assign(variant=["plan", "lora"], unguided=25, verdict="")
    return rows.assign(**column("worse", [0, 0.1], [0, 0.1]), plan_better=0.6).assign(
        plan_better_lo=0.5, plan_better_hi=0.7, lpips_median=0.1, lpips_median_lo=0.1
    ).assign(lpips_median_hi=0.1)  # fmt: skip


def cost(summary):
    return summary.iloc[1:3].assign(ideal_saving=0.2, share_of_ideal=0.5)


def with_verdicts(summary):
    verdicts = ["efficient", "efficient", "open", "untimed"]
    return summary.assign(verdict=verdicts, rival=["", "", "cfg", ""])


def compared(summary):
    table = pd.DataFrame({"variant": ["lora"], "figure": "nfe", "disturbance": CAUSE})
    return table.assign(verdict="same", repeats_needed=np.nan)


TABLES = {
    "terminal": lambda summary: printed(summary_table(summary, wide=True)),
    "Markdown": markdown,
    "LaTeX": lambda summary: latex(summary).replace("\\%", "%"),
    "frontier": lambda summary: frontier_markdown(with_verdicts(summary)),
    "plan": lambda summary: printed(plan_text(plans(summary), "lpips", width=140)),
    "cost": lambda summary: printed(cost_table(cost(summary))),
    "comparison": lambda summary: comparison_markdown(compared(summary)),
}


@pytest.mark.parametrize("table", TABLES)
def test_every_table_of_times_begins_with_what_disturbed_the_run(summary, table):
    head = TABLES[table](summary)
    head = head.removeprefix("**").removeprefix("\\textbf{")
    assert head.startswith(f"DISTURBED: {CAUSE}. Not to trust: times in seconds")


@pytest.mark.parametrize("table", [name for name in TABLES if name != "comparison"])
def test_every_table_of_savings_names_what_is_undecided(summary, table):
    text = TABLES[table](summary)
    assert "and the savings of lora." in text
    assert "undecided" in text
    assert "-200" not in text


def test_a_calm_run_adds_nothing(calm):
    assert disturbance_note(calm) == ""
    assert time_legend(calm) == []
    assert markdown(calm) == markdown(calm.drop(columns="disturbance"))
    assert printed(summary_table(calm)).startswith("time")
    assert frontier_figure(calm).get_suptitle() == ""


def test_a_wide_interval_is_undecided_in_a_calm_run_too(summary):
    calm = summary.assign(disturbance="")
    assert "undecided" in markdown(calm)
    assert "wider than 20 points" in markdown(calm)
    assert "wider than 20 points" in legend(calm, wide=True)


def test_what_has_no_interval_is_not_to_trust(summary):
    few = summary.assign(saving_lo=np.nan, saving_hi=np.nan)
    few = few.assign(denoise_saving_lo=np.nan, denoise_saving_hi=np.nan)
    assert disturbance_note(few).endswith("and the savings of last:20%, lora.")


def test_the_short_legend_leaves_out_what_the_narrow_table_does_not_show(summary):
    calm = summary.assign(saving_lo=summary["saving"], saving_hi=summary["saving"])
    doubted = calm.assign(predicted_saving=0.5, predicted_saving_lo=0.0, predicted_saving_hi=1.0)
    assert "undecided" not in legend(doubted)
    assert "undecided" in legend(doubted, wide=True)


def test_an_undecided_saving_is_sorted_with_what_is_missing(summary):
    head, rows = summary_cells(summary)
    place = head.index("saving %")
    cells = {row[0].value: row[place] for row in rows}
    assert (cells["lora"].text, cells["lora"].interval) == ("undecided", "")
    assert np.isnan(cells["lora"].value)
    assert cells["last:20%"].value == pytest.approx(10)


@pytest.mark.parametrize("wide", [False, True])
def test_what_was_not_timed_shows_its_predicted_saving_in_every_table(summary, wide):
    console = Console(width=400, file=io.StringIO())
    console.print(summary_table(summary, wide=wide))
    text = console.file.getvalue()
    row = text[text.index("random:20%") :].split()
    assert ("8.0" if wide else "(8.0)") in row
    assert "not timed" in legend(summary, wide=wide)


def test_the_frontier_shows_what_was_not_timed_behind_the_others(summary):
    row = frontier_markdown(with_verdicts(summary)).split("\n| ")[-1]
    assert row.startswith("random:20%@0 | 90 | - (8.0) |")
    assert "| not timed |" in row


def saving(summary):
    return saving_figure(summary.assign(unguided_share=0.2, paper=np.nan), published="paper")


FIGURES = {
    "frontier": frontier_figure,
    "tested frontier": lambda summary: frontier_figure(with_verdicts(summary)),
    "saving": lambda summary: saving(summary.assign(ideal_saving=0.1)),
    "curves": lambda summary: curves_figure(
        summary, "nfe", {"saving": "time saved", "lpips": "LPIPS"}, label="NFE"
    ),
    "plan": lambda summary: plan_figure(plans(summary), "lpips"),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_figures_of_savings_say_it_first_and_scale_to_what_is_decided(summary, figure):
    drawn = FIGURES[figure](summary)
    assert drawn.get_suptitle().replace("\n", " ") == NOTE
    axes = drawn.axes[0]
    assert all(abs(end) < 100 for end in (*axes.get_xlim(), *axes.get_ylim()))
    texts = [text.get_text() for one in drawn.axes for text in (*one.texts, one.title)]
    assert any(text in ("undecided, not drawn: lora", "1 undecided, not drawn") for text in texts)


def test_the_frontier_draws_what_was_not_timed_at_its_predicted_saving(summary):
    axes = frontier_figure(summary).axes[0]
    points = {bars.lines[0].get_marker(): bars.lines[0] for bars in axes.containers}
    assert list(points["D"].get_xdata()) == pytest.approx([8])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["not timed: predicted"]


def test_times_of_steps_say_it_and_leave_out_what_was_not_timed():
    profile = pd.DataFrame(
        {"variant": ["cfg", "random:20%@0"], "step": 0, "latency_s": [0.1, np.nan]}
    ).assign(guidance_cosine=0.9, guidance_cosine_q25=0.9, guidance_cosine_q75=0.9)
    drawn = step_figure(profile.assign(disturbance=CAUSE))
    assert drawn.get_suptitle().startswith(f"DISTURBED: {CAUSE}")
    assert [line.get_label() for line in drawn.axes[0].lines] == ["cfg"]
