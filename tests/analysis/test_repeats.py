from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.calls import counted, finished, timed
from sdbench.analysis.contrast import time_contrast
from sdbench.analysis.repeats import complete_repeats, ratios
from sdbench.analysis.tables import summarise
from sdbench.analysis.timing import RATIO, log_ratios

MASKS = {"cfg": [1, 1, 1, 1, 1, 1], "last:3": [1, 1, 1, 0, 0, 0], "unguided": [0] * 6}
LOOP = (3 * 0.4 + 3 * 0.25) / 2.4
CALL = (3 * 0.4 + 3 * 0.25 + 1) / 3.4


def lockstep(results, **columns):
    """The study as one whose calls took turns, in pairs of rows where a step is guided."""
    beside = "cfg" + results.runs["unit"].str.extract(r"(/.*)")[0]
    columns = {"timing": "lockstep", "beside": beside, "accelerated": False} | columns
    runs = results.runs.assign(**columns)
    runs = runs.astype({name: results.runs[name].dtype for name in columns})
    steps = results.steps.assign(rows=1 + results.steps["guided"].astype("Int64"))
    return replace(results, runs=runs, steps=steps)


def spiked(results, unit, step, factor=30.0):
    """The study where others took a step's core for a while."""
    here = (results.steps["unit"] == unit) & (results.steps["step"] == step)
    more = (factor - 1) * results.steps.loc[here, "latency_s"].item()
    steps, runs = results.steps.copy(), results.runs.copy()
    steps.loc[here, "latency_s"] += more
    runs.loc[runs["unit"] == unit, ["latency_s", "denoise_s"]] += more
    return replace(results, runs=runs, steps=steps)


def again(results, repeat, batch=0, *, times=1.0, number=None):
    """The study with a round measured again, as a further repeat of its batch."""
    number = results.runs["repeat"].max() + 1 if number is None else number
    runs = results.runs[results.runs["unit"].str.endswith(f"/{repeat}/{batch}")].copy()
    named = {"unit": runs["unit"], "beside": runs["beside"]}
    runs = runs.assign(
        repeat=number,
        disturbed=False,
        latency_s=times * runs["latency_s"],
        denoise_s=times * runs["denoise_s"],
        **{name: units + f"/{number}" for name, units in named.items()},
    )
    return replace(results, runs=pd.concat([results.runs, runs], ignore_index=True))


def by_variant(results):
    return summarise(results).set_index("variant")


def disturbed(repeats, batch=None):
    """An edit of a run that marks some repeats, and gives their images a hash."""

    def changed(row):
        _, repeat, of = row["unit"].split("/")
        marked = int(repeat) in repeats and batch in (None, int(of))
        return row | {"disturbed": marked, "sha256": f"{row['variant']} {of}"}

    return changed


def test_slices_in_lockstep_tell_a_saving_without_what_others_did(study):
    results = spiked(spiked(lockstep(study(MASKS)), "last:3/2/0", 1), "cfg/4/0", 3)
    row = by_variant(results).loc["last:3"]
    assert 1 - row["denoise_saving"] == pytest.approx(LOOP, abs=0.01)
    assert row["denoise_saving_hi"] - row["denoise_saving_lo"] < 0.03
    sums = by_variant(replace(results, runs=results.runs.assign(timing="calls"))).loc["last:3"]
    assert sums["denoise_saving_hi"] - sums["denoise_saving_lo"] > 1


def test_raw_times_stay_in_the_table_of_calls(study):
    results = lockstep(study(MASKS))
    row = by_variant(results).loc["last:3"]
    median = results.runs.query("variant == 'last:3'")["latency_s"].median()
    assert row["latency_s"] == median


def test_without_noise_slices_and_sums_say_the_same(study):
    results = study(MASKS, repeats=6)
    machine = np.exp(np.random.default_rng(0).standard_normal(6))
    times = results.steps["guided"].map({True: 0.4, False: 0.25}).astype(float)
    steps = results.steps.assign(latency_s=times * machine[results.steps["repeat"].to_numpy(int)])
    loops = steps.groupby("unit")["latency_s"].sum()[results.runs["unit"]].to_numpy()
    own = machine[results.runs["repeat"].to_numpy(int)]
    runs = results.runs.assign(denoise_s=loops, latency_s=loops + own)
    for timing in ("lockstep", "calls"):
        table = by_variant(lockstep(replace(results, runs=runs, steps=steps), timing=timing))
        assert 1 - table.loc["last:3", "denoise_saving"] == pytest.approx(LOOP)
        assert 1 - table.loc["last:3", "saving"] == pytest.approx(CALL)
        assert table.loc["last:3", "saving_hi"] == pytest.approx(1 - CALL)


