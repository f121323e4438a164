"""Writes the tables of the README and of the pages in `results/`: `python tools/readme.py`.

They come from the registries and the stored studies. A test fails where they are stale.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pandas as pd
from rich.console import Console

import sdbench
from sdbench.analysis.cost import cost_point
from sdbench.analysis.frontier import frontier
from sdbench.analysis.perception.perceive import judged
from sdbench.analysis.plans import plan_table
from sdbench.analysis.sensitivity import sensitivity_curve
from sdbench.analysis.spending import best_of_ways, leading, spending_table
from sdbench.analysis.students import scale_curve
from sdbench.instruments.quality import METRICS
from sdbench.records.columns import MEGABYTES, Format
from sdbench.records.computed import STEP_COST
from sdbench.records.files import read_json, read_table
from sdbench.records.names import BASELINE, PLANNED
from sdbench.report.disturbance import disturbance_note
from sdbench.report.tables import (
    FRONTIER_LEGEND,
    findings,
    frontier_markdown,
    legend,
    markdown,
    perception_markdown,
    spending_markdown,
    summary_table,
)
from sdbench.report.tables.cells import interval_text, markdown_lines
from sdbench.report.tables.summary import NARROW
from sdbench.variants.grammar import VARIANTS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "results"


SHOWN = ("cfg", "last:20%", "last:50%", "steps:15")
"""Rows of the default study in the README: the paper's two schedules, and the second's control."""


def default_study() -> str:
    """What `sdbench run` prints first, as it was measured: its words, four rows and the legend."""
    summary = sdbench.summarise(RESULTS / "mini-sd" / "default")
    rows = summary[summary["variant"].isin(SHOWN)]
    table = summary_table(rows)
    table.title = None  # it stands above the words already
    text = io.StringIO()
    printed = Console(width=NARROW, file=text, color_system=None)
    for part in (*filter(None, [disturbance_note(summary)]), *findings(summary)):
        printed.print(part, markup=False, highlight=False)
    printed.print(table)
    printed.print(legend(rows), markup=False, highlight=False)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join(["```", *lines, "```", ""])


MAIN = ("cfg", "last:20%", "last:50%", "lora", "deepcache:3", "steps:10")
"""Rows of the study of methods in the README."""


def results() -> str:
    """The papers' variants and their rivals, in time, LPIPS and alignment."""
    folder = RESULTS / "mini-sd" / "methods"
    quality, timing = (sdbench.read(folder / name) for name in ("quality", "time"))
    table = frontier(quality, "lpips", higher_is_better=False, timing=timing)
    table = table[table["variant"].isin(MAIN)]
    others = [name for name in table if name.startswith(("flip", "ssim", "psnr"))]
    return f"{frontier_markdown(table.drop(columns=others))}\n"


def python() -> str:
    """What the README's lines of Python print."""
    code = README.read_text("utf-8").split("```python\n")[1].split("```")[0]
    with redirect_stdout(io.StringIO()) as printed:
        exec(code, {})  # our own README
    return f"```\n{printed.getvalue()}```\n"


def variants() -> str:
    """Every entry of the grammar."""
    lines = ["| variant | what it does |", "|---|---|"]
    for kind in VARIANTS.values():
        examples = ", ".join(f"`{example}`" for example in kind.grammar.split("|"))
        lines.append(f"| {examples} | {kind.meaning}{f' ({kind.source})' if kind.source else ''} |")
    return "\n".join(lines) + "\n"


def metrics() -> str:
    """Every metric."""
    lines = ["| metric | what it is |", "|---|---|"]
    lines += [
        f"| `{name}{f':{metric.option}' if metric.option else ''}` | {metric.meaning} |"
        for name, metric in METRICS.items()
    ]
    return "\n".join(lines) + "\n"


BLOCKS = {
    "default study": default_study,
    "python": python,
    "results": results,
}
"""Of the README."""


