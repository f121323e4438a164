import itertools
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sdbench.analysis.plans import plan_table
from sdbench.analysis.stats import Interval
from sdbench.analysis.tables import summarise
from sdbench.experiments import judging, planning
from sdbench.experiments.judging import controls, weaker
from sdbench.experiments.planning import Target, plan, steps_for
from sdbench.experiments.search import Tuner, _together, search, search_within, shapes, without
from sdbench.instruments import quality
from sdbench.study.generation import Generation
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.schedule import GuidanceSchedule
from tests import tiny

STEPS = 6


def generation(**changes):
    fields = {
        "prompts": tiny.PROMPTS[:1],
        "seeds": [0],
        "num_steps": STEPS,
        "guidance_scale": 7.5,
    }
    return Generation(model="tiny", **fields | changes)


def study(settings, variant, **fields):
    return Study(**settings | fields, variants=["cfg", variant], metrics=["ssim"])


HELD_OUT = generation(prompts=["a small red star on a white background"], seeds=[1, 2])


@pytest.fixture(scope="module")
def tuner():
    return Tuner(tiny.stable_diffusion(), generation(), "ssim", steps=STEPS, max_rows=16)


@pytest.mark.parametrize("unguided", [1, 3, 5])
def test_exchanges_reach_the_best_mask_of_all(tuner, unguided):
    every = [without(STEPS, dropped) for dropped in itertools.combinations(range(STEPS), unguided)]
    found = search(tuner, unguided, rounds=6, width=24)
    assert found.unguided == unguided
    assert found.loss == min(tuner.evaluate(every))


def test_a_search_begins_with_the_best_of_its_shapes(tuner):
    begun = shapes(tuner, 2)
    assert {"additive", "window:0+2", "window:4+2", "interval:1+4"} <= begun.keys()
    found = search(tuner, 2, rounds=0)
    assert (found.exchanges, found.loss) == (0, min(tuner.evaluate(begun.values())))


class Separable:
    """Stands in for a tuner: every unguided step costs its own price, so that exchanges add up."""

    def __init__(self, prices):
        self.prices, self.steps, self.losses = prices, len(prices), {}

    def evaluate(self, masks):
        for mask in masks:
            self.losses[mask] = sum(np.compress(np.logical_not(mask), self.prices))


def test_exchanges_that_help_are_made_together():
    tuner = Separable([1, 9, 1, 9, 1, 9, 1, 9, 1, 9, 1, 9])
    start = tuple(step >= 6 for step in range(12))
    tuner.evaluate([start])
    tried = [
        without(12, {0, 2, 4, 3, 5, 6}),
        without(12, {0, 2, 4, 1, 3, 8}),
        without(12, {0, 2, 4, 1, 5, 6}),
    ]
    tuner.evaluate(tried)
    assert _together(start, tried, tuner.losses) == [without(12, {0, 2, 4, 3, 6, 8})]


def test_no_mask_is_evaluated_twice(tuner):
    search(tuner, 2)
    before = tuner.rows
    search(tuner, 2)
    assert tuner.rows == before


def test_a_bound_gives_the_most_unguided_steps_that_keep_it(tuner):
    best = {count: search(tuner, count).loss for count in range(1, STEPS + 1)}
    quality_of_three = -best[3]  # higher is better
    found = search_within(tuner, quality_of_three)
    assert found.unguided >= 3
    assert -found.loss >= quality_of_three
    with pytest.raises(ValueError, match="no mask keeps the ssim within"):
        search_within(tuner, 1e6)


def test_a_saving_becomes_the_fewest_steps_that_reach_it():
    assert steps_for(0.10, steps=50, ratio=2.0, denoise_share=1.0) == 10
    assert steps_for(0.101, steps=50, ratio=2.0, denoise_share=1.0) == 11
    assert steps_for(0.10, steps=50, ratio=1.6, denoise_share=0.9) == 15
    with pytest.raises(ValueError, match=r"dropping guidance everywhere saves 50\.0% here"):
        steps_for(0.6, steps=50, ratio=2.0, denoise_share=1.0)


def test_a_plan_has_the_constant_scale_that_is_nearest_to_it(monkeypatch):
    asked = []

    def nearest(pipe, tuning, variants, pairs):
        asked.append((tuning.batch, pairs, variants[0].rule(STEPS).mask))
        return {variants[0].name: 3.2}

    monkeypatch.setattr(judging, "nearest_scales", nearest)
    mask = GuidanceSchedule.last(STEPS, 2).mask
    (found,) = weaker(None, generation(), mask)
    assert found.guidance_scale == 3.2
    assert asked == [
        (generation().batch, tuple(generation().pairs), mask)
    ]  # not the noise of what is held out


