"""How often a study measures is decided by widths and by disturbance, alike whenever it goes on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.tables import summarise
from sdbench.records.schema import frame
from sdbench.records.store import Results, read
from sdbench.study import repeating as module
from sdbench.study import tuning
from sdbench.study.repeating import Repeating, marked
from sdbench.study.runner import record
from sdbench.study.study import Study
from sdbench.study.units import COMPANION, companion, of_baseline, possible_units, units
from tests import tiny

STUDY = Study(
    model="mine",
    variants=["cfg", "last:50%", "random:50%@0..7", "scale:3"],
    prompts=["a", "b"],
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    batch=1,
    repeats=6,
    controls=True,
    metrics=["ssim"],
)
UNTIL = replace(STUDY, repeats="until 2 points")
SECONDS = {"cfg": 1.0, "last:50%": 0.75}


def tables(calls, *, spread=0.0, disturbed=()):
    """Measured calls of known times, and those of the baseline's repeats that are disturbed."""
    random = np.random.default_rng(0)
    rows = []
    for unit in calls:
        if unit.phase == "measured":
            base = SECONDS.get(unit.variant.name, 0.6)
            other = base * np.exp(spread * random.standard_normal())
            rows.append(
                {
                    **{"unit": unit.id, "variant": unit.variant.name, "repeat": unit.repeat},
                    **{"phase": "measured", "status": "ok", "timing": "calls", "batch": 1},
                    **{"latency_s": other, "denoise_s": other, "beside": of_baseline(unit).id},
                    **{"study": "s", "model": "m", "num_steps": 4, "guidance_scale": 5.0},
                    **{"dtype": "float32", "scheduler": "s", "environment": "e"},
                    "foreign_load": float((unit.pairs[0][0], unit.repeat) in disturbed),
                }
            )
    return {"runs": frame("runs", rows), "steps": frame("steps", [])}


def measured(study, **noise):
    """Numbers of repeats by batch when a study is over, and what its rule held last."""
    rule = Repeating(study)
    for calls in rule.stages(lambda: tables(rule.units, **noise)):
        last = calls
    assert last == rule.units
    return list(rule.repeats.values()), rule


def test_repeats_end_at_the_first_look_that_is_narrow_enough():
    assert measured(UNTIL, spread=0.001)[0] == [6, 6]
    assert measured(UNTIL, spread=10)[0] == [24, 24]
    repeats, rule = measured(UNTIL, spread=0.03)
    assert repeats[0] in (9, 13, 18)
    assert rule.widest[1] <= 2
    assert rule.told == f"running, widest interval ±{rule.widest[1]:.1f} points"


def test_the_width_that_decides_is_that_of_the_table():
    """Of the interval that is printed, whose level says that repeats ended by it."""
    _, rule = measured(UNTIL, spread=0.03)
    found = tables(rule.units, spread=0.03)
    results = Results(
        folder=Path(),
        study={"repeats": UNTIL.repeats},
        environment={},
        images=frame("images", []),
        known=frame("known", []),
        **found,
    )
    savings = summarise(results).set_index("variant").loc[rule.widest[0]]
    assert 50 * (savings["saving_hi"] - savings["saving_lo"]) == pytest.approx(rule.widest[1])


def test_a_study_that_goes_on_decides_alike():
    repeats, rule = measured(UNTIL, spread=0.03)
    whole = tables(rule.units, spread=0.03)
    again = Repeating(UNTIL)
    for _ in again.stages(lambda: whole):
        pass
    assert list(again.repeats.values()) == repeats


def test_a_number_of_repeats_is_one_list_of_calls():
    rule = Repeating(STUDY)
    stages = list(rule.stages(lambda: tables(rule.units, spread=10)))
    assert [len(calls) for calls in stages] == [
        len(units(STUDY)) - sum_untimed(),
        len(units(STUDY)),
    ]
    assert rule.told == "running"


def sum_untimed():
    return sum(unit.phase == "untimed" for unit in units(STUDY))


def test_a_disturbed_round_is_measured_again_for_its_batch_alone():
    repeats, _ = measured(STUDY, disturbed={("000", 2), ("000", 4)})
    assert repeats == [8, 6]


def test_further_repeats_that_are_disturbed_too_end_at_the_limit():
    disturbed = {("000", repeat) for repeat in (3, 4, 5, 6, 7, 8)}
    assert measured(STUDY, disturbed=disturbed)[0] == [9, 6]