def filled(text: str, blocks: Mapping[str, Callable[[], str]], *, file: str) -> str:
    """A text with every block as it should be.

    Raises:
        ValueError: a block has no place in it.
    """
    for name, make in blocks.items():
        begin, end = f"<!-- {name}, by tools/readme.py -->\n", "<!-- end -->"
        if begin not in text:
            raise ValueError(f"{file} has no place for '{name}'")
        text = re.sub(
            f"(?<={re.escape(begin)}).*?(?={end})",
            lambda _, make=make: make(),
            text,
            count=1,
            flags=re.DOTALL,
        )
    return text


def written(text: str) -> str:
    """The README with every block as it should be.

    Raises:
        ValueError: a block has no place in it.
    """
    return filled(text, BLOCKS, file="README.md")


def of_whole(folder: str) -> str:
    """What a study says, its own times too."""
    return markdown(sdbench.summarise(sdbench.read(RESULTS / folder)))


def of_study(folder: str, *, timing: str | None = None) -> str:
    """What a study says of quality, and the savings of another one.

    Args:
        folder: of the study, below `results`; its own times are left out.
        timing: folder of a study of time.
    """
    table = sdbench.summarise(sdbench.read(RESULTS / folder))
    table = table.drop(columns=[name for name in table if name.startswith(TIMED)])
    if timing is not None:
        times = sdbench.summarise(sdbench.read(RESULTS / timing)).set_index("variant")
        table = table.join(times[list(SAVED)], on="variant")
    return markdown(table)


SAVED = (
    *("saving", "saving_lo", "saving_hi", "denoise_saving", "denoise_saving_lo"),
    *("denoise_saving_hi", "ideal_saving", "predicted_saving", "disturbance"),
)
TIMED = (
    *("latency", "saving", "denoise", "predicted", "ideal", "peak", "disturbance"),
    "full_forwards",
)


def of_plan(folder: str) -> str:
    """A plan's controls, pair by pair."""
    judged = read_table(RESULTS / folder, "judged")
    timing = sdbench.summarise(sdbench.read(RESULTS / folder / "timing"))
    table = plan_table(judged, "lpips", higher_is_better=False, timing=timing)
    forms = {"lpips": LEVEL, "lpips_median": LEVEL, "lpips_changed": SHARE, "plan_better": SHARE}
    lines = []
    for _, row in table.iterrows():
        cells = [interval_text(row, name, form) for name, form in forms.items()]
        if row["variant"] == PLANNED:
            cells[-1] = "-"
        lines.append([f"{row['unguided']}", row["variant"], f"{row['nfe']:g}", *cells])
        lines[-1].append(row["verdict"])
    head = ("unguided", "variant", "NFE", "LPIPS", "median", "changed %", "plan nearer in %")
    return _table((*head, "verdict"), lines, text=("variant", "verdict"))


def of_training(*folders: str) -> str:
    """What students of trainings were like on held-out captions, by the steps of training."""
    lines = []
    for folder in folders:
        method = read_json(RESULTS / folder / "study.json")["settings"]["method"]
        lines += [
            [method, f"{row['step']:,}", f"{row['held_out_loss']:.3f}", f"{row['lpips']:.3f}"]
            for _, row in read_table(RESULTS / folder, "training").iterrows()
        ]
    return _table(("method", "steps", "held-out loss", "LPIPS"), lines, text=("method",))


def of_distances(folder: str) -> str:
    """How far the images of each variant are from drawn scenes, by both distances."""
    table = read_table(RESULTS / folder, "distances")
    cells = {}
    for _, row in table.iterrows():
        more = "-" if row["variant"] == BASELINE else interval_text(row, "difference", MORE)
        cells[row["variant"], row["distance"]] = [f"{row['value']:.0f}", more]
    lines = [
        [variant, *cells[variant, "kernel"], *cells[variant, "frechet"]]
        for variant in table["variant"].unique()
    ]
    head = ("kernel", f"more than {BASELINE}", "Fréchet", f"more than {BASELINE}'s")
    return _table(("variant", *head), lines, text=("variant",))