def test_controls_are_as_many_steps_or_as_much_work(tuner):
    masks, others = controls(tuner, 3, num_steps=STEPS)
    assert {name.partition(":")[0] for name, _ in masks} == {
        "last",
        "first",
        "random",
        "spaced",
        "interval",
    }
    assert {mask.count(False) for mask in masks.values()} == {3}
    assert masks["last:3", None] == GuidanceSchedule.last(STEPS, 3).mask
    assert {draw: mask for (name, draw), mask in masks.items() if name == "random:3@0..7"} == {
        draw: GuidanceSchedule.random(STEPS, 3, seed=draw).mask for draw in range(8)
    }
    names = [variant.name for variant in others]
    assert names == ["steps:4", "steps:5"]  # 9 of 12 evaluations lie between 4 and 5 steps
    assert masks["spaced:3", None] == (True, False) * 3


@pytest.mark.parametrize(
    "target",
    [{}, {"unguided": (1,), "bound": 0.1}, {"bound": 0.1, "saving": 0.1}],
    ids=["none", "two", "two more"],
)
def test_a_plan_has_exactly_one_target(target):
    with pytest.raises(ValueError, match="a plan needs one of"):
        Target(**target)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": Target((7,))}, "between 1 and 6 steps can be unguided, not 7"),
        ({"held_out": generation(seeds=[5])}, "is among the tuning and the held-out prompts"),
        (
            {"held_out": replace(HELD_OUT, seeds=(0, 1))},
            "'0' is among the tuning and the held-out seeds",
        ),
        ({"tuning": generation(random_weights=True)}, "images of random weights have no content"),
        ({"scales": [0.9]}, r"a guidance scale of 0\.9 is no guidance"),
        ({"metric": "beauty"}, "unknown metric 'beauty'"),
        ({"metric": "undirected"}, "metric 'undirected' has no direction"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_the_folder_is_made(
    tmp_path, monkeypatch, changes, message
):
    undirected = replace(quality.METRICS["ssim"], name="undirected", higher_is_better=None)
    monkeypatch.setitem(quality.METRICS, "undirected", undirected)
    given = {
        "tuning": generation(),
        "held_out": HELD_OUT,
        "target": Target((2,)),
        "metric": "ssim",
    } | changes
    with pytest.raises(ValueError, match=message):
        plan(tiny.stable_diffusion(), out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def plans_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("planned") / "plans"


@pytest.fixture(scope="module")
def plans(plans_folder):
    """Schedules of two and of three unguided steps, found and judged."""
    settings = {"metric": "ssim", "rounds": 1, "scales": [6.0, 9.0]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "TIMING_REPEATS", 2)
        patch.setattr(judging, "nearest_scales", lambda *arguments: {"plan": 5.5})
        pipe = tiny.stable_diffusion()
        return plan(pipe, generation(), HELD_OUT, Target((2, 3)), plans_folder, **settings)


@pytest.fixture(scope="module")
def of_three(plans):
    return plans.judged[plans.judged["unguided"] == 3]


def written(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_a_plan_is_judged_against_its_controls(plans, of_three):
    assert set(plans.judged["unguided"]) == {2, 3}
    nfe = of_three.groupby("variant")["nfe"].first()
    assert nfe["cfg"] == 12
    assert {
        nfe[name]
        for name in ("plan", "plan, rescaled", "last:3", "first:3", "random:3@0..7", "spaced:3")
    } == {9}
    assert (nfe["steps:4"], nfe["steps:5"], nfe["scale:5.5"]) == (8, 10, 12)
    assert len(of_three) == 2 * (len(nfe) + 7)


def test_every_draw_of_the_random_control_is_judged(of_three):
    at_random = of_three[of_three["variant"] == "random:3@0..7"]
    assert set(at_random.groupby("draw").size()) == {2}
    assert set(at_random["draw"]) == set(range(8))
    assert at_random.groupby("seed")["ssim"].nunique().min() > 1
    assert of_three.loc[of_three["variant"] != "random:3@0..7", "draw"].isna().all()


def test_where_all_steps_are_unguided_there_is_one_draw(tuner):
    masks, _ = controls(tuner, STEPS, num_steps=STEPS)
    assert masks[f"random:{STEPS}@0", None] == (False,) * STEPS


def test_a_plan_is_timed_with_what_its_controls_take(plans):
    assert list(plans.timing.runs["variant"].unique()) == [
        "cfg",
        "last:2",
        "steps:5",
        "last:3",
        "steps:4",
    ]
    timed = plans.timing.runs[plans.timing.runs["phase"] == "measured"]
    assert timed.groupby("variant")["nfe"].unique().str[0].to_dict()["last:3"] == 9
    assert set(timed.groupby("variant").size()) == {2}
    timing = summarise(plans.timing)
    table = plan_table(plans.judged, "ssim", higher_is_better=True, timing=timing)
    assert table["saving"].notna().all()


def test_a_plan_is_written_with_its_evidence(plans_folder, of_three):
    evidence = written(plans_folder, "plan-3")["evidence"]
    assert written(plans_folder, "plan-3")["mask"].count("0") == 3
    assert evidence["tuning_pairs"] == 1
    ssim = of_three.groupby("variant")["ssim"]
    levels = {"": ssim.mean(), "_median": ssim.median()}
    levels["_changed"] = ssim.agg(lambda values: (values < 0.965).mean())
    for kind, expected in levels.items():
        assert evidence[f"held_out{kind}"] == pytest.approx(expected.to_dict())
    rescaled = written(plans_folder, "plan-3-rescaled")
    assert rescaled["guided_scale"] in (6.0, 9.0)
    assert rescaled["evidence"]["tuning_mean"] != evidence["tuning_mean"] > 0
    assert evidence["tuning_median"] == evidence["tuning_mean"]  # of one pair
    assert evidence["tuning_changed"] in (0, 1)


def test_a_plan_is_run_as_it_was_judged(tmp_path, plans_folder, of_three):
    file = f"plan:{plans_folder / 'plan-3.json'}"
    planned = study(HELD_OUT.settings, file, repeats=1, batch=2)
    results = run(planned, tmp_path / "run", pipe=tiny.stable_diffusion())
    measured = results.runs[
        (results.runs["variant"] == file) & (results.runs["phase"] == "measured")
    ]
    assert measured["nfe"].tolist() == [9]
    expected = of_three[of_three["variant"] == "plan"].set_index("seed")["ssim"].sort_index()
    found = results.images[results.images["variant"] == file].set_index("seed")["ssim"].sort_index()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_folder_with_plans_is_not_written_over(plans, plans_folder):
    pipe = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="already holds a study"):
        plan(pipe, generation(), HELD_OUT, Target((2,)), plans_folder, metric="ssim")


@pytest.mark.slow
def test_a_plan_for_a_bound_or_for_a_saving_is_one_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "TIMING_REPEATS", 1)
    pipe = tiny.stable_diffusion()
    bounded = plan(
        pipe,
        generation(),
        HELD_OUT,
        Target(bound=-1.0),
        tmp_path / "bound",
        metric="ssim",
        rounds=0,
    )
    assert len(set(bounded.judged["unguided"])) == 1  # which every mask keeps
    monkeypatch.setattr(planning, "guidance_ratio", lambda results: Interval(2.0, 1.9, 2.1))
    monkeypatch.setattr(planning, "denoise_share", lambda results: 1.0)
    saving = plan(
        pipe,
        generation(),
        HELD_OUT,
        Target(saving=0.25),
        tmp_path / "saving",
        metric="ssim",
        rounds=0,
    )
    assert set(saving.judged["unguided"]) == {3}


@pytest.mark.slow
def test_an_overwritten_folder_keeps_no_older_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "TIMING_REPEATS", 1)
    pipe = tiny.stable_diffusion()
    for unguided, mode in ((2, "new"), (3, "overwrite")):
        plan(
            pipe,
            generation(),
            HELD_OUT,
            Target((unguided,)),
            tmp_path,
            metric="ssim",
            rounds=0,
            mode=mode,
        )
    assert [path.name for path in tmp_path.glob("plan-*.json")] == ["plan-3.json"]


