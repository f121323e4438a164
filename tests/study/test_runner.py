import dataclasses
import json
import sys
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

import sdbench
from sdbench.models.formula import learn_scale
from sdbench.models.registry import load
from sdbench.records.store import read
from sdbench.study import check, images, local, runner
from sdbench.study.call import Call, ready
from sdbench.study.estimate import estimate
from sdbench.study.study import Study
from sdbench.study.units import units
from sdbench.variants.grammar import parse
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Unsupported
from sdbench.variants.variant import Accelerator, Variant
from tests import tiny

PROMPTS = ["a large red circle on a white background", "a small blue ring on a black background"]
SMALL = Study(
    model="mini-sd",
    variants=["cfg", "last:50%", "steps:3", "unguided"],
    prompts=PROMPTS,
    seeds=[0],
    num_steps=4,
    guidance_scale=5.0,
    repeats=2,
    metrics=["psnr", "ssim", "alignment"],
    negative_prompt="blurry",
    arguments={"guidance_rescale": 0.2},
)

TINY = dataclasses.replace(SMALL, model="tiny", metrics=())
"""For what does not depend on the images: how calls are ordered, recorded, refused and resumed."""


@pytest.fixture(scope="module")
def pipe():
    return load("mini-sd")


@pytest.fixture(scope="module")
def quick():
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def results(pipe, tmp_path_factory):
    return runner.run(SMALL, tmp_path_factory.mktemp("study"), pipe=pipe)


def test_a_study_of_images_alone_needs_no_warmup(tmp_path, quick):
    study = dataclasses.replace(TINY, warmups=0, repeats=1)
    results = runner.run(study, tmp_path / "study", pipe=quick)
    assert set(results.runs["phase"]) == {"measured"}
    assert (results.runs["status"] == "ok").all()
    summary = sdbench.summarise(results)
    assert summary["peak_bytes"].isna().all()
    assert summary["latency_s"].notna().all()


def test_every_call_is_a_row_and_every_step_another(results):
    assert len(results.runs) == 4 * (1 + 2)
    assert (results.runs["status"] == "ok").all()
    assert len(results.steps) == 3 * (4 + 4 + 3 + 4)


def test_rows_and_work_follow_the_variant(results):
    runs = results.runs.drop_duplicates("variant").set_index("variant")
    assert runs["nfe"].to_dict() == {"cfg": 8, "last:50%": 6, "steps:3": 6, "unguided": 4}
    assert runs["rows"].to_dict() == {"cfg": 16, "last:50%": 12, "steps:3": 12, "unguided": 8}
    assert runs["flop"]["cfg"] == 2 * runs["flop"]["unguided"]


def test_the_number_by_which_a_pipeline_was_asked_for_its_scale_is_on_record(results):
    assert results.runs["guidance_scale"].eq(5.0).all()
    assert results.runs["pipeline_scale"].eq(5.0).all()

    pipe = tiny.stable_diffusion()  # as if it took w - 1
    learn_scale(pipe, own=4.0, formula=5.0)
    call = Call(SMALL, parse("cfg"), [("0", PROMPTS[0], 0)])
    with ready(pipe, call) as run:
        assert run.pipeline_scale == 4.0


def test_guided_is_what_ran(results):
    steps = results.steps[
        (results.steps["variant"] == "last:50%") & (results.steps["phase"] == "measured")
    ]
    assert steps.groupby("step")["guided"].first().tolist() == [True, True, False, False]
    assert steps["guidance_cosine"].notna().tolist() == steps["guided"].tolist()


def test_stages_add_up_to_the_call(results):
    runs = results.runs
    assert np.allclose(runs["text_s"] + runs["denoise_s"] + runs["decode_s"], runs["latency_s"])
    assert np.allclose(
        results.steps.groupby("unit")["latency_s"].sum(),
        runs.set_index("unit")["denoise_s"].sort_index(),
    )


def test_memory_is_traced_in_the_warm_up_and_holds_the_weights(results, pipe):
    warm = results.runs[results.runs["phase"] == "warmup"]
    weights = sum(
        p.numel() * 4
        for part in (pipe.unet, pipe.vae, pipe.text_encoder)
        for p in part.parameters()
    )
    assert (warm["peak_bytes"] > weights).all()
    peaks = (
        results.steps[results.steps["phase"] == "warmup"]
        .groupby(["variant", "guided"])["peak_bytes"]
        .max()
    )
    assert peaks["cfg", True] > peaks["unguided", False]


