import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imsave
from matplotlib.transforms import Bbox

from sdbench.records import schema
from sdbench.records.store import Results
from sdbench.report.figures import (
    curves_figure,
    frontier_figure,
    image_grid,
    ledger_figure,
    plan_figure,
    saving_figure,
    sensitivity_figure,
    step_figure,
)


@pytest.fixture
def results(tmp_path):
    """Two prompts under `cfg`, one of them under `last:1` too."""
    for name, shade in {"a.png": 0.0, "b.png": 0.5, "c.png": 1.0}.items():
        imsave(tmp_path / name, np.full((4, 4, 3), shade))
    images = [
        {"variant": "last:1", "prompt_id": "p", "prompt": "a red star", "path": "a.png"},
        {"variant": "cfg", "prompt_id": "p", "prompt": "a red star", "path": "b.png"},
        {"variant": "cfg", "prompt_id": "q", "prompt": "a blue ring", "path": "c.png"},
    ]
    runs = pd.DataFrame({"variant": ["last:1", "cfg"]})
    frame = schema.frame(
        "images", [{"unit": image["variant"], "seed": 0} | image for image in images]
    )
    return Results(tmp_path, runs, schema.empty("steps"), frame, environment={}, study={})


@pytest.fixture
def profile():
    steps = pd.DataFrame(
        {
            "variant": ["cfg"] * 2 + ["last:1"] * 2,
            "step": [0, 1] * 2,
            "latency_s": [0.04, 0.04, 0.04, 0.02],
        }
    )
    cosine = [0.6, 0.9, 0.6, np.nan]
    return steps.assign(
        guidance_cosine=cosine, guidance_cosine_q25=cosine, guidance_cosine_q75=cosine
    )


def test_step_figure_shows_milliseconds_of_every_variant_and_cosine_of_the_baseline(profile):
    time, cosine = step_figure(profile).axes
    assert {line.get_label(): list(line.get_ydata()) for line in time.lines} == {
        "cfg": [40, 40],
        "last:1": [40, 20],
    }
    assert [list(line.get_ydata()) for line in cosine.lines] == [[0.6, 0.9]]


def test_grid_has_pairs_as_rows_and_variants_as_columns(results):
    axes = image_grid(results, pairs=[("q", 0), ("p", 0)]).axes
    assert [one.get_title() for one in axes[:2]] == ["cfg", "last:1"]
    assert ["ring" in axes[0].get_ylabel(), "star" in axes[2].get_ylabel()] == [True, True]
    shades = [float(one.images[0].get_array()[0, 0, 0]) if one.images else None for one in axes]
    assert shades == pytest.approx([1.0, None, 0.5, 0.0], abs=0.01)


def test_missing_image_leaves_a_marked_place(results):
    assert [text.get_text() for text in image_grid(results, pairs=[("q", 0)]).axes[1].texts] == [
        "no image"
    ]


@pytest.mark.parametrize("pairs", [[("z", 9)], []])
def test_grid_of_unknown_pairs_names_what_exists(results, pairs):
    with pytest.raises(ValueError, match=r"there are \('p', 0\), \('q', 0\)"):
        image_grid(results, pairs=pairs)


def frontier(savings):
    points = pd.DataFrame(
        {"variant": [f"random:{index}@0" for index in range(len(savings))], "saving": savings}
    )
    return points.assign(saving_lo=np.nan, saving_hi=np.nan, lpips=0.1, lpips_lo=0.05, lpips_hi=0.2)


def test_frontier_labels_of_close_points_do_not_overlap():
    figure = frontier_figure(frontier([0.1, 0.101, 0.102, 0.103, 0.5]))
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].texts]
    assert len(boxes) == 5
    assert all(not Bbox.count_overlaps(box, boxes[index + 1 :]) for index, box in enumerate(boxes))


def test_tested_frontier_names_the_efficient_and_numbers_the_others_with_a_key():
    points = frontier(np.linspace(0.1, 0.3, 30)).assign(
        verdict=["efficient" if index == 3 else "open" for index in range(30)]
    )
    points = points.rename(columns=lambda name: name.replace("saving", "denoise_saving"))
    figure = frontier_figure(points)
    figure.draw_without_rendering()
    key, *labels = figure.axes[0].texts
    others = [index for index in range(30) if index != 3]
    assert key.get_text().split("\n") == [
        f"{number}  random:{index}@0" for number, index in enumerate(others, 1)
    ]
    told = [label.get_text() for label in labels]
    assert told == ["1", "2", "3", "random:3@0", *map(str, range(4, 30))]
    boxes = [label.get_window_extent() for label in labels]
    assert all(not Bbox.count_overlaps(box, boxes[index + 1 :]) for index, box in enumerate(boxes))