def test_a_spike_in_the_decoding_of_one_call_does_not_decide_its_saving(study):
    results = lockstep(study(MASKS, repeats=8))
    runs = results.runs.copy()
    runs.loc[runs["unit"] == "unguided/3/0", "latency_s"] += 50
    found = by_variant(replace(results, runs=runs)).loc["unguided"]
    assert 1 - found["saving"] == pytest.approx((6 * 0.25 + 1) / 3.4, abs=0.01)


def test_an_accelerators_steps_are_known_by_their_place(study):
    """Its slow steps are one in three, for the same rows."""
    results = lockstep(study(MASKS | {"deepcache:3": [1] * 6}))
    theirs = results.runs["variant"] == "deepcache:3"
    runs = results.runs.assign(accelerated=theirs.astype("boolean"), sha256="same")
    cached = (results.steps["variant"] == "deepcache:3") & (results.steps["step"] % 3 > 0)
    times = results.steps["latency_s"].mask(cached, 0.4 * results.steps["latency_s"])
    results = replace(results, runs=runs, steps=results.steps.assign(latency_s=times))

    hit = spiked(results, "deepcache:3/1/0", 4)
    assert 1 - by_variant(hit).loc["deepcache:3", "denoise_saving"] == pytest.approx(0.6, abs=0.01)

    # Of calls that did other work, as their other images say, only sums are known.
    units = hit.runs["unit"].where(theirs, hit.runs["sha256"])
    alone = replace(hit, runs=hit.runs.assign(sha256=units))
    assert by_variant(alone).loc["deepcache:3", "denoise_saving"] < 0.3


def test_a_clock_that_is_coarser_than_a_step_knows_sums(study):
    results = lockstep(study(MASKS))
    zero = replace(results, steps=results.steps.assign(latency_s=0.0))
    expected = complete_repeats(lockstep(results, timing="calls"))
    pd.testing.assert_frame_equal(complete_repeats(zero), expected)


def test_a_call_is_compared_with_the_one_beside_which_it_was_timed(study):
    results = lockstep(study(MASKS), timing="calls")
    theirs = results.runs[results.runs["variant"] == "cfg"].assign(phase="companion")
    beside = theirs.assign(unit="companion" + theirs["unit"], latency_s=2 * theirs["latency_s"])
    beside = beside.assign(beside=beside["unit"])
    runs = results.runs.assign(
        beside=results.runs["beside"].where(
            results.runs["variant"] != "last:3", "companion" + results.runs["beside"]
        )
    )
    both = replace(results, runs=pd.concat([runs, beside], ignore_index=True))
    before, after = by_variant(results), by_variant(both)

    ratio = 1 - before["saving"]
    assert 1 - after["saving"]["last:3"] == pytest.approx(ratio["last:3"] / 2)
    assert after["saving"]["unguided"] == before["saving"]["unguided"]
    contrast = time_contrast(both, "last:3", "unguided", "latency_s")
    assert contrast.ratio.estimate == pytest.approx(ratio["last:3"] / 2 / ratio["unguided"])

    # A companion counts for nothing else.
    same = ["nfe", "steps", "repeats", "failed", "latency_s", "predicted_saving"]
    pd.testing.assert_frame_equal(before[same], after[same])
    assert set(finished(both)["phase"]) == set(timed(both)["phase"]) == {"measured"}


def test_a_companion_that_failed_leaves_its_call_without_a_ratio(study):
    results = lockstep(study(MASKS, repeats=7), timing="calls")
    lost = results.runs["unit"] == "cfg/0/0"
    beside = results.runs[lost].assign(unit="c", beside="c", phase="companion", status="failed")
    runs = results.runs.assign(
        beside=results.runs["beside"].where(results.runs["unit"] != "last:3/0/0", "c")
    )
    table = by_variant(replace(results, runs=pd.concat([runs, beside], ignore_index=True)))
    assert table["repeats"].to_dict() == {"cfg": 7, "last:3": 6, "unguided": 7}
    assert table["failed"].sum() == 0


def test_disturbed_repeats_are_left_out_where_six_others_remain(study):
    results = lockstep(study(MASKS, repeats=8, changed=disturbed({2, 5})))
    calm = results.runs[~results.runs["repeat"].isin([2, 5])]
    expected = by_variant(replace(results, runs=calm.assign(disturbed=False)))
    found = by_variant(results)
    told = found.columns.drop("disturbance")
    pd.testing.assert_frame_equal(found[told], expected[told])
    assert (found["repeats"] == 6).all()


def test_all_repeats_count_where_fewer_are_undisturbed(study):
    results = lockstep(study(MASKS, repeats=7, changed=disturbed({2, 5})))
    expected = by_variant(replace(results, runs=results.runs.assign(disturbed=False)))
    assert (by_variant(results)["repeats"] == 7).all()
    assert by_variant(results)["saving"].tolist() == expected["saving"].tolist()