def test_the_noise_floor_of_a_repeat_is_exactly_zero(results):
    floor = results.images[
        results.images["reference_variant"].notna() & (results.images["variant"] == "cfg")
    ]
    assert len(floor) == len(PROMPTS)
    assert (floor["ssim"] == 1).all()
    assert floor["psnr"].isna().all()  # identical images have no finite PSNR


def test_images_repeat_bit_for_bit(results):
    baseline = results.images[results.images["variant"] == "cfg"]
    assert len(baseline) == 2 * len(PROMPTS)
    assert len(baseline.drop_duplicates(["prompt_id", "sha256"])) == len(PROMPTS)


def test_the_baseline_is_what_the_plain_pipeline_makes(results, pipe):
    generators = [torch.Generator("cpu").manual_seed(0) for _ in PROMPTS]
    plain = pipe(
        PROMPTS,
        negative_prompt=["blurry"] * 2,
        guidance_rescale=0.2,
        generator=generators,
        num_inference_steps=4,
        guidance_scale=5.0,
    )
    stored = images.read_images(
        results.folder, results.images.query("variant == 'cfg'")["path"].head(2)
    )
    assert np.array_equal(
        np.stack([np.asarray(image) for image in plain.images]) / np.float32(255),
        stored.permute(0, 2, 3, 1),
    )


def test_an_image_does_not_depend_on_its_batch(pipe, tmp_path, results):
    two = ["cfg", "last:50%"]
    one_by_one = {"batch": 1, "repeats": 1, "metrics": (), "variants": two}
    single = runner.run(dataclasses.replace(SMALL, **one_by_one), tmp_path / "one", pipe=pipe)
    whole = results.images[results.images["variant"].isin(two)]
    pixels = [
        images.read_images(
            folder,
            table.drop_duplicates(["variant", "prompt_id"]).sort_values(["variant", "prompt_id"])[
                "path"
            ],
        )
        for folder, table in ((single.folder, single.images), (results.folder, whole))
    ]
    assert (pixels[0] - pixels[1]).abs().max() <= 1 / 255 + 1e-6


def test_the_tables_summarise(results):
    summary = sdbench.summarise(results).set_index("variant")
    assert summary["ideal_saving"].to_dict() == {
        "cfg": 0,
        "last:50%": 0.25,
        "steps:3": 0.25,
        "unguided": 0.5,
    }
    assert summary["saving_lo"].isna().all()  # two repeats give no interval