def test_tested_frontier_has_a_marker_for_each_verdict_and_joins_the_efficient():
    points = frontier([0.1, 0.2, 0.3, 0.4]).assign(
        verdict=["efficient", "open", "beaten", "efficient"]
    )
    (axes,) = frontier_figure(
        points.assign(
            denoise_saving=points["saving"], denoise_saving_lo=np.nan, denoise_saving_hi=np.nan
        )
    ).axes
    drawn = [bars.lines[0] for bars in axes.containers]
    assert [(line.get_marker(), line.get_markerfacecolor()) for line in drawn] == [
        ("o", "#000000"),
        ("o", "white"),
        ("x", "0.7"),
        ("o", "#000000"),
    ]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "efficient",
        "not told apart",
        "beaten",
    ]
    joined = next(
        line
        for line in axes.lines
        if len(line.get_xdata()) == 2
        and line.get_linestyle() == "-"
        and line.get_color() == "#000000"
        and list(line.get_ydata()) == [0.1, 0.1]
    )
    assert list(joined.get_xdata()) == pytest.approx([10, 40])


def test_frontier_leaves_out_what_was_not_measured():
    points = frontier([0.1, np.nan])
    assert [label.get_text() for label in frontier_figure(points).axes[0].texts] == ["random:0@0"]


def curve(kind, lengths):
    rows = [
        {"kind": kind, "start": 8 - length if kind == "last" else start, "length": length}
        | {"lpips": 0.1 * length, "lpips_lo": 0.05 * length, "lpips_hi": 0.2 * length}
        for start, length in lengths
    ]
    return pd.DataFrame(rows).astype({"start": "Int64", "length": "Int64"})


@pytest.mark.parametrize(
    ("kind", "lengths", "label", "across"),
    [
        ("single", [(k, 1) for k in range(8)], "step without guidance (of 8)", list(range(8))),
        (
            "window",
            [(k, 2) for k in range(7)],
            "first of 2 steps without guidance (of 8)",
            list(range(7)),
        ),
        (
            "last",
            [(0, k) for k in range(1, 9)],
            "last steps without guidance (of 8)",
            list(range(1, 9)),
        ),
    ],
)
def test_a_sensitivity_curve_runs_over_what_its_kind_moves(kind, lengths, label, across):
    axes = sensitivity_figure({"lpips": curve(kind, lengths)}, steps=8).axes[0]
    assert axes.get_xlabel() == label
    assert axes.lines[0].get_xdata().tolist() == across


def test_a_sweep_of_number_formats_names_them_and_shows_magnitudes():
    lpips = curve("single", [(k, 1) for k in range(8)])
    figure = sensitivity_figure({"lpips": lpips}, steps=8, switch="precision:bf16")
    assert figure.axes[0].get_xlabel() == "step in bf16 (of 8)"
    assert figure.axes[0].get_yscale() == "log"
    change = {"alignment": lpips.rename(columns=lambda name: name.replace("lpips", "alignment"))}
    figure = sensitivity_figure(change, steps=8, switch="precision:bf16")
    assert figure.axes[0].get_yscale() == "linear"  # it may be below zero
    places = curve("interval", [(0, 2), (0, 4), (2, 2)])
    axes = sensitivity_figure({"lpips": places}, steps=4, switch="precision:bf16").axes[0]
    assert axes.get_xlabel() == "first step not in bf16"


def test_intervals_of_guidance_are_a_map_of_beginning_and_length():
    figure = sensitivity_figure({"lpips": curve("interval", [(0, 2), (0, 4), (2, 2)])}, steps=4)
    shown = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(shown.filled(np.nan), [[0.2, 0.2], [0.4, np.nan]])