def test_a_stored_call_depends_on_what_its_schedule_file_held(tmp_path):
    path, found = tmp_path / "plan.json", set()
    for mask in ("111000", "110100"):
        path.write_text(json.dumps({"mask": mask, "scheduler": "DDIMScheduler"}))
        found |= {unit.id for unit in units(study(generation().settings, f"plan:{path}"))}
    assert len(found) == 9 + 2 * 9  # calls of the baseline are the same


def test_what_has_no_value_cannot_be_tuned():
    tuner = Tuner(
        tiny.stable_diffusion(),
        generation(prompts=["a dream"]),
        "alignment",
        steps=6,
        max_rows=4,
    )
    with pytest.raises(ValueError, match="alignment has no value for 'a dream'"):
        search(tuner, 2)


def test_a_schedule_of_another_length_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"mask": "110", "scheduler": "DDIMScheduler"}))
    with pytest.raises(ValueError, match="the schedule has 3 steps but the loop runs 6"):
        run(
            study(generation().settings, f"plan:{path}"),
            tmp_path / "run",
            pipe=tiny.stable_diffusion(),
        )


TIMING = pd.DataFrame(
    [("cfg", 0.0, np.nan, np.nan), ("last:5", 0.08, 0.07, 0.09), ("steps:45", 0.1, 0.09, 0.11)],
    columns=["variant", "saving", "saving_lo", "saving_hi"],
).assign(disturbance="")


