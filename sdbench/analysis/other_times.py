"""The summary of one study with the times of another, where both did the same work."""

import pandas as pd

from sdbench.records.names import BASELINE, SCALE
from sdbench.records.store import Results

TIMES = (
    *("batch", "latency_s", "saving", "denoise_saving"),
    *("predicted_saving", "predicted_denoise_saving", "peak_bytes"),
)
"""Beginnings of the summary's columns that another study's times replace."""
SETTINGS = (
    *("model", "random_weights", "dtype", "num_steps", "guidance_scale", "height", "width"),
    *("arguments", "execution", "guidance_execution"),
)
"""What two studies must have in common, so that the times of one are those of the other."""
MOST = 0.05
"""Of the baseline's evaluations: by more, a variant that decides by image may not differ."""


def with_times(
    summary: pd.DataFrame, results: Results, timing_summary: pd.DataFrame, timing: Results
) -> pd.DataFrame:
    """The summary of a study, its times replaced by another's.

    Args:
        summary: of the study, as `summarise` returns it.
        results: of the same study.
        timing_summary: of the study whose times count.
        timing: of that study.

    A constant scale may be absent from the other study, as each study finds its own. It gets the
    prediction of what did the same work there and was not timed either.

    Returns:
        The summary, with `timed_nfe`: the evaluations of the calls whose time it is. Of a variant
        that decides by image they are near the study's own, of all others the same.

    Raises:
        ValueError: a setting is not the same in both; a variant has no time in the other study,
            another number of steps there, or further evaluations than deciding by image explains.
    """
    _require_same_settings(results, timing)
    timed = timing_summary.set_index("variant")
    ran = summary[summary["pairs"] > 0].set_index("variant")
    for name in ran.index.difference(timed.index, sort=False):
        timed.loc[name] = _same_work(name, ran.loc[name], timed)
    _require_same_work(ran, timed)

    table = summary.copy()
    for column in timed.columns[timed.columns.str.startswith(TIMES)]:
        table[column] = table["variant"].map(timed[column])
    # Of the study of quality no time is shown, so what disturbed it matters no more.
    disturbed = timing_summary["disturbance"].iloc[0]
    return table.assign(timed_nfe=table["variant"].map(timed["nfe"]), disturbance=disturbed)


def _same_work(name: str, row: pd.Series, timed: pd.DataFrame) -> pd.Series:
    """What stands for a variant that the study of time lacks."""
    equal = (timed["nfe"] == row["nfe"]) & (timed["steps"] == row["steps"])
    untimed = timed[equal & timed["saving"].isna() & timed["predicted_saving"].notna()]
    if untimed.empty or not name.startswith(SCALE):
        raise ValueError(f"the study of times has no variant '{name}'")
    return untimed.iloc[0]


def _require_same_settings(results: Results, timing: Results) -> None:
    for name in SETTINGS:
        # A field younger than a stored study is absent there, and was empty or off.
        own, other = (study.study.get(name) or None for study in (results, timing))
        if own != other:
            raise ValueError(
                f"{results.folder} has {name} {own!r}, but the study of times has {other!r}: "
                "expected the same in both"
            )


def _require_same_work(ran: pd.DataFrame, timed: pd.DataFrame) -> None:
    """Refuse variants that do other work in the study of time."""
    most = MOST * timed["nfe"].reindex([BASELINE]).item()
    for name in ran.index:
        for what, allowed in (("steps", 0.0), ("nfe", most)):
            own, other = (float(study[what][name]) for study in (ran, timed))
            if abs(own - other) > allowed:
                raise ValueError(
                    f"'{name}' has {what} {own:g}, but {other:g} in the study of times: "
                    "expected the same work in both"
                )
