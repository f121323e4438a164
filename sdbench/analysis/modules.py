"""What holds a step back, by kind of layer or by block: time, work, and the roof above them.

The roof: no kernel does more FLOPs per second than the best matrix product, and none moves more
bytes per second than a copy. Source: Williams et al. 2009, doi 10.1145/1498765.1498785.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import pandas as pd

GUIDED, UNGUIDED = "guided", "unguided"
SUMS = ["seconds", "flop", "moved_bytes"]
HALF = 0.5
NAMED = 0.1  # of what keeps a step from half of its time: a kind below it is not named


def module_table(table: pd.DataFrame, what: str = "kind") -> pd.DataFrame:
    """Guided and unguided steps side by side, with the roof above the guided one.

    Args:
        table: `modules`.
        what: column to group by: "kind", "block" or "part".

    Returns:
        The columns of `by` for the guided step, and `guided_s`, `unguided_s` and `ratio`.
    """
    sides = halves(table, what)[[what, "guided_s", "unguided_s", "ratio"]]
    return by(table, what).merge(sides, on=what)


def by(table: pd.DataFrame, what: str, *, step: str = GUIDED) -> pd.DataFrame:
    """A step's time and work by kind of layer or by block, with the roof above them.

    Args:
        table: `modules`.
        what: column to group by: "kind", "block", "part" or "step".
        step: "guided", "unguided", "text" or "decode".

    Returns:
        One row per group, the longest first: the group, `seconds`, `share` (of the step), `flop`,
        `moved_bytes`, `flop_s` (FLOPs per second), `mfu` (share of the peak), `intensity` (FLOPs
        per byte) and `bound`.
    """
    own = table[table["step"] == step]
    sums = own.groupby(what, sort=False)[SUMS].sum(min_count=1).astype("float64")
    sums["share"] = sums["seconds"] / sums["seconds"].sum()
    compute_s = sums["flop"] / own["peak_flop_s"].iloc[0]
    memory_s = sums["moved_bytes"] / own["peak_copy_s"].iloc[0]
    sums["flop_s"] = sums["flop"] / sums["seconds"]
    sums["mfu"] = compute_s / sums["seconds"]
    sums["intensity"] = sums["flop"] / sums["moved_bytes"]
    sums["bound"] = _bound(sums["seconds"], compute_s, memory_s, _fixed_share(table, what))
    return sums.sort_values(["seconds", "flop"], ascending=False).reset_index()


def by_schedule(table: pd.DataFrame, guided: Mapping[str, float]) -> pd.DataFrame:
    """A loop's time and work by its share of guided steps, with the roof above them.

    A loop is made of the two kinds of steps, so its figures follow from theirs.

    Args:
        table: `modules`, with times.
        guided: share of guided steps by variant, from 0 to 1.

    Returns:
        One row per variant: `variant`, `seconds` (of a mean step), `flop`, `moved_bytes`, `flop_s`,
        `mfu`, `intensity` and `bound`, as `by` says.
    """
    steps = pd.concat(
        [by(table.assign(all="all"), "all", step=step) for step in (GUIDED, UNGUIDED)],
        keys=[GUIDED, UNGUIDED],
    ).droplevel(1)
    shares = pd.DataFrame({GUIDED: guided, UNGUIDED: {name: 1 - of for name, of in guided.items()}})
    loops = (shares @ steps[SUMS].astype(float)).rename_axis("variant")

    top = table.iloc[0]
    compute_s, memory_s = (
        loops["flop"] / top["peak_flop_s"],
        loops["moved_bytes"] / top["peak_copy_s"],
    )
    loops["flop_s"] = loops["flop"] / loops["seconds"]
    loops["mfu"] = compute_s / loops["seconds"]
    loops["intensity"] = loops["flop"] / loops["moved_bytes"]
    fixed = float(_fixed_share(table, "step").iloc[0])
    same = pd.Series(fixed, loops.index)
    loops["bound"] = _bound(loops["seconds"], compute_s, memory_s, same)
    return loops.reset_index()


def _bound(
    seconds: pd.Series[float],
    compute_s: pd.Series[float],
    memory_s: pd.Series[float],
    fixed_share: pd.Series[float],
) -> pd.Series[str]:
    """What bounds groups: "compute", "memory" or "launches"; empty without times.

    The nearer roof does, where work or bytes at their peak take at least half of the time. Else a
    group is bound by launches if half of its time does not depend on the rows.
    """
    roof_s = np.maximum(compute_s.fillna(0), memory_s)
    nearer = pd.Series(np.where(memory_s > compute_s.fillna(0), "memory", "compute"), seconds.index)
    waits = (roof_s < HALF * seconds) & (fixed_share.reindex(seconds.index) >= HALF)
    return nearer.mask(waits, "launches").mask(seconds.isna(), "")


def _fixed_share(table: pd.DataFrame, what: str) -> pd.Series[float]:
    """The share of an unguided step that does not depend on its rows, by group."""
    if what == "step":
        table, what = table.assign(all="all"), "all"
    found = halves(table, what).set_index(what)
    return 2 - found["guided_s"] / found["unguided_s"]


def halves(table: pd.DataFrame, what: str = "kind") -> pd.DataFrame:
    """What an unguided step saves in every group, which keeps R below 2.

    Args:
        table: `modules`.
        what: columns to group by.

    Returns:
        One row per group, the longest first: the group, `guided_s`, `unguided_s`, `ratio` (2 where
        half of the rows take half of the time), `share` (of the guided step), `excess_s` (the
        seconds of the unguided step above half of the guided one) and `excess_share` (of the whole
        step's).
    """
    found = pd.DataFrame(
        {
            f"{step}_s": table[table["step"] == step]
            .groupby(what, sort=False)["seconds"]
            .sum(min_count=1)
            for step in (GUIDED, UNGUIDED)
        }
    )
    if found.notna().any(axis=None):  # what does not run in one kind of step takes no time there
        found = found.fillna(0.0)
    guided, unguided = found["guided_s"], found["unguided_s"]
    found["ratio"] = guided / unguided.replace(0, np.nan)
    found["share"] = guided / guided.sum()
    found["excess_s"] = unguided - guided / 2
    found["excess_share"] = found["excess_s"] / found["excess_s"].sum()
    return found.sort_values("guided_s", ascending=False).reset_index(names=what)


def watched_more(table: pd.DataFrame) -> dict[str, float]:
    """By how much watching every layer lengthened each kind of step, as a share of it.

    It is taken off the seconds of places. An old table holds it in them, and not by itself.
    """
    steps = table.groupby("step", sort=False)
    whole = steps["seconds"].sum() + steps["watch_s"].sum()
    more = whole / steps["plain_s"].first() - 1
    return {str(step): float(value) for step, value in more.items()}


def sums_differ(table: pd.DataFrame) -> dict[str, float]:
    """By how much the seconds of all places differ from a step's, as a share of it."""
    steps = table.groupby("step", sort=False)
    differ = steps["seconds"].sum() / steps["plain_s"].first() - 1
    return {str(step): float(value) for step, value in differ.items()}


def explanation(table: pd.DataFrame) -> str:
    """A sentence: R, and the kinds of layers that keep it below 2."""
    kinds = halves(table)
    guided_s, unguided_s = kinds["guided_s"].sum(), kinds["unguided_s"].sum()
    said = f"R = {guided_s / unguided_s:.2f}: a guided step takes {guided_s * 1e3:,.1f} ms, an "
    said += f"unguided one {unguided_s * 1e3:,.1f} ms."
    excess = kinds["excess_s"].sum()
    if excess < 0.01 * guided_s:
        return f"{said} Half of the rows take half of the time."

    held = kinds[kinds["excess_share"] >= NAMED].sort_values("excess_share", ascending=False)
    causes = [
        f"{row['kind']} {row['excess_share']:.0%} (its own ratio {cast(float, row['ratio']):.2f})"
        for _, row in held.iterrows()
    ]
    return f"{said} What keeps R below 2: {', '.join(causes)}."
