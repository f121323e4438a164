"""The tables of `benchmarks.gpu` on one page: `python -m benchmarks.gpu.page FOLDER`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

import sdbench
from sdbench.analysis.cost import cost_point
from sdbench.analysis.energy import with_energy
from sdbench.analysis.modules import explanation
from sdbench.records.files import read_json, read_table
from sdbench.records.names import BASELINE
from sdbench.report.disturbance import disturbance_note
from sdbench.report.tables.cells import markdown_lines

PUBLISHED = Path(__file__).parents[2] / "results" / "published.csv"
GIGA = 1e9
PRINTED = 8  # lines


def page(folder: Path) -> str:
    """What there is, part by part."""
    record = read_json(folder / "parts.json")
    lines = [f"# {folder.name}", "", *_machine(folder), ""]
    lines += ["Made by `python -m benchmarks.gpu --out FOLDER`, in parts.", ""]
    for name, part in record.items():
        lines += [f"## {name}", "", f"*{part['question']}* State: {part['state']}.", ""]
        if not any((folder / name).glob("*/")):
            lines += ["```text", *_printed(folder / name), "```", ""]
        for study in sorted((folder / name).rglob("study.json")):
            lines += [f"### {study.parent.name}", "", *_study(study.parent), ""]
        for table in sorted((folder / name).glob("*/*.csv")):
            lines += [*_frame(pd.read_csv(table)), ""]
    return "\n".join(lines)


def _printed(part: Path) -> list[str]:
    """The last lines that a part printed, where it wrote no table."""
    file = part / "printed.txt"
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    return [line for line in lines[-PRINTED:] if not line.startswith("$ ")]


def _machine(folder: Path) -> list[str]:
    """The device and the packages of the first study."""
    for found in sorted(folder.glob("*/*/environment.json")):
        machine = next(iter(json.loads(found.read_text()).values()))
        gpus = ", ".join(str(gpu["name"]) for gpu in machine.get("gpus") or [])
        torch = machine["packages"]["torch"]
        return [f"{gpus or machine['cpu']}, torch {torch}."]
    return []


def _study(folder: Path) -> Iterator[str]:
    """A study: R, and every variant's saving, memory and energy next to what papers say."""
    if (folder / "modules.parquet").exists():
        yield explanation(read_table(folder, "modules"))
        return
    results = sdbench.read(folder)
    summary = with_energy(sdbench.summarise(results), results)
    if note := disturbance_note(summary):
        yield f"**{note}**"
        yield ""
    try:
        point = cost_point(results)
    except ValueError:
        yield "R is not known: no repeat has both guided and unguided steps."
    else:
        yield f"R = {_interval(point, 'ratio', '.3f')}"
    yield ""
    published = _published()
    yield from _frame(
        pd.DataFrame([_row(own, published) for _, own in summary.iterrows()]).dropna(
            axis="columns", how="all"
        )
    )


def _row(own: pd.Series[Any], published: dict[str, str]) -> dict[str, Any]:
    """A variant's figures in the units that people read."""
    saving = "" if own["variant"] == BASELINE else _interval(own, "saving", ".1%")
    return {
        "variant": own["variant"],
        "NFE": own["nfe"],
        "ms per image": 1e3 * own["latency_s"] / own["batch"],
        "saving %": saving or own["unsupported"],
        "published %": published.get(own["variant"]),
        "peak GB": own["peak_bytes"] / GIGA,
        "J per image": own.get("energy_j"),
    }


def _interval(own: Mapping[str, Any] | pd.Series[Any], name: str, form: str) -> str:
    """A value with its interval, where there is one; empty without a value."""
    value, lo, hi = (own[column] for column in (name, f"{name}_lo", f"{name}_hi"))
    if math.isnan(value):
        return ""
    ends = "" if math.isnan(lo) else f" [{lo:{form}}, {hi:{form}}]"
    return f"{value:{form}}{ends}"


def _published() -> dict[str, str]:
    """Time saved by variant, as papers and threads say."""
    table = pd.read_csv(PUBLISHED)
    saved = table[table["metric"] == "time saved"]
    said = saved["value"].astype(str) + " (" + saved["paper"] + ")"
    return dict(zip(saved["variant"], said, strict=True))


def _frame(table: pd.DataFrame) -> list[str]:
    """A frame as Markdown."""
    cells = [
        [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in table.astype(object).where(table.notna(), "").to_numpy()
    ]
    header = [str(name) for name in table.columns]
    return markdown_lines([header, ["---"] * len(header), *cells]).splitlines()


def main(folder: Annotated[Path, typer.Argument(help="as `benchmarks.gpu` wrote it")]) -> None:
    """Write README.md of a folder."""
    (folder / "README.md").write_text(page(folder) + "\n")


if __name__ == "__main__":
    typer.run(main)
