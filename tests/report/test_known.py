from io import StringIO
from pathlib import Path

import pandas as pd
from rich.console import Console

from sdbench.analysis.frontier import frontier
from sdbench.analysis.ranking import ranking
from sdbench.analysis.tables import summarise
from sdbench.records.schema import empty, frame
from sdbench.records.store import Results
from sdbench.report.tables import (
    frontier_markdown,
    known_text,
    legend,
    markdown,
    ranking_text,
    summary_cells,
)
from tests.analysis.conftest import filled

LINE = (
    "(!) lpips does not put these clearly below the baseline's image: black. "
    "Do not read it as quality."
)


def answers(lpips):
    return frame(
        "known",
        [
            {"metric": metric, "answer": answer, "prompt_id": f"{index:03d}", "prompt": "a"}
            | {"seed": 0, "value": value, "baseline": 0.01, "higher_is_better": False}
            for metric, answer, value in [
                ("lpips", "black", lpips), ("flip", "black", 0.9), ("lpips", "other seed", 0.5)
            ]
            for index in range(8)
        ],
    )  # fmt: skip


def made_up(lpips, **study):
    """A study of two variants and eight prompts, with known answers."""
    runs, images = [], []
    for repeat in range(6):
        for variant, latency_s in (("cfg", 2.0), ("last:1", 1.5 + repeat / 1000)):
            place = {"unit": f"{variant}/{repeat}", "variant": variant, "repeat": repeat}
            times = {"latency_s": latency_s, "denoise_s": latency_s - 0.5, "nfe": 2 * latency_s}
            runs.append(filled("runs", place | times | {"status": "ok", "phase": "measured"}))
    for variant, repeat in (("cfg", 1), ("last:1", 0)):
        place = {"unit": f"{variant}/{repeat}", "variant": variant}
        images += [
            filled("images", place | {"prompt_id": f"{index:03d}", "lpips": 0.1, "flip": 0.2})
            for index in range(8)
        ]
    tables = [frame("runs", runs), empty("steps"), frame("images", images)]
    return Results(Path("made-up"), *tables, environment={}, study=study, known=answers(lpips))


def printed(table):
    console = Console(width=140, file=StringIO())
    console.print(table)
    return console.file.getvalue()


def test_a_metric_that_likes_a_black_frame_is_marked_in_every_table():
    results = made_up(lpips=0.001)
    summary = summarise(results)
    assert "LPIPS (!)" in summary_cells(summary)[0]
    assert "| LPIPS (!) |" in markdown(summary)
    assert markdown(summary).endswith(f"\n\n{LINE}\n")
    assert LINE in legend(summary, wide=True).splitlines()
    ordered = frontier(results, "lpips", higher_is_better=False)
    assert "| lpips (to cfg) (!) |" in frontier_markdown(ordered)
    assert "flip (to cfg) |" in frontier_markdown(ordered)
    assert LINE in frontier_markdown(ordered)
    ranked = ranking(results, "lpips", higher_is_better=False)
    assert "lpips (!)" in printed(ranking_text(ranked, "lpips"))


def test_a_healthy_metric_has_no_mark_but_its_scale():
    summary = summarise(made_up(lpips=0.7))
    assert "(!)" not in markdown(summary) + legend(summary, wide=True)
    scale = "Another seed of the same prompt, as good: LPIPS 0.500."
    assert scale in legend(summary, wide=True).splitlines()


def test_the_answers_are_printed_by_metric():
    lines = [" ".join(line.split()) for line in printed(known_text(answers(0.001))).splitlines()]
    assert lines == [
        "metric baseline black noise other prompt other seed again pairs",
        "lpips 0.0100 0.0010 (!) - - 0.5000 - 8",
        "flip 0.0100 0.9000 - - - - 8",
    ]
    assert known_text(pd.DataFrame(frame("known", []))).row_count == 0


def test_every_table_names_another_reference():
    results = made_up(lpips=0.7, reference="steps:200")
    summary = summarise(results)
    line = "LPIPS: mean perceived distance to the image of `steps:200`; 0 is identical."
    assert line in legend(summary).splitlines()
    assert line in legend(summary, wide=True).splitlines()
    ordered = frontier(results, "lpips", higher_is_better=False)
    assert "lpips (to steps:200)" in frontier_markdown(ordered)
