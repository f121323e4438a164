"""A study as one page that opens offline: its table, its figures, and a comparer of its images.

Figures are plotly's, the page jinja's, and both are inside the file: opening it asks nobody for
anything.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sdbench.analysis.calls import uncounted
from sdbench.analysis.dominance import BEATEN, OPEN
from sdbench.analysis.environments import differing_within
from sdbench.analysis.frontier import frontier
from sdbench.analysis.stability import undecided
from sdbench.analysis.tables import step_profile, summarise
from sdbench.records.computed import SUMMARY
from sdbench.records.files import NUMBER, require
from sdbench.records.metrics import scale_of
from sdbench.records.names import BASELINE
from sdbench.records.schema import columns
from sdbench.records.store import Results
from sdbench.report.disturbance import disturbance_note
from sdbench.report.figures.frontier import at_predicted
from sdbench.report.figures.style import BASELINE_COLOUR, colour_at, dash_at
from sdbench.report.pictures import pictures
from sdbench.report.tables import (
    FRONTIER_LEGEND,
    Cell,
    findings,
    legend,
    remarks,
    summary_cells,
    verdict_text,
)
from sdbench.report.tables.cells import MISSING

MARKERS = 8  # of plotly's, told apart at a glance
UNFILLED = 100  # from a marker's number to that of its outline
DIAMOND = "diamond-tall-open"  # which no timed variant has
PALE = 0.35
DASHES = ("solid", "dash", "dot")
TEMPLATE = Path(__file__).with_name("page.html")
_STUDY: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str,),
    "num_steps": (int,),
    "guidance_scale": NUMBER,
    "prompts": (list,),
    "seeds": (list,),
    "batch": (int,),
    "repeats": (int, str),
    "warmups": (int,),
}


def page(results: Results) -> str:
    """The page as HTML.

    Args:
        results: of a study; images that were not kept are left out.

    Raises:
        ValueError: no measured call, a record of another form, or an image that is not the study's
            own.
    """
    require(results.study, _STUDY, source=str(results.folder / "study.json"))
    summary = summarise(results)
    head, rows = summary_cells(summary)
    metric = _compared_by(summary)
    tested = _tested(results, metric)

    # Whatever a study holds is text on the page: nothing of it may be read as HTML.
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"{results.study['name']}: {len(summary)} variants of {results.study['model']}",
        note=disturbance_note(summary),
        findings=findings(summary),
        facts=_facts(results),
        head=[*head, "verdict"] if len(tested) else head,
        rows=[_row(row, tested) for row in rows],
        legend="\n".join(
            [legend(summary, wide=True), *([_meaning(metric)] if len(tested) else [])]
        ),
        remarks=remarks(results.runs),
        figures=_figures(summary, results, tested),
        pictures=pictures(results),
        plotly=get_plotlyjs(),
    )


def _compared_by(summary: pd.DataFrame) -> str | None:
    """The metric of the frontier; alignment stands in where nothing was compared with images."""
    return next((name for name in ("lpips", "alignment") if summary[name].notna().any()), None)


def _tested(results: Results, metric: str | None) -> pd.DataFrame:
    """What tests say of the variants that have a time and the metric; no row without a metric."""
    if metric is None:
        return pd.DataFrame(columns=["verdict", "rival"])
    tested = frontier(results, metric, higher_is_better=scale_of(metric).higher_is_better)
    return tested.set_index("variant")[["verdict", "rival"]]


def _meaning(metric: str | None) -> str:
    return f"verdict: in time of the loop and {metric}. {FRONTIER_LEGEND}"


def _row(cells: Sequence[Cell], tested: pd.DataFrame) -> list[dict[str, Any]]:
    """A row of the table; its first cell is the variant, its last one the verdict, if there are."""
    row = [_sortable(cell) for cell in cells]
    if not len(tested):
        return row
    variant = cells[0].value
    told = variant in tested.index
    text = verdict_text(tested.loc[variant]) if told else MISSING
    row[0]["style"] = tested.loc[variant, "verdict"] if told else ""
    return [*row, _sortable(Cell(text, "", text))]


def _sortable(cell: Cell) -> dict[str, Any]:
    value = "" if isinstance(cell.value, float) and math.isnan(cell.value) else cell.value
    return {"text": cell.text, "interval": cell.interval, "value": value, "style": ""}


def _facts(results: Results) -> list[tuple[str, str]]:
    """What was measured and where."""
    study = results.study
    measured = results.runs[results.runs["phase"] == "measured"]
    if measured.empty:
        raise ValueError(f"{results.folder}: no measured calls to show")

    first = measured.iloc[0]
    pairs = f"prompts: {len(study['prompts'])}; seeds: {len(study['seeds'])}"
    facts = [
        ("pipeline", f"{study['model']}, {first['dtype']}, {first['scheduler']}"),
        ("settings", f"{study['num_steps']} steps, guidance scale {study['guidance_scale']:g}"),
        ("pairs", f"{pairs}; pairs per call: {study['batch']}"),
        ("repeats", f"measured {study['repeats']}, after {study['warmups']} warm-up"),
    ]

    # What is read from a study may come from anyone, so its form is checked first.
    for key, env in results.environment.items():
        source = f"{results.folder / 'environment.json'}, {key!r}"
        require(env, {"gpus": (list,), "packages": (dict,)}, source=source)
        facts.append((f"machine {key}", _machine(env)))
    if differing := differing_within(results):
        facts.append(("machines differ in", ", ".join(differing)))
    return facts + [("work not counted", reason) for reason in uncounted(results)]


def _machine(env: dict[str, Any]) -> str:
    """A machine and its main packages in a line."""
    names = [str(gpu.get("name")) for gpu in env["gpus"] if isinstance(gpu, dict)]
    gpus = ", ".join(names) or "no GPU"
    versions = env["packages"]
    shown = [name for name in ("torch", "diffusers") if name in versions]
    packages = ", ".join(f"{name} {versions[name]}" for name in shown)
    return f"{env.get('cpu')}, {env.get('cores')} cores, {gpus}; {packages}; {env.get('os')}"


def _figures(summary: pd.DataFrame, results: Results, tested: pd.DataFrame) -> list[dict[str, Any]]:
    """The figures that the study has values for, with their titles."""
    figures = []
    places = {variant: place for place, variant in enumerate(summary["variant"])}

    metric = _compared_by(summary)
    if metric is not None:
        content = _content(_frontier(summary, metric, places, tested))
        title = f"Time saved against {metric} ({_signs(summary, metric)})"
        figures.append({"title": title, "content": content})

    profile = step_profile(results)
    form = columns("steps")["latency_s"].format
    times = profile.assign(latency_s=form.shown(profile["latency_s"]))
    content = _content(_lines(times, "latency_s", form.unit, places))
    figures.append({"title": "Time of every step", "content": content})

    cosine = profile[(profile["variant"] == BASELINE) & profile["guidance_cosine"].notna()]
    if len(cosine):
        label = f"guidance cosine of {BASELINE}"
        content = _content(_lines(cosine, "guidance_cosine", label, places))
        title = "How far guidance still moves the prediction"
        figures.append({"title": title, "content": content})
    return figures


def _signs(summary: pd.DataFrame, metric: str) -> str:
    """What the signs of the frontier's points are, and which points it lacks."""
    known = at_predicted(summary, "saving").dropna(subset=["saving", metric])
    signs = ["filled: efficient, pale: beaten, open: neither shown"]
    if known["untimed"].any():
        signs.append("diamonds: not timed, at the predicted saving")
    names = ", ".join(known.loc[undecided(known, "saving"), "variant"])
    return "; ".join([*signs, *([f"undecided, not drawn: {names}"] if names else [])])


