"""Budgets on tiny pipelines: who is tried, who wins, what is written, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextModelWithProjection

import sdbench
from sdbench.analysis.spending import best_of_ways, leading, spending_table
from sdbench.experiments import budget
from sdbench.experiments.branching import allowed_rows
from sdbench.experiments.budget import Objective, searched, spend
from sdbench.experiments.evaluating import Evaluator
from sdbench.experiments.spending import Budget, candidates, default_methods, evaluations
from sdbench.experiments.spending_time import StepTimes
from sdbench.study.generation import Generation
from sdbench.study.study import Study
from sdbench.variants.grammar import parse
from tests import tiny


def xl():
    """A tiny random Stable Diffusion XL that reads prompts, by its second text encoder alone."""
    pipe = tiny.stable_diffusion_xl()
    parts = tiny.sd_parts()
    config = parts["text_encoder"].config
    config.projection_dim = config.hidden_size
    encoder = CLIPTextModelWithProjection(config).eval()
    return StableDiffusionXLPipeline(
        pipe.vae,
        None,
        encoder,
        None,
        parts["tokenizer"],
        pipe.unet,
        pipe.scheduler,
    )


METHODS = ["steps", "mask", "cached", "unguided"]


def generation(**changes):
    fields = {
        "prompts": tiny.PROMPTS[:2],
        "seeds": [0],
        "num_steps": 6,
        "guidance_scale": 7.5,
        "batch": 2,
    }
    return Generation(model="tiny", **fields | changes)


HELD_OUT = generation(prompts=["a small red star", "a large blue ring"], seeds=[1])


def nfe(limit, most_steps=12):
    return Budget(limit, "nfe", evaluations, most_steps)


def spent(pipe, out, *budgets, **changes):
    fields = {"objective": Objective({"ssim": 1.0}), "methods": METHODS, "max_rows": 16}
    return spend(pipe, generation(), HELD_OUT, budgets, out, **fields | changes)


@pytest.mark.parametrize("limit", [3, 8, 13])
def test_candidates_keep_the_budget_and_could_not_have_a_step_more(limit):
    own = nfe(limit)
    for candidate in candidates(own, METHODS, [None], guidance_scale=7.5):
        variant = candidate.variant
        assert own.keeps(variant)
        if candidate.method != "mask" and variant.num_steps < own.most_steps:
            assert own.cost(variant, variant.num_steps + 1) > limit


def test_every_method_is_tried_under_every_scheduler():
    found = candidates(nfe(12), ["steps", "lora"], [None, "dpmpp-2m"], guidance_scale=7.5)
    assert [candidate.variant.name for candidate in found] == [
        "steps:6",
        "steps:6+scheduler:dpmpp-2m",
        "lora@12",
        "lora+scheduler:dpmpp-2m@12",
    ]


@pytest.mark.parametrize(
    ("budget", "methods", "message"),
    [
        (nfe(0), METHODS, "a budget of 0 evaluations an image does not pay for one step of any"),
        (nfe(1), ["steps"], "does not pay for one step of any method"),
        (nfe(9), ["deepcache:3"], "which a budget of evaluations does not count"),
        (nfe(9), ["steps:4"], "method 'steps:4' must be one variant without a number of steps"),
        (nfe(9), ["teleport"], "unknown variant 'teleport'"),
    ],
)
def test_what_cannot_be_spent_is_refused(budget, methods, message):
    with pytest.raises(ValueError, match=message):
        candidates(budget, methods, [None], guidance_scale=7.5)


def test_masks_that_share_their_work_have_the_images_of_calls_alone():
    pipe = tiny.stable_diffusion()
    names = ["last:2@5", "mask:01101@5", "steps:5", "unguided@5"]
    rows = allowed_rows(pipe, generation(), 16, metrics=("psnr",))
    how = {"metrics": ("psnr",), "reference": parse("steps:9"), "max_rows": rows, "chunk": 2}
    together = Evaluator(pipe, generation(), **how)
    found = together.evaluate([parse(name) for name in names])
    for name, own in zip(names, found, strict=True):
        (alone,) = Evaluator(pipe, generation(), **how).evaluate(
            [replace(parse(name), guidance_scale=7.5)]
        )
        assert [row["nfe"] for row in own] == [row["nfe"] for row in alone]
        np.testing.assert_allclose(
            [row["psnr"] for row in own], [row["psnr"] for row in alone], atol=0.1
        )
    before = together.rows
    together.evaluate([parse(name) for name in names])
    assert together.rows == before


def test_seconds_add_up_from_the_steps():
    times = StepTimes(2.0, 1.0, {("deepcache", "3"): 0.5}, other_s=4.0, images=2)
    assert times.seconds(parse("cfg"), 3) == 5.0
    assert times.seconds(parse("last:2"), 3) == 4.0
    assert times.seconds(parse("lora"), 3) == 3.5
    assert times.seconds(parse("deepcache:3"), 4) == 3.0


def test_the_recipe_is_the_best_on_the_tuning_pairs_and_runs(tmp_path):
    pipe = tiny.stable_diffusion()
    table = spent(pipe, tmp_path / "budget", nfe(8), reference="cfg@12")
    assert (table["nfe"] <= 8).all()
    best = table.loc[table["tuning_loss"].idxmin(), "variant"]
    file = tmp_path / "budget" / "recipe-8.json"
    recipe = json.loads(file.read_text())
    assert recipe["variant"] == best
    assert recipe["evidence"]["reference"] == "steps:12"
    assert best in recipe["evidence"]["held_out"]

    settings = HELD_OUT.settings | {"num_steps": 6}
    study = Study(**settings, variants=["cfg", best, f"recipe:{file}"], repeats=1, metrics=["ssim"])
    runs = sdbench.run(study, tmp_path / "study", pipe=pipe).runs
    made = runs[runs["phase"] == "measured"].groupby("variant")["sha256"].agg(list)
    assert made[f"recipe:{file}"] == made[best]


def test_a_search_that_was_ended_goes_on_with_the_next_budget(tmp_path, monkeypatch):
    pipe = tiny.stable_diffusion()
    whole = spent(pipe, tmp_path / "whole", nfe(6), nfe(8))
    searches = []

    def counted(tuner, objective, choices):
        searches.append(choices)
        if len(searches) == 2:
            raise KeyboardInterrupt
        return searched(tuner, objective, choices)

    monkeypatch.setattr(budget, "searched", counted)
    out = tmp_path / "ended"
    with pytest.raises(KeyboardInterrupt):
        spent(pipe, out, nfe(6), nfe(8))
    resumed = spent(pipe, out, nfe(6), nfe(8), mode="resume")
    assert len(searches) == 3  # the first budget was not searched again
    pd.testing.assert_frame_equal(resumed, whole)
    for recipe in ("recipe-6.json", "recipe-8.json"):
        assert (out / recipe).read_text() == (tmp_path / "whole" / recipe).read_text()
    with pytest.raises(ValueError, match="holds another study; it differs in methods"):
        spent(pipe, out, nfe(8), methods=["steps"], mode="resume")


def test_a_recipe_of_another_kind_of_pipeline_runs_from_python(tmp_path):
    pipe = xl()
    spent(pipe, tmp_path / "budget", nfe(6), methods=["steps", "mask"])
    file = tmp_path / "budget" / "recipe-6.json"
    study = Study(
        **HELD_OUT.settings, variants=["cfg", f"recipe:{file}"], repeats=1, metrics=["ssim"]
    )
    runs = sdbench.run(study, tmp_path / "study", pipe=pipe).runs
    assert (runs.loc[runs["variant"] != "cfg", "nfe"] <= 6).all()
    assert (runs["status"] == "ok").all()

    other = Study(
        **HELD_OUT.settings, variants=["cfg", f"recipe:{file}"], repeats=1, metrics=["ssim"]
    )
    with pytest.raises(ValueError, match="the recipe was found for the pipeline 'StableDiffusionX"):
        sdbench.run(other, tmp_path / "other", pipe=tiny.stable_diffusion())


def test_what_the_pipeline_lacks_is_left_out_and_named(tmp_path):
    table = spent(
        tiny.stable_diffusion(), tmp_path / "budget", nfe(6), schedulers=[None, "flow-euler"]
    )
    assert set(table["scheduler"]) == {"ddim"}
    record = json.loads((tmp_path / "budget" / "study.json").read_text())
    assert "cannot take the place" in record["unsupported"]["steps under flow-euler"]


def test_methods_of_which_the_pipeline_has_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no method can run on this pipeline"):
        spent(tiny.stable_diffusion(), tmp_path / "budget", nfe(6), schedulers=["flow-euler"])
    with pytest.raises(ValueError, match="has no adapter of its own"):
        spent(tiny.stable_diffusion(), tmp_path / "budget", nfe(6), methods=["lora"])


def test_a_model_without_a_student_is_not_asked_for_one():
    assert "lora" not in default_methods(tiny.stable_diffusion())
    assert default_methods(sdbench.load("mini-sd"))[-1] == "lora"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("{", "is not readable JSON"),
        ("[]", "holds a list; expected an object"),
        ("{}", "variant"),
        ('{"variant": 3, "pipeline": {}, "guidance_scale": 5}', "variant"),
        ('{"variant": "recipe:x", "pipeline": {}, "guidance_scale": 5}', "names another recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, content, message):
    file = tmp_path / "recipe.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message):
        parse(f"recipe:{file}")


def made_up(values, budget=8.0):
    """Rows of one budget: a metric per pair for every variant, the first chosen."""
    return pd.DataFrame(
        {
            "budget": budget,
            "budget_unit": "nfe",
            "method": method,
            "scheduler": "ddim",
            "variant": f"{method}@{budget:g}",
            "tuning_loss": float(place),
            "prompt_id": f"{pair:03d}",
            "seed": 0,
            "nfe": budget,
            "lpips": value + 0.001 * (pair % 5),
        }
        for place, (method, value) in enumerate(values.items())
        for pair in range(80)
    )


def test_the_table_says_who_was_chosen_and_who_is_farther():
    table = spending_table(made_up({"lora": 0.1, "steps": 0.6}), "lpips", higher_is_better=False)
    assert table["chosen"].tolist() == [True, False]
    assert table["verdict"].tolist() == ["", "farther"]
    assert table["worse"][1] == pytest.approx(0.5)


def test_words_say_where_the_best_way_changes():
    rows = [
        made_up({"lora": 0.1, "steps": 0.6}, budget=8.0),
        made_up({"lora": 0.1, "steps": 0.6}, budget=16.0),
        made_up({"steps": 0.1, "lora": 0.6}, budget=40.0),
    ]
    table = spending_table(pd.concat(rows), "lpips", higher_is_better=False)
    assert len(best_of_ways(table)) == 6
    assert leading(table, "lpips", higher_is_better=False) == [
        "at 8 to 16 evaluations lora under ddim has the best mean lpips; "
        "the variant chosen there is clearly better than every other way at 2 of 2 budgets",
        "at 40 evaluations steps under ddim has the best mean lpips; "
        "the variant chosen there is clearly better than every other way at 1 of 1 budgets",
    ]