def of_scales(folder: str) -> str:
    """A student for every scale against its teacher at the same scale, and the controls."""
    studies = [study.parent for study in (RESULTS / folder).glob("w-*/study.json")]
    curve = scale_curve([sdbench.read(study) for study in studies])
    names = curve["variant"].unique()
    table = curve.pivot_table(["alignment", "lpips"], "guidance_scale", "variant")
    columns = [("alignment", name) for name in names] + [("lpips", name) for name in names[1:]]
    lines = [
        [f"{scale:g}", *(f"{value:.3f}" for value in row)]
        for scale, row in table[columns].iterrows()
    ]
    return _table(("w", *(f"{metric}, {name}" for metric, name in columns)), lines)


def of_ledgers(folder: str) -> str:
    """What a student's layers and its training hold in memory, the least first."""
    parts = {
        ledger.name.removeprefix("ledger-"): read_table(ledger, "ledger")
        .set_index("part")["at_peak_bytes"]
        .astype(float)
        for ledger in (RESULTS / folder).glob("ledger-*")
    }
    lines = []
    for student in sorted(parts, key=lambda name: parts[name].sum()):
        own = parts[student]
        adapter = MEGABYTES_FINE.text(own["adapter"]) if "adapter" in own else "-"
        lines.append([student, adapter, MEGABYTES.text(own.sum())])
    return _table(("student", "adapter MB", "training peak MB"), lines, text=("student",))


def of_costs(folder: str) -> str:
    """What steps take, by size and batch."""
    points = [
        cost_point(sdbench.read(study.parent)) for study in (RESULTS / folder).glob("*/study.json")
    ]
    lines = [
        [
            f"{point['height']} x {point['width']}",
            f"{point['batch']}",
            *(interval_text(pd.Series(point), name, STEP_COST[name].format) for name in STEPS),
        ]
        for point in sorted(points, key=lambda point: (point["height"], point["batch"]))
    ]
    heads = (STEP_COST[name].heading for name in STEPS)
    return _table(("pixels", "batch", *heads), lines, text=("pixels",))


def of_budgets(folder: str) -> str:
    """Every way of spending and every budget: the mean LPIPS, and how it stands to the chosen."""
    table = _spent(folder)
    cells: dict[str, dict[float, str]] = {}
    for _, row in best_of_ways(table).iterrows():
        way = f"{row['method']}, {row['scheduler']}"
        cells.setdefault(way, {})[row["budget"]] = _marked(f"{row['lpips']:.3f}", row)
    limits = sorted(table["budget"].unique())
    lines = [[way, *(own.get(limit, "") for limit in limits)] for way, own in cells.items()]
    head = ("way of spending", *(f"{limit:g}" for limit in limits))
    said = leading(table, "lpips", higher_is_better=False)
    return _table(head, lines, text=head[:1]) + "\n" + "".join(f"- {line}\n" for line in said)


def of_budget(folder: str, *, limit: float) -> str:
    """One budget: everything that was judged, against the chosen variant, pair by pair."""
    table = _spent(folder)
    return spending_markdown(table[table["budget"] == limit], "lpips")


SHOWN_STEPS = (0, 10, 18, 19)
"""Of 20, counted from 0."""


def of_formats(folder: str) -> str:
    """What the weights take in each format, and what one step alone in it does to the images."""
    runs = sdbench.read(RESULTS / folder / "study").runs
    taken = runs.groupby("variant")["weights_bytes"].first()
    lines = []
    for form in ("bf16", "int8wo", "float8cast"):
        curve = sensitivity_curve(read_table(RESULTS / folder / form, "sensitivity"), "lpips")
        curve = curve.set_index("start")
        medians = [f"{curve.loc[step, 'lpips_median']:.1e}" for step in SHOWN_STEPS]
        worst = curve["lpips_changed"].idxmax()
        share = SHARE.text(curve.loc[worst, "lpips_changed"])
        changed = f"{share} (step {worst})" if curve.loc[worst, "lpips_changed"] else share
        mean = f"{curve['lpips'].max():.1e}"
        lines.append(
            [form, MEGABYTES_FINE.text(taken[f"precision:{form}"]), *medians, mean, changed]
        )
    steps = (f"step {step}" for step in SHOWN_STEPS)
    head = ("format", "weights MB", *steps, "highest mean", "most changed %")
    return _table(head, lines, text=("format",))


def _spent(folder: str) -> pd.DataFrame:
    spending = read_table(RESULTS / folder, "spending")
    return spending_table(spending, "lpips", higher_is_better=False)


