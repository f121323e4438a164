"""What time buys: variants that no other beats in time and quality at once."""

import math

import numpy as np
import pandas as pd

from sdbench.analysis.dominance import UNTIMED, dominance
from sdbench.analysis.other_times import with_times
from sdbench.analysis.repeats import complete_repeats, ratios
from sdbench.analysis.sensitivity import WITHOUT_REFERENCE
from sdbench.analysis.shared import mask_tests, metric_values
from sdbench.analysis.stability import untimed
from sdbench.analysis.tables import summarise
from sdbench.records.names import BASELINE
from sdbench.records.store import Results


def frontier(
    results: Results,
    metric: str,
    *,
    higher_is_better: bool,
    timing: Results | None = None,
) -> pd.DataFrame:
    """The summary of a study in the order of time, with what tests say of every variant.

    Args:
        results: of a study.
        metric: a column of its images; the baseline itself is perfect in a metric that compares
            with it.
        higher_is_better: the metric's direction.
        timing: another study of the same variants, whose times count: quality takes many images,
            time a machine that does nothing else.

    Returns:
        The summary's rows that have a time and the metric, fastest first, with `verdict`, `rival`
        and `p` as `dominance` says: t tests of the log-ratios of the loop's times, each over that
        of the baseline beside which it was taken, and sign-flip tests of the metric, of every two
        variants. Behind them come those that were not timed and have a predicted saving; of these
        nothing is tested, and the verdict is "untimed".

    Raises:
        ValueError: as `with_times` says of the other study.
    """
    table = summarise(results)
    if timing is not None:
        table = with_times(table, results, summarise(timing), timing)

    # The baseline is its own reference; where it was run again, it is as far from itself as that.
    values = metric_values(results, metric)
    compares = metric not in WITHOUT_REFERENCE
    identical = (1.0, np.inf) if higher_is_better else (0.0,)
    if compares and table.loc[table["variant"] == BASELINE, metric].isna().all():
        table.loc[table["variant"] == BASELINE, metric] = values[BASELINE] = identical[-1]
    known = compares and bool(values[BASELINE].dropna().isin(identical).all())

    table = table.dropna(subset=[metric])
    timed = _by(table.dropna(subset=["denoise_saving"]), "denoise_saving")
    others = _by(table[untimed(table, "denoise_saving")], "predicted_denoise_saving")
    ordered = table.loc[[*timed.index, *others.index]].reset_index(drop=True)
    if timed.empty:
        return ordered.assign(verdict=UNTIMED, rival="", p=np.nan)

    times = ratios(complete_repeats(timing or results), "denoise_s")
    tested = dominance(
        times.map(math.log),
        values[timed["variant"]],
        higher_is_better=higher_is_better,
        most=compares,
        reference=BASELINE if known else None,
        masks=mask_tests(results, metric, list(timed["variant"])),
    )
    return ordered.join(tested, on="variant").fillna({"verdict": UNTIMED, "rival": ""})


def _by(table: pd.DataFrame, saving: str) -> pd.DataFrame:
    """Rows in the order of a saving, the largest first."""
    return table.sort_values(saving, ascending=False, kind="stable")