def test_an_interrupted_study_is_readable_and_resumes(pipe, tmp_path, monkeypatch, results):
    observe, calls = local.observe, []

    def interrupted(*arguments, **how):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return observe(*arguments, **how)

    study = dataclasses.replace(SMALL, variants=["cfg", "unguided"], timing="calls")
    monkeypatch.setattr(local, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(study, tmp_path, pipe=pipe)
    assert len(read(tmp_path).runs) == 3
    calls.clear()

    def counted(*arguments, **how):
        calls.append(1)
        return observe(*arguments, **how)

    monkeypatch.setattr(local, "observe", counted)
    resumed = runner.run(study, tmp_path, pipe=pipe, mode="resume")
    assert len(calls) == 6 - 3 + 1  # another seed, among the known answers
    columns = ["variant", "prompt_id", "sha256", "ssim"]
    same = results.images[results.images["variant"].isin(["cfg", "unguided"])]
    found, expected = (
        images[columns].sort_values([*columns[:2], "ssim"], ignore_index=True)
        for images in (resumed.images, same)
    )
    pd.testing.assert_frame_equal(found, expected)


def test_a_folder_with_another_study_is_refused_before_anything_runs(
    pipe, tmp_path, monkeypatch, results
):
    monkeypatch.setattr(local, "observe", lambda *arguments: pytest.fail("it ran"))
    with pytest.raises(ValueError, match="--resume continues it, --overwrite replaces it"):
        runner.run(SMALL, results.folder, pipe=pipe)
    other = dataclasses.replace(SMALL, num_steps=5)
    with pytest.raises(ValueError, match="another study; it differs in num_steps"):
        runner.run(other, results.folder, pipe=pipe, mode="resume")


def test_a_failing_call_is_a_failed_row_and_the_rest_goes_on(quick, tmp_path, monkeypatch):
    observe = local.observe

    def failing(pipe, unit, work, **how):
        if unit.variant.name == "unguided" and unit.phase == "measured":
            raise RuntimeError("out of luck")
        return observe(pipe, unit, work, **how)

    monkeypatch.setattr(local, "observe", failing)
    study = dataclasses.replace(TINY, variants=["cfg", "unguided"])
    found = runner.run(study, tmp_path, pipe=quick)
    failed = found.runs[found.runs["status"] == "failed"]
    assert failed["variant"].tolist() == ["unguided"] * 2
    assert failed["message"].str.startswith("RuntimeError: out of luck").all()
    assert len(found.runs) == 6
    assert sdbench.summarise(found).set_index("variant")["failed"]["unguided"] == 2


def refused(pipe, folder, message, **changes):
    with pytest.raises(ValueError, match=message):
        runner.run(dataclasses.replace(SMALL, **changes), folder, pipe=pipe)
    assert not folder.exists()


def test_a_mask_of_the_wrong_length_is_refused_before_the_first_evaluation(pipe, tmp_path):
    refused(
        pipe,
        tmp_path / "x",
        "variant 'mask:101': the schedule has 3 steps but the loop runs 4",
        variants=["cfg", "mask:101"],
    )


def test_a_pipeline_without_guidance_is_refused(tmp_path):
    pipe = load("mini-sd")
    pipe.__class__ = type("Distilled", (type(pipe),), {"do_classifier_free_guidance": False})
    refused(pipe, tmp_path / "x", "runs without guidance")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance_rescal": 0.2}, "StableDiffusionPipeline takes no argument 'guidance_rescal'"),
        ({"output_type": "pil"}, "argument 'output_type' is set by the study"),
        ({"return_dict": False}, "argument 'return_dict' is set by the study"),
        ({"guidance_scale": 3.0}, "argument 'guidance_scale' is set by the study"),
        ({"num_inference_steps": 3}, "argument 'num_inference_steps' is set by the study"),
        ({"prompt": "a"}, "argument 'prompt' is set by the study"),
        ({"guidance_rescale": "much"}, "StableDiffusionPipeline cannot run this study: TypeError"),
    ],
)
def test_arguments_that_the_pipeline_does_not_take_are_refused(pipe, tmp_path, arguments, message):
    refused(pipe, tmp_path / "x", message, arguments=arguments)


def test_an_unreachable_lpips_network_stops_before_the_first_image(pipe, tmp_path, monkeypatch):
    def unreachable(names):
        raise ValueError("LPIPS's network cannot be found")

    monkeypatch.setattr(runner, "provenance", unreachable)
    refused(pipe, tmp_path / "x", "LPIPS's network cannot be found", metrics=["lpips"])


def test_no_space_on_the_disk_ends_the_study_and_keeps_what_was_finished(
    quick, tmp_path, monkeypatch
):
    add, calls = runner.StudyFolder.add, []

    def full(folder, unit, **tables):
        calls.append(unit)
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        add(folder, unit, **tables)

    monkeypatch.setattr(runner.StudyFolder, "add", full)
    study = dataclasses.replace(TINY, variants=["cfg", "unguided"])
    with pytest.raises(OSError, match="No space left"):
        runner.run(study, tmp_path, pipe=quick)
    assert len(read(tmp_path).runs) == 3


def test_an_estimate_counts_the_calls(pipe):
    expected = estimate(SMALL, pipe=pipe)
    assert expected.calls == len(units(SMALL))
    assert expected.seconds > 0
    assert expected.rss_peak_bytes > 1e8


def test_a_method_for_other_pipelines_is_a_row_that_says_why(quick, tmp_path):
    study = dataclasses.replace(TINY, variants=["cfg", "pab:2"], repeats=1)
    results = runner.run(study, tmp_path / "study", pipe=quick)
    runs = results.runs[results.runs["variant"] == "pab:2"]
    assert (runs["status"] == "unsupported").all()
    assert runs["message"].iloc[0] == "diffusers has no caches for UNet2DConditionModel"
    summary = sdbench.summarise(results).set_index("variant")
    assert summary["unsupported"].to_dict() == {
        "cfg": "",
        "pab:2": "diffusers has no caches for UNet2DConditionModel",
    }
    assert summary["failed"].to_dict() == {"cfg": 0, "pab:2": 0}


