import pandas as pd

from sdbench.report.figures import history_figure


def history(*values):
    rows = [
        {
            "accepted": f"2026-05-0{day}T10:00:00+00:00",
            "variant": variant,
            "figure": figure,
            "value": value,
        }
        for day, value in enumerate(values, 1)
        for variant, figure in (
            ("last:2", "time ratio to cfg"),
            ("last:2", "nfe"),
            ("cfg", "lpips"),
        )
        if not (figure == "lpips" and day == 1)
    ]
    moved = pd.DataFrame(rows)
    moved.loc[moved["figure"] == "lpips", "value"] = 0.1
    return moved


def test_times_and_what_moved_have_a_panel():
    panels = history_figure(history(0.9, 0.8, 0.7)).axes
    assert [axes.get_ylabel() for axes in panels] == ["time ratio to cfg", "nfe"]
    assert list(panels[0].lines[0].get_ydata()) == [0.9, 0.8, 0.7]
    assert [label.get_text() for label in panels[1].get_xticklabels()] == [
        "2026-05-01",
        "2026-05-02",
        "2026-05-03",
    ]


def test_one_acceptance_is_drawn():
    assert len(history_figure(history(0.9)).axes) == 1