def _marked(text: str, row: pd.Series[float]) -> str:
    """Bold where chosen; an arrow where the pairs say farther or nearer than the chosen."""
    if row["chosen"]:
        return f"**{text}**"
    words = {"farther": " ↓", "nearer": " ↑"}
    return text + words.get(str(row["verdict"]).split(" ")[0], "")


STEPS = ("guided_s", "unguided_s", "ratio", "denoise_share")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], *, text: Sequence[str] = ()) -> str:
    under = ["---" if name in text else "---:" for name in head]
    return markdown_lines([head, under, *lines]) + "\n"


LEVEL, SHARE, MORE = Format(".4f"), Format(".0f", "%", 100), Format("+.0f")
MEGABYTES_FINE = Format(".2f", "MB", 1e-6)


def of_answers(folder: str) -> str:
    """What the answers of a blind test say."""
    return perception_markdown(judged(read_table(RESULTS / folder, "answers"))) + "\n"


def methods() -> str:
    """Every method, fastest first, in time and LPIPS."""
    folder = RESULTS / "mini-sd" / "methods"
    quality, timing = (sdbench.read(folder / name) for name in ("quality", "time"))
    table = frontier(quality, "lpips", higher_is_better=False, timing=timing)
    return f"{frontier_markdown(table)}\n\n{FRONTIER_LEGEND}\n"


STUDIES: dict[str, dict[str, Callable[[], str]]] = {
    "mini-sd/default": {"default": partial(of_whole, "mini-sd/default")},
    "mini-sd/methods": {"methods": methods},
    "mini-sd/selective": {
        "schedules": partial(
            of_study, "mini-sd/selective/quality", timing="mini-sd/selective/time"
        ),
    },
    "mini-sd/students": {
        "students": partial(of_study, "mini-sd/students/quality", timing="mini-sd/students/time")
    },
    "mini-sd/ranks": {
        "ranks": partial(of_study, "mini-sd/ranks"),
        "memory": partial(of_ledgers, "mini-sd/ranks"),
    },
    "mini-sd/distill": {"training": partial(of_training, "mini-sd/distill")},
    "mini-sd/distill-full": {
        "training": partial(of_training, "mini-sd/distill", "mini-sd/distill-full"),
        "full": partial(of_study, "mini-sd/distill-full/quality"),
    },
    "mini-sd/plan": {"plan": partial(of_plan, "mini-sd/plan")},
    "mini-sd/budget": {
        "budgets": partial(of_budgets, "mini-sd/budget"),
        "recipe": partial(of_budget, "mini-sd/budget", limit=40),
    },
    "mini-sd/distances": {
        "distances": partial(of_distances, "mini-sd/distances"),
        "alignment": partial(of_study, "mini-sd/distances"),
    },
    "mini-sd/steps": {
        "ddim": partial(of_study, "mini-sd/steps/ddim"),
        "dpmpp-2m": partial(of_study, "mini-sd/steps/dpmpp-2m"),
    },
    "mini-sd/precision": {
        "formats": partial(of_formats, "mini-sd/precision"),
        "study": partial(of_whole, "mini-sd/precision/study"),
    },
    "mini-sd/cost": {"steps": partial(of_costs, "mini-sd/cost")},
    "mini-sd/perceive": {
        "reference": partial(of_answers, "mini-sd/perceive/reference"),
        "preference": partial(of_answers, "mini-sd/perceive/preference"),
    },
    "emoji-sd/default": {"default": partial(of_whole, "emoji-sd/default")},
    "emoji-sd/methods": {"methods": partial(of_study, "emoji-sd/methods")},
    "emoji-sd/distill": {"training": partial(of_training, "emoji-sd/distill")},
    "mini-sd/w-student": {"scales": partial(of_scales, "mini-sd/w-student")},
}
"""Tables of the pages of `results`, by folder."""

if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
    for folder, blocks in STUDIES.items():
        page = RESULTS / folder / "README.md"
        text = filled(page.read_text(encoding="utf-8"), blocks, file=str(page))
        page.write_text(text, encoding="utf-8")