def _frontier(
    summary: pd.DataFrame, metric: str, places: dict[str, int], tested: pd.DataFrame
) -> go.Figure:
    """A variant has the same colour in all figures, by its place among all of them."""
    figure = go.Figure()
    form = SUMMARY["saving"].format
    points = at_predicted(summary, "saving").dropna(subset=["saving", metric])
    points = points[~undecided(points, "saving")]

    # Every variant has its own trace, so that the legend can hide it.
    for _, row in points.iterrows():
        place = places[row["variant"]]
        verdict = tested["verdict"].get(row["variant"], OPEN)
        number = place % MARKERS + (UNFILLED if verdict == OPEN else 0)
        symbol = DIAMOND if row["untimed"] else number
        bars = {
            "error_x": _bar(row, "saving", form.factor),
            "error_y": _bar(row, metric, 1),
        }
        figure.add_scatter(
            x=[form.factor * row["saving"]],
            y=[row[metric]],
            name=_literal(row["variant"]),
            mode="markers",
            marker={"color": _colour(place), "symbol": symbol, "size": 9},
            opacity=PALE if verdict == BEATEN else 1,
            **{axis: bar for axis, bar in bars.items() if bar is not None},
        )

    figure.update_xaxes(title=f"time of a call saved against {BASELINE} ({form.unit})")
    figure.update_yaxes(title=metric)
    return figure


def _bar(row: pd.Series[Any], name: str, factor: float) -> dict[str, Any] | None:
    """A point's error bar; None where the interval is missing."""
    estimate, lo, hi = (row[column] for column in (name, f"{name}_lo", f"{name}_hi"))
    if math.isnan(lo):
        return None
    return {
        "type": "data",
        "array": [factor * (hi - estimate)],
        "arrayminus": [factor * (estimate - lo)],
        "thickness": 1,
    }


def _lines(profile: pd.DataFrame, column: str, title: str, places: dict[str, int]) -> go.Figure:
    figure = go.Figure()
    for variant, steps in profile.groupby("variant", sort=False):
        place = places[str(variant)]
        line = {"color": _colour(place), "width": 1.5, "dash": dash_at(place, DASHES)}
        figure.add_scatter(
            x=steps["step"], y=steps[column], name=_literal(variant), mode="lines", line=line
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=title)
    return figure


def _literal(text: Any) -> str:
    """A text for plotly, which reads some tags in what it shows."""
    return html.escape(str(text), quote=False)


def _colour(place: int) -> str:
    return BASELINE_COLOUR if place == 0 else colour_at(place - 1)


def _content(figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        showlegend=True,
    )
    content: dict[str, Any] = json.loads(figure.to_json())
    return {"data": content["data"], "layout": content["layout"]}
