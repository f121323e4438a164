"""A study as one page that opens offline and from any host: table, figures, and a comparer of its images.

Figures are plotly's, the page jinja's, and both are inside the file: opening it asks nobody for anything.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from sdbench.analysis.tables import step_profile, summarise
from sdbench.records.files import NUMBER, inside, read_image, require
from sdbench.records.names import BASELINE
from sdbench.records.store import Results
from sdbench.report.figures import PALETTE
from sdbench.report.tables import Cell, failures, legend, summary_cells

FORMS = (
    (256, 85),
    (256, 60),
    (192, 60),
    (128, 60),
    (64, 60),
)  # most pixels of a side, and WebP's quality
PICTURES_BYTES = 3_000_000  # of all images in the page, which with plotly's script stays below 8 MB
MAX_PROMPTS = 16
TEMPLATE = Path(__file__).with_name("page.html")
_STUDY: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "model": (str,),
    "num_steps": (int,),
    "guidance_scale": NUMBER,
    "prompts": (list,),
}
_STUDY |= {"seeds": (list,), "batch": (int,), "repeats": (int,), "warmups": (int,)}


def page(results: Results) -> str:
    """The page as HTML.

    Args:
        results: of a study; images that were not kept are left out.

    Raises:
        ValueError: no measured call, a record of another form, or an image that is not the study's own.
    """
    require(results.study, _STUDY, source=str(results.folder / "study.json"))
    summary = summarise(results)
    head, rows = summary_cells(summary)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"{results.study['name']}: {len(summary)} variants of {results.study['model']}",
        facts=_facts(results),
        head=head,
        rows=[[_sortable(cell) for cell in row] for row in rows],
        legend=legend(summary),
        failures=failures(results.runs),
        figures=_figures(summary, results),
        pictures=_pictures(results),
        plotly=get_plotlyjs(),
    )


def _sortable(cell: Cell) -> dict[str, Any]:
    value = "" if isinstance(cell.value, float) and math.isnan(cell.value) else cell.value
    return {"text": cell.text, "interval": cell.interval, "value": value}


def _facts(results: Results) -> list[tuple[str, str]]:
    """What was measured and where."""
    study, measured = results.study, results.runs[results.runs["phase"] == "measured"]
    if measured.empty:
        raise ValueError(f"{results.folder}: no measured calls to show")
    facts = [
        (
            "pipeline",
            f"{study['model']}, {measured['dtype'].iloc[0]}, {measured['scheduler'].iloc[0]}",
        ),
        ("asked", f"{study['num_steps']} steps, guidance scale {study['guidance_scale']:g}"),
        (
            "pairs",
            f"prompts: {len(study['prompts'])}; seeds: {len(study['seeds'])}; pairs per call: {study['batch']}",
        ),
        ("repeats", f"{study['repeats']} measured, {study['warmups']} before them"),
    ]
    for key, env in results.environment.items():
        require(
            env,
            {"gpus": (list,), "packages": (dict,)},
            source=f"{results.folder / 'environment.json'}, {key!r}",
        )
        gpus = (
            ", ".join(str(gpu.get("name")) for gpu in env["gpus"] if isinstance(gpu, dict))
            or "no GPU"
        )
        packages = ", ".join(
            f"{name} {env['packages'][name]}"
            for name in ("torch", "diffusers")
            if name in env["packages"]
        )
        machine = f"{env.get('cpu')}, {env.get('cores')} cores, {gpus}; {packages}; {env.get('os')}"
        facts.append((f"machine {key}", machine))
    return facts


def _figures(summary: pd.DataFrame, results: Results) -> list[dict[str, Any]]:
    found = []
    places = {variant: place for place, variant in enumerate(summary["variant"])}
    metric = next((name for name in ("lpips", "alignment") if summary[name].notna().any()), None)
    if metric is not None:
        found.append(
            {
                "title": f"Time saved against {metric}",
                "content": _content(_frontier(summary, metric, places)),
            }
        )
    profile = step_profile(results)
    milliseconds = profile.assign(latency_s=1e3 * profile["latency_s"])
    found.append(
        {
            "title": "Time of every step",
            "content": _content(_lines(milliseconds, "latency_s", "ms", places)),
        }
    )
    cosine = profile[(profile["variant"] == BASELINE) & profile["guidance_cosine"].notna()]
    if len(cosine):
        named = _content(
            _lines(cosine, "guidance_cosine", f"guidance cosine of {BASELINE}", places)
        )
        found.append({"title": "How far guidance still moves the prediction", "content": named})
    return found


def _frontier(summary: pd.DataFrame, metric: str, places: dict[str, int]) -> go.Figure:
    """A variant has the same colour in all figures, by its place among all of them."""
    figure = go.Figure()
    points = summary.dropna(subset=["saving", metric])
    for _, row in points.iterrows():
        place = places[row["variant"]]
        marker = {"color": _colour(place), "symbol": place % 8, "size": 9}
        bars = {
            axis: {
                "type": "data",
                "array": [factor * (row[f"{name}_hi"] - row[name])],
                "arrayminus": [factor * (row[name] - row[f"{name}_lo"])],
                "thickness": 1,
            }
            for axis, name, factor in (("error_x", "saving", 100), ("error_y", metric, 1))
            if not math.isnan(row[f"{name}_lo"])
        }
        figure.add_scatter(
            x=[100 * row["saving"]],
            y=[row[metric]],
            name=_literal(row["variant"]),
            mode="markers",
            marker=marker,
            **bars,
        )
    figure.update_xaxes(title=f"time of a call saved against {BASELINE} (%)")
    figure.update_yaxes(title=metric)
    return figure


def _lines(profile: pd.DataFrame, column: str, title: str, places: dict[str, int]) -> go.Figure:
    figure = go.Figure()
    for variant, part in profile.groupby("variant", sort=False):
        place = places[str(variant)]
        line = {
            "color": _colour(place),
            "width": 1.5,
            "dash": ("solid", "dash", "dot")[place // len(PALETTE) % 3],
        }
        figure.add_scatter(
            x=part["step"], y=part[column], name=_literal(variant), mode="lines", line=line
        )
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=title)
    return figure


def _literal(text: Any) -> str:
    """A text for plotly, which reads some tags in what it shows."""
    return html.escape(str(text), quote=False)


def _colour(place: int) -> str:
    return "#000000" if place == 0 else PALETTE[(place - 1) % len(PALETTE)]


def _content(figure: go.Figure) -> dict[str, Any]:
    figure.update_layout(
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 10, "t": 10, "b": 50},
        showlegend=True,
    )
    content: dict[str, Any] = json.loads(figure.to_json())
    return {"data": content["data"], "layout": content["layout"]}


def _pictures(results: Results) -> dict[str, Any]:
    """The first repeat's images of the first prompts, as WebP in the page."""
    images = results.images.merge(results.runs[["unit", "repeat"]], on="unit")
    images = images[images["repeat"] == images.groupby("variant")["repeat"].transform("min")]
    prompts = (
        images.drop_duplicates("prompt_id")
        .head(MAX_PROMPTS)
        .set_index("prompt_id")["prompt"]
        .to_dict()
    )
    kept = images[images["prompt_id"].isin(list(prompts)) & images["path"].notna()]
    kept = kept[kept["path"].map(lambda path: inside(results.folder, path).is_file()).astype(bool)]
    data = _fitting([results.folder / path for path in kept["path"]])
    shown = [
        {
            name: str(row[column])
            for name, column in (("prompt", "prompt_id"), ("seed", "seed"), ("variant", "variant"))
        }
        | {"data": one}
        for row, one in zip(kept.to_dict("records"), data, strict=True)
    ]
    return {
        "prompts": prompts,
        "variants": list(dict.fromkeys(one["variant"] for one in shown)),
        "images": shown or None,
    }


def _fitting(paths: Sequence[Path]) -> list[str]:
    """Images in the first form in which they fit into the page together; else in the last."""
    data: list[str] = []
    for side, quality in FORMS:
        data = [_webp(path, side, quality) for path in paths]
        if sum(map(len, data)) <= PICTURES_BYTES:
            break
    return data


def _webp(path: Path, side: int, quality: int) -> str:
    file, small = io.BytesIO(), read_image(path)
    small.thumbnail((side, side))
    small.save(file, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