def test_where_all_are_disturbed_alike_none_is_measured_again():
    disturbed = {(batch, repeat) for batch in ("000", "001") for repeat in range(12)}
    assert measured(STUDY, disturbed=disturbed)[0] == [6, 6]


def test_few_repeats_give_no_interval_and_are_not_measured_again():
    few = replace(STUDY, repeats=3)
    assert measured(few, disturbed={("000", 1)})[0] == [3, 3]


def test_a_look_leaves_disturbed_rounds_out():
    """Of 8 repeats that were measured the 6 calm ones decide."""
    noise = {"spread": 0.001, "disturbed": {("000", 0), ("001", 5)}}
    repeats, rule = measured(UNTIL, **noise)
    assert repeats == [7, 7]
    assert 0 < rule.widest[1] < 2


def test_every_call_of_a_round_is_marked():
    calls = units(STUDY)
    found = tables(calls, disturbed={("001", 2)})
    runs = marked(**found).merge(
        pd.DataFrame(
            {"unit": [unit.id for unit in calls], "batch_of": [u.pairs[0][0] for u in calls]}
        )
    )
    of_round = (runs["batch_of"] == "001") & (runs["repeat"] == 2)
    assert runs.loc[of_round, "disturbed"].tolist() == [True] * of_round.sum()
    assert not runs.loc[~of_round, "disturbed"].any()


def test_calls_that_may_come_are_known_and_companions_are_on_no_list():
    for study in (STUDY, UNTIL):
        possible = {unit.id for unit in possible_units(study)}
        _, rule = measured(study, spread=10, disturbed={("000", 2)})
        assert {unit.id for unit in rule.units} <= possible == rule.possible
        assert companion(units(study)[:1]).id.startswith(COMPANION)


def test_identifiers_do_not_depend_on_the_number_of_repeats():
    few, until = ({unit.id for unit in units(study)} for study in (STUDY, UNTIL))
    assert few == until


def test_controls_that_need_no_time_run_once_per_draw():
    """And where nobody asked for controls, what was listed is timed."""
    quiet = [unit for unit in units(STUDY) if unit.variant.needs_no_time]
    assert {unit.phase for unit in quiet} == {"untimed"}
    counts = pd.Series([unit.variant.name for unit in quiet]).value_counts()
    assert counts["random:50%@0..7"] == 8 * 2
    assert counts["scale:3"] == 2
    assert {unit.draw for unit in quiet if unit.variant.draws} == set(range(8))

    asked = units(replace(STUDY, controls=False))
    timed = {unit.variant.name for unit in asked if unit.phase == "measured"}
    assert {"random:50%@0..7", "scale:3"} <= timed


@pytest.mark.parametrize("fields", [{"random_weights": True}, {"output": "latent"}])
def test_where_no_image_is_judged_they_run_once(fields):
    study = replace(STUDY, metrics=None, height=16, width=16, **fields)
    quiet = [unit for unit in units(study) if unit.variant.needs_no_time]
    assert {(unit.phase, unit.repeat) for unit in quiet} == {("untimed", 0)}


def test_times_are_shown_before_the_images_that_need_none(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "nearest_scales", lambda *args, **how: {"last:50%": 3.0})
    seen = []

    def look(folder):
        there = read(folder)
        seen.append((set(there.runs["phase"]), set(there.images["variant"])))
        assert there.images.loc[there.images["variant"] == "last:50%", "ssim"].notna().all()

    study = replace(STUDY, variants=["cfg", "last:50%", "scale:3"], repeats=2, prompts=["a"])
    record(study, tmp_path, pipe=tiny.stable_diffusion(), times_known=look)
    timed = {variant.name for variant in study.timed_variants}
    assert seen == [({"warmup", "measured"}, timed)]
    whole = read(tmp_path)
    assert set(whole.images["variant"]) > timed
    assert whole.images["ssim"].notna().sum() > 0

    # Where all is there, nothing is shown before the end.
    record(study, tmp_path, pipe=tiny.stable_diffusion(), mode="resume", times_known=look)
    assert len(seen) == 1


def test_what_disturbed_a_round_is_the_rule_of_the_records(monkeypatch):
    monkeypatch.setattr(module, "disturbed_rounds", lambda runs, steps: pd.Series(dtype=bool))
    assert marked(**tables(units(STUDY), disturbed={("000", 1)}))["disturbed"].isna().all()