def test_an_argument_that_the_pipeline_does_not_take_is_unsupported():
    pipe = tiny.stable_diffusion_3()
    call = Call(SMALL, parse("rescale:0.5"), tuple(SMALL.pairs))
    with pytest.raises(Unsupported, match="StableDiffusion3Pipeline takes no guidance_rescale"):
        check._try_variant(pipe, call)


@pytest.mark.parametrize("output", ["image", "latent"])
def test_a_variant_that_changes_nothing_fails_as_inactive(quick, tmp_path, output):
    sizes = {"height": 16, "width": 16}
    variants = ["cfg", "last:0", "scale:5.0", "scale:4.0", "last:1"]
    study = dataclasses.replace(TINY, variants=variants, output=output, repeats=1, **sizes)
    runs = runner.run(study, tmp_path / "study", pipe=quick).runs
    failed = runs[runs["status"] == "failed"]
    assert set(failed["variant"]) == {"last:0", "scale:5.0"}
    assert set(failed["message"]) == {"inactive: as many evaluations as cfg, and the same outcome"}


@pytest.mark.slow
@pytest.mark.parametrize("output", ["image", "latent"])
def test_an_inactive_variant_is_known_when_a_study_is_resumed(quick, tmp_path, output):
    study = dataclasses.replace(
        TINY, variants=["cfg", "last:0"], output=output, height=16, width=16
    )
    runner.run(study, tmp_path / "study", pipe=quick)
    runs = runner.run(study, tmp_path / "study", pipe=quick, mode="resume").runs
    assert set(runs.loc[runs["status"] == "failed", "variant"]) == {"last:0"}


def test_work_within_an_evaluation_is_counted_in_the_warm_up(pipe, tmp_path):
    study = dataclasses.replace(SMALL, variants=["cfg", "deepcache:2"], repeats=1, metrics=())
    results = runner.run(study, tmp_path / "study", pipe=pipe)
    runs = results.runs.set_index(["variant", "phase"])
    assert runs.loc[("deepcache:2", "warmup"), "flop"] < 0.9 * runs.loc[("cfg", "warmup"), "flop"]
    assert pd.isna(runs.loc[("deepcache:2", "measured"), "flop"])
    assert runs.loc[("deepcache:2", "measured"), "rows"] == runs.loc[("cfg", "measured"), "rows"]

    full = sdbench.summarise(results).set_index("variant")["full_forwards"]
    assert runs.loc[("deepcache:2", "warmup"), "full_forwards"] == full["deepcache:2"] == 2
    assert pd.isna(full["cfg"])


def test_what_compiles_for_fixed_rows_refuses_a_batch_that_shrinks(pipe, tmp_path):
    study = dataclasses.replace(SMALL, variants=["cfg", "adaptive:0.9"], execution="compile")
    with pytest.raises(ValueError, match=r"variant 'adaptive:0\.9' changes the compiled network"):
        runner.run(study, tmp_path / "study", pipe=pipe)


def test_an_accelerator_that_fails_in_its_first_steps_is_unsupported(quick, tmp_path):
    def fails(*args):
        raise IndexError("no timestep")

    broken = Variant("mine:2", GuidanceSchedule.full, accelerator=Accelerator("mine", fails))
    study = dataclasses.replace(TINY, variants=["cfg", broken], repeats=1)
    runs = runner.run(study, tmp_path / "study", pipe=quick).runs
    messages = set(runs.loc[runs["status"] == "unsupported", "message"])
    assert messages == {"fails on StableDiffusionPipeline: IndexError: no timestep"}


def test_a_study_stored_before_a_field_existed_is_resumed(quick, tmp_path):
    study = dataclasses.replace(TINY, variants=["cfg", "last:1"], repeats=1)
    runner.run(study, tmp_path / "study", pipe=quick)
    stored = json.loads((tmp_path / "study" / "study.json").read_text())
    del stored["controls"]
    (tmp_path / "study" / "study.json").write_text(json.dumps(stored))
    runs = pd.read_parquet(tmp_path / "study" / "runs.parquet").drop(columns="sha256")
    runs.to_parquet(tmp_path / "study" / "runs.parquet", index=False)
    assert (
        runner.run(study, tmp_path / "study", pipe=quick, mode="resume").runs["status"] == "ok"
    ).all()