def test_the_time_of_a_variant_alone_never_decides_that_its_repeat_counts(study):
    results = lockstep(study(MASKS, repeats=7, changed=disturbed({6})))
    runs = results.runs.copy()
    runs.loc[runs["unit"] == "last:3/1/0", "status"] = "failed"
    table = by_variant(replace(results, runs=runs))
    assert table["repeats"].to_dict() == {"cfg": 6, "last:3": 5, "unguided": 6}


def test_a_round_that_was_measured_again_takes_the_place_of_the_disturbed_one(study):
    results = lockstep(
        study(MASKS, repeats=6, batches=2, changed=disturbed({3}, batch=1)), timing="calls"
    )
    later = again(results, 3, batch=1, times=7.0)
    shares = complete_repeats(later)
    assert shares.groupby("variant").size().to_dict() == dict.fromkeys(MASKS, 6)

    # The last repeat is of the first batch's last call and of the new one of the second.
    own = results.runs.set_index("unit")["denoise_s"]
    expected = own["cfg/5/0"] + 7 * own["cfg/3/1"]
    assert shares["denoise_s"][5, "cfg"] == pytest.approx(expected)
    assert shares["denoise_s"][3, "cfg"] == pytest.approx(own["cfg/3/0"] + own["cfg/4/1"])


def test_without_what_was_measured_again_a_batch_is_lacking(study):
    results = lockstep(
        study(MASKS, repeats=7, batches=2, changed=disturbed({3}, batch=1)), timing="calls"
    )
    assert complete_repeats(results).groupby("variant").size().tolist() == [6, 6, 6]


def test_in_lockstep_every_round_is_a_pair(study):
    """Three repeats of two batches know a time six times; one that was disturbed does not count."""
    few = by_variant(lockstep(study(MASKS, repeats=3, batches=2)))
    assert few["repeats"].to_dict() == dict.fromkeys(MASKS, 6)
    assert few.loc["unguided", ["saving_lo", "saving_hi"]].notna().all()
    by_calls = by_variant(lockstep(study(MASKS, repeats=3, batches=2), timing="calls"))
    assert by_calls["repeats"].to_dict() == dict.fromkeys(MASKS, 3)
    assert by_calls["saving_lo"].isna().all()
    left_out = lockstep(study(MASKS, repeats=4, batches=2, changed=disturbed({3}, batch=1)))
    assert by_variant(left_out)["repeats"].to_dict() == dict.fromkeys(MASKS, 7)


def test_batches_without_images_are_told_by_their_size(study):
    marks = disturbed({3}, batch=1)
    results = lockstep(
        study(MASKS, batches=2, changed=lambda row: marks(row) | {"sha256": None}), timing="calls"
    )
    repeats = complete_repeats(again(results, 3, batch=1))
    assert repeats.groupby("variant").size().tolist() == [6, 6, 6]


def test_a_variant_beside_calls_of_its_own_is_judged_by_them(study):
    results = lockstep(study(MASKS, repeats=8, changed=disturbed({2, 5})), timing="calls")
    theirs = results.runs[results.runs["variant"] == "cfg"].assign(phase="companion")
    beside = theirs.assign(unit="c" + theirs["unit"], beside="c" + theirs["unit"])
    own = results.runs["variant"] == "last:3"
    runs = results.runs.assign(
        beside=results.runs["beside"].where(~own, "c" + results.runs["beside"]),
        disturbed=results.runs["disturbed"].where(~own, False),
    )
    calls = counted(pd.concat([runs, beside], ignore_index=True))
    assert calls.groupby("variant").size().to_dict() == {"cfg": 6, "last:3": 8, "unguided": 6}


def test_log_ratios_are_those_of_the_slices(study):
    results = spiked(lockstep(study(MASKS)), "unguided/0/0", 0)
    logs = log_ratios(results)
    assert list(logs) == [(RATIO, "last:3"), (RATIO, "unguided")]
    expected = np.log(ratios(complete_repeats(results), "denoise_s")["unguided"])
    assert logs[RATIO, "unguided"].tolist() == expected.tolist()
    assert np.exp(logs[RATIO, "unguided"]) == pytest.approx(0.25 / 0.4, rel=0.05)


def test_a_variant_that_was_not_timed_has_a_predicted_saving_alone(study):
    def changed(row):
        return row | ({"phase": "untimed"} if row["variant"] == "scale:4" else {})

    results = lockstep(study(MASKS | {"scale:4": [1] * 6}, changed=changed))
    row = by_variant(results).loc["scale:4"]
    assert row["repeats"] == 0
    assert np.isnan(row[["saving", "denoise_saving", "latency_s"]].astype(float)).all()
    assert row["predicted_saving"] == pytest.approx(0, abs=0.01)
    assert row["nfe"] == 12
