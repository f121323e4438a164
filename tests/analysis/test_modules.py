"""Groups, the roof above them, and the sentence that explains R, on a table with known answers."""

import math

import pandas as pd
import pytest

from sdbench.analysis.modules import (
    by,
    by_schedule,
    explanation,
    halves,
    module_table,
    sums_differ,
    watched_more,
)
from sdbench.records.schema import frame

PEAKS = {"peak_flop_s": 1e12, "peak_copy_s": 1e10}


def row(step, kind, seconds, *, flop=0, moved=0, block="", plain_s=1.0, watch_s=0.0):
    place = {"unit": step, "step": step, "part": "unet", "block": block, "kind": kind}
    return (
        place
        | PEAKS
        | {
            "seconds": seconds,
            "watch_s": watch_s,
            "plain_s": plain_s,
            "flop": flop,
            "moved_bytes": moved,
        }
    )


@pytest.fixture
def table():
    """Convolutions that scale with the rows at 80 % of the peak, copies, and launches."""
    rows = [
        row("guided", "convolution", 0.5, flop=4 * 10**11, moved=10**6, block="down_blocks.0"),
        row("guided", "normalisation", 0.3, flop=0, moved=24 * 10**8, block="down_blocks.0"),
        row("guided", "other", 0.2, flop=10**6, moved=10**6),
        row("unguided", "convolution", 0.25, flop=2 * 10**11, moved=10**6, block="down_blocks.0"),
        row("unguided", "normalisation", 0.15, flop=0, moved=12 * 10**8, block="down_blocks.0"),
        row("unguided", "other", 0.2, flop=10**6, moved=10**6),
    ]
    return frame("modules", rows)


def test_what_binds_a_group_is_the_nearer_roof_or_what_no_row_changes(table):
    found = by(table, "kind").set_index("kind")
    assert found["bound"].to_dict() == {
        "convolution": "compute",
        "normalisation": "memory",
        "other": "launches",
    }
    assert found.loc["convolution", "mfu"] == pytest.approx(0.8)
    assert found.loc["convolution", "flop_s"] == pytest.approx(8e11)
    assert found.loc["convolution", "intensity"] == pytest.approx(4e5)
    assert found["share"].sum() == pytest.approx(1)


def test_a_loop_is_made_of_its_kinds_of_steps(table):
    found = by_schedule(table, {"cfg": 1.0, "last:20%": 0.8, "unguided": 0.0}).set_index("variant")
    ends = {step: by(table.assign(all="all"), "all", step=step) for step in ("guided", "unguided")}
    for name, step in (("cfg", "guided"), ("unguided", "unguided")):
        columns = ["seconds", "flop_s", "mfu", "intensity", "bound"]
        assert found.loc[name, columns].tolist() == ends[step].loc[0, columns].tolist()
    assert found.loc["last:20%", "seconds"] == pytest.approx(0.8 * 1.0 + 0.2 * 0.6)
    work = 0.8 * found.loc["cfg", "flop"] + 0.2 * found.loc["unguided", "flop"]
    assert found.loc["last:20%", "mfu"] == pytest.approx(work / 1e12 / 0.92)


def test_groups_of_any_column_add_up(table):
    for what in ("kind", "block", "part", "step"):
        assert by(table, what)["seconds"].sum() == pytest.approx(1.0)
    blocks = module_table(table, "block").set_index("block")
    assert blocks.loc["down_blocks.0", "guided_s"] == pytest.approx(0.8)
    assert blocks.loc["down_blocks.0", "ratio"] == pytest.approx(2.0)
    assert blocks.loc["", "ratio"] == pytest.approx(1.0)


def test_the_sentence_names_what_keeps_the_ratio_below_two(table):
    kinds = halves(table).set_index("kind")
    assert kinds["excess_s"].to_dict() == pytest.approx(
        {"convolution": 0, "normalisation": 0, "other": 0.1}
    )
    assert explanation(table) == (
        "R = 1.67: a guided step takes 1,000.0 ms, an unguided one 600.0 ms. What keeps R below 2: "
        "other 100% (its own ratio 1.00)."
    )


def test_a_step_of_half_the_time_needs_no_reason(table):
    scaled = table[table["kind"] == "convolution"]
    assert explanation(scaled).endswith("Half of the rows take half of the time.")


def test_watching_is_compared_with_steps_that_were_not_watched(table):
    more = watched_more(table.assign(plain_s=[0.8] * 3 + [0.75] * 3))
    assert more == pytest.approx({"guided": 0.25, "unguided": -0.2})
    told = table.assign(plain_s=[0.8] * 3 + [0.75] * 3, watch_s=0.1)
    assert watched_more(told) == pytest.approx({"guided": 0.625, "unguided": 0.2})
    assert sums_differ(told) == pytest.approx({"guided": 0.25, "unguided": -0.2})


def test_a_layer_of_one_kind_of_step_takes_no_time_in_the_other(table):
    more = pd.concat([table, frame("modules", [row("guided", "linear", 0.1)])])
    found = halves(more).set_index("kind")
    assert found.loc["linear", "unguided_s"] == 0
    assert math.isnan(found.loc["linear", "ratio"])


def test_counted_work_has_no_times_and_no_bound(table):
    counted = table.assign(**dict.fromkeys(["seconds", "watch_s", "plain_s", *PEAKS], float("nan")))
    found = module_table(counted)
    assert (found["bound"] == "").all()
    assert found["guided_s"].isna().all()
    assert list(found["kind"]) == ["convolution", "other", "normalisation"]  # by work