def test_analysis_and_report_load_neither_torch_nor_pyplot():
    program = (
        "import sys, sdbench.analysis.tables, sdbench.report.tables, sdbench.report.figures\n"
        "print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == "set()"


def test_plan_figure_joins_each_kind_by_time_saved_and_shows_intervals():
    rows = [
        (kind, count, saving, lpips)
        for count, saving in ((10, 0.1), (25, 0.2))
        for kind, lpips in (
            ("plan", saving / 10),
            (f"last:{count}", saving / 5),
            ("scale:4.00", 0.3),
        )
    ]
    table = pd.DataFrame(rows, columns=["variant", "unguided", "saving", "lpips"])
    table = table.assign(saving_lo=table["saving"] - 0.01, saving_hi=table["saving"] + 0.02)
    table = table.assign(lpips_lo=table["lpips"] - 0.005, lpips_hi=np.nan)
    (axes,) = plan_figure(table, "lpips").axes
    drawn = {bars.get_label(): bars for bars in axes.containers}
    assert list(drawn) == ["plan", "last", "scale"]
    line = drawn["plan"].lines[0]
    np.testing.assert_allclose(line.get_xydata(), [[10, 0.01], [20, 0.02]])
    horizontal = drawn["plan"].lines[2][0].get_segments()
    np.testing.assert_allclose(horizontal[0], [[9, 0.01], [12, 0.01]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        "time of a call saved (%)",
        "lpips to guided image",
    )


def test_a_metric_that_few_images_decide_has_median_and_share_in_figures():
    places = [(k, 1) for k in range(8)]
    lpips = curve("single", places)
    for name, value in (("lpips_median", 0.01), ("lpips_changed", 0.25)):
        lpips = lpips.assign(**{name: value, f"{name}_lo": value / 2, f"{name}_hi": value * 2})
    drawn = sensitivity_figure({"lpips": lpips}, steps=8).axes
    assert [
        [line.get_label() for line in axes.lines if "_" not in line.get_label()] for axes in drawn
    ] == [
        ["mean", "median"],
        ["share"],
    ]
    assert drawn[0].lines[1].get_ydata().tolist() == [0.01] * 8
    assert drawn[1].lines[0].get_ydata().tolist() == [0.25] * 8

    table = lpips.assign(variant="plan", saving=0.1, saving_lo=0.05, saving_hi=0.15)
    panels = plan_figure(table, "lpips").axes
    assert [axes.get_ylabel() for axes in panels] == [
        "lpips to guided image,\nmean",
        "median",
        "share of images changed",
    ]
    assert [axes.containers[0].lines[0].get_ydata()[0] for axes in panels[1:]] == [0.01, 0.25]


def test_curves_have_a_panel_per_column_and_a_line_per_group():
    table = pd.DataFrame(
        {
            "w": [1, 2, 1, 2],
            "who": list("aabb"),
            "lpips": [0.1, 0.2, 0.3, 0.4],
            "size": [1, 2, 3, 4],
        }
    )
    table = table.assign(lpips_lo=table["lpips"] - 0.05, lpips_hi=table["lpips"] + 0.05)
    figure = curves_figure(
        table, "w", {"lpips": "LPIPS", "size": "MB"}, label="scale w", by="who", log=True
    )
    figure.draw_without_rendering()
    assert [axes.get_ylabel() for axes in figure.axes] == ["LPIPS", "MB"]
    assert [len(axes.containers) for axes in figure.axes] == [2, 2]
    assert figure.axes[-1].get_xlabel() == "scale w"


def test_saving_figure_puts_what_a_paper_says_beside_what_was_measured():
    table = pd.DataFrame(
        {"variant": ["unguided", "last:50%", "cfg"], "unguided_share": [1.0, 0.5, 0.0]}
    )
    for name, factor in {
        "saving": 0.4,
        "saving_lo": 0.3,
        "saving_hi": 0.5,
        "predicted_saving": 0.4,
    }.items():
        table[name] = factor * table["unguided_share"]
    table["ideal_saving"], table["said"] = 0.5 * table["unguided_share"], [np.nan, 20.3, np.nan]
    (axes,) = saving_figure(table, published="said").axes
    lines = {line.get_label(): list(line.get_xydata().flatten()) for line in axes.lines}
    assert lines["ideal: as many evaluations less"] == [0, 0, 50, 25, 100, 50]
    assert lines["the paper, another machine"][2:4] == [50, 20.3]
    assert list(axes.containers[0].lines[0].get_ydata()) == [0, 20, 40]


def test_ledger_figure_stacks_the_parts_to_the_peak_and_joins_the_small_ones():
    parts = {"weights": 3e9, "optimiser state": 6e9, "inputs": 1e6, "scratch": 2e6}
    ledger = pd.DataFrame(
        [
            {"method": method, "part": part, "at_peak_bytes": size}
            for method in "ab"
            for part, size in parts.items()
        ]
    )
    (axes,) = ledger_figure(ledger).axes
    widths = {bars.get_label(): bars[0].get_width() for bars in axes.containers}
    assert widths == pytest.approx({"optimiser state": 6.0, "weights": 3.0, "rest": 0.003})
    assert [text.get_text() for text in axes.texts] == ["9", "9"]