class Open:
    """Counts images whose pixels are in memory."""

    now = most = 0

    def track(self, pixels):
        self.now += len(pixels)
        self.most = max(self.most, self.now)
        weakref.finalize(pixels, self.close, len(pixels))
        return pixels

    def close(self, count):
        self.now -= count


@pytest.mark.parametrize("copies", [1, 5])
def test_scoring_opens_no_more_images_at_a_time_in_a_larger_study(results, monkeypatch, copies):
    opened, read_images = Open(), images.read_images
    monkeypatch.setattr(
        images, "read_images", lambda *arguments: opened.track(read_images(*arguments))
    )
    parts = [
        results.images.assign(prompt_id=results.images["prompt_id"] + f"-{n}")
        for n in range(copies)
    ]
    unscored = pd.concat(parts, ignore_index=True)
    found = images.scored(unscored, results.runs, SMALL, results.folder, chunk=4)
    assert opened.most == 2 * 4
    assert opened.now == 0
    for name in ("reference_variant", "ssim", "alignment"):
        pd.testing.assert_series_equal(found[name], unscored[name])


def test_the_images_of_a_call_are_gone_before_the_next_is_done(quick, tmp_path, monkeypatch):
    opened, observe = Open(), local.observe

    def watched(*arguments, **how):
        measured, steps, made = observe(*arguments, **how)
        return measured, steps, dataclasses.replace(made, images=opened.track(made.images))

    monkeypatch.setattr(local, "observe", watched)
    runner.run(
        dataclasses.replace(TINY, variants=["cfg", "unguided"], repeats=1),
        tmp_path / "study",
        pipe=quick,
    )
    assert (opened.most, opened.now) == (len(PROMPTS), 0)


@pytest.mark.slow
def test_a_folder_with_calls_of_another_version_is_refused(quick, tmp_path, monkeypatch):
    study = dataclasses.replace(TINY, variants=["cfg", "last:1"], repeats=1)
    runner.run(study, tmp_path / "study", pipe=quick)
    monkeypatch.setattr("sdbench.study.units._code_version", lambda: "9.9")
    with pytest.raises(
        ValueError,
        match=r"holds 4 calls that are not of this study now: .* another version of sdbench",
    ):
        runner.run(study, tmp_path / "study", pipe=quick, mode="resume")
    assert (
        runner.run(study, tmp_path / "study", pipe=quick, mode="overwrite").runs["status"] == "ok"
    ).all()


@pytest.mark.slow
def test_a_resumed_study_warms_up_before_it_goes_on(quick, tmp_path, monkeypatch):
    observe, calls = local.observe, []

    def interrupted(pipe, unit, work, **how):
        if unit.phase == "measured":
            raise KeyboardInterrupt
        return observe(pipe, unit, work, **how)

    study = dataclasses.replace(TINY, variants=["cfg", "unguided"])
    monkeypatch.setattr(local, "observe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(study, tmp_path / "study", pipe=quick)
    monkeypatch.setattr(local, "observe", observe)
    first_call = local.first_call
    monkeypatch.setattr(
        local,
        "first_call",
        lambda pipe, unit: calls.append(unit.variant.name) or first_call(pipe, unit),
    )
    runner.run(study, tmp_path / "study", pipe=quick, mode="resume")
    assert calls == ["cfg", "unguided"]
    runner.run(study, tmp_path / "whole", pipe=quick)
    assert calls == ["cfg", "unguided"]  # its own warm-ups are enough


def test_calls_in_turn_have_the_device_to_themselves(results):
    assert results.runs["exclusive"].all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"engine": "slurm"}, "unknown engine 'slurm'; there are: local, ray"),
        ({"engine": "ray"}, "a pipeline object cannot be sent to Ray's workers: name the model"),
        ({"workers": 2}, "workers is for engine 'ray'"),
        ({"shard": "3/2"}, "a shard must be i/n with i from 1 to n"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(pipe, tmp_path, how, message):
    with pytest.raises(ValueError, match=message):
        runner.run(SMALL, tmp_path / "study", pipe=pipe, **how)
    assert not (tmp_path / "study").exists()


def test_a_missing_ray_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "sdbench.study.ray", raising=False)
    with pytest.raises(ValueError, match=r"ray is not installed: pip install 'sdbench\[ray\]'"):
        runner.run(SMALL, tmp_path / "study", engine="ray")