def judged_frame(values):
    rows = [
        {
            "unguided": 5,
            "variant": name,
            "prompt_id": f"{p}",
            "prompt": f"caption {p}",
            "seed": 0,
            "draw": pd.NA,
            "nfe": 95,
            "lpips": value + 0.01 * (p % 3),
        }
        for name, offsets in values.items()
        for p, value in enumerate(offsets)
    ]
    return pd.DataFrame(rows)


def test_the_table_says_where_the_plan_wins_and_where_it_does_not():
    rng = np.random.default_rng(0)
    base = rng.uniform(0.1, 0.2, 100)
    noise = rng.normal(0, 0.01, (3, 100))
    values = {"plan": base, "last:5": base + 0.05 + noise[0], "first:5": base - 0.05 + noise[1]}
    values |= {
        "random:5@0": base + noise[2] - noise[2].mean(),
        "every:10": base,
        "cfg": np.zeros(100),
    }
    values |= {"steps:45": base + 0.1, "scale:4.00": base + 0.2}
    table = plan_table(
        judged_frame(values), "lpips", higher_is_better=False, timing=TIMING
    ).set_index("variant")
    assert table["verdict"].to_dict() == {
        "plan": "",
        "last:5": "plan nearer",
        "first:5": "plan farther",
        "random:5@0": "undecided",
        "every:10": "identical",
        "steps:45": "plan nearer",
        "scale:4.00": "plan nearer",
    }
    assert table["worse"]["last:5"] == pytest.approx(0.05, abs=0.01)
    assert table["saving"][["plan", "first:5", "steps:45", "scale:4.00"]].tolist() == [
        0.08,
        0.08,
        0.1,
        0,
    ]
    assert table["saving_lo"]["plan"] == 0.07
    reversed_table = plan_table(judged_frame(values), "lpips", higher_is_better=True, timing=TIMING)
    reversed_table = reversed_table.set_index("variant")
    assert reversed_table["verdict"]["last:5"] == "plan farther"


def test_controls_of_other_captions_are_not_joined_by_their_numbers():
    """Both tables count their captions from 0, and share the last three of them."""
    frame = judged_frame({"plan": np.full(8, 0.1), "last:5": np.full(8, 0.2)})
    other = frame["variant"] == "last:5"
    captions = frame["prompt_id"].astype(int) + 5
    frame.loc[other, "prompt"] = "caption " + captions[other].astype(str)
    said = "'last:5' was judged on 8 pairs of caption and seed, and shares 3 of the plan's 8"
    with pytest.raises(ValueError, match=said):
        plan_table(frame, "lpips", higher_is_better=False, timing=TIMING)


def test_controls_of_another_seed_are_not_joined_by_their_captions():
    frame = judged_frame({"plan": np.full(8, 0.1), "last:5": np.full(8, 0.2)})
    frame.loc[frame["variant"] == "last:5", "seed"] = 1
    with pytest.raises(ValueError, match="shares 0 of the plan's 8"):
        plan_table(frame, "lpips", higher_is_better=False, timing=TIMING)


def test_controls_are_joined_by_caption_and_seed_whatever_their_numbers():
    values = {"plan": np.linspace(0.1, 0.2, 80), "last:5": np.linspace(0.15, 0.35, 80)}
    frame = judged_frame(values)
    other = frame["variant"] == "last:5"
    frame.loc[other, "prompt_id"] = frame.loc[other, "prompt_id"].to_numpy()[::-1]
    tables = [
        plan_table(given, "lpips", higher_is_better=False, timing=TIMING)
        for given in (frame, judged_frame(values))
    ]
    pd.testing.assert_frame_equal(*tables)


def test_a_mean_that_few_images_decide_gives_no_plain_verdict():
    """In 97 of 100 pairs the plan is nearer; in the others it makes another image."""
    plan = np.full(100, 0.01)
    flipped = plan.copy()
    flipped[:3] = 0.6
    values = {"plan": flipped, "last:5": plan + 0.002}
    table = plan_table(judged_frame(values), "lpips", higher_is_better=False, timing=TIMING)
    rival = table.set_index("variant").loc["last:5"]
    assert rival["worse"] < 0 < rival["worse_hi"]
    assert rival["plan_better"] == 0.97
    assert rival["verdict"] == "plan nearer in most images, farther in a few"
