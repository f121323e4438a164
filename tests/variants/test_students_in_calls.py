"""What a student does in calls and studies: its evaluations, its steps, mini-sd's own."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

import sdbench
from sdbench.models.grammars import held_out_captions
from sdbench.models.registry import MINI_SD, MODELS
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener
from tests import tiny
from tests.variants.students import SCALE, assert_same, saved, state


def test_a_study_runs_students_and_its_calls_depend_on_their_weights(tmp_path):
    folder = tmp_path / "student"
    saved(folder)
    name = f"lora:{folder}"
    fields = {
        "prompts": tiny.PROMPTS,
        "seeds": [0],
        "num_steps": 4,
        "guidance_scale": SCALE,
        "metrics": ["ssim"],
    }
    study = Study(model="tiny", variants=["cfg", "unguided", name], repeats=1, **fields)
    pipe = tiny.stable_diffusion()
    results = run(study, tmp_path / "run", pipe=pipe)
    assert set(results.runs["status"]) == {"ok"}
    measured = results.runs[results.runs["phase"] == "measured"].set_index("variant")
    assert measured["nfe"].to_dict() == {"cfg": 8, "unguided": 4, name: 4}
    quality = results.images.groupby("variant")["ssim"].mean()
    assert quality["unguided"] != quality[name] < 0.999
    before = parse(name).content
    saved(folder, rank=3)
    assert parse(name).content != before


def test_a_student_does_not_fit_a_compiled_denoiser(tmp_path):
    saved(tmp_path / "student")
    fields = {
        "prompts": ["a"],
        "seeds": [0],
        "num_steps": 4,
        "guidance_scale": SCALE,
        "metrics": [],
    }
    study = Study(
        model="t", variants=["cfg", f"lora:{tmp_path / 'student'}"], execution="compile", **fields
    )
    with pytest.raises(ValueError, match="set execution to eager"):
        run(study, tmp_path / "run", pipe=tiny.stable_diffusion())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:nowhere", "there is no file or folder 'nowhere'"),
        ("full:nowhere", "there is no file or folder 'nowhere'"),
        ("lora:sdbench", "'sdbench' holds no LoRA"),
        ("full:sdbench", "'sdbench' holds no whole denoiser"),
        ("full", "expected full:PATH"),
    ],
)
def test_a_student_that_is_not_there_is_refused_when_its_name_is_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_model_without_an_adapter_of_its_own_says_so():
    pipe = tiny.stable_diffusion()
    with (
        pytest.raises(ValueError, match="has no adapter of its own"),
        applied(pipe, parse("lora"), guidance_scale=SCALE),
    ):
        pass


def test_a_student_needs_one_pass_per_step_and_counts_so(tmp_path):
    saved(tmp_path / "student")
    pipe, variant = tiny.stable_diffusion(), parse(f"lora:{tmp_path / 'student'}")
    with tiny.counted_rows(pipe) as rows, applied(pipe, variant, guidance_scale=SCALE) as trace:
        tiny.run(pipe)
    assert rows == [2] * 4  # two images
    assert not trace.steps["guided"].any()


def test_a_schedule_guides_the_base_and_gives_its_unguided_steps_to_the_student(tmp_path):
    student, pipe = saved(tmp_path), tiny.stable_diffusion()
    before = state(pipe)
    with (
        tiny.counted_rows(pipe) as rows,
        applied(pipe, parse(f"last:2+lora:{tmp_path}"), guidance_scale=SCALE),
    ):
        found = tiny.run(pipe)
    assert rows == [4, 4, 2, 2]
    assert_same(state(pipe), before)
    student.denoiser.disable_adapters()  # the oracle: the same by hand
    with guided_by(
        student.pipe, GuidanceSchedule.last(4, 2), listeners=[OnFrom(student.denoiser, 2)]
    ):
        expected = tiny.run(student.pipe)
    tiny.assert_same_latents(found, expected, tolerance=1e-4)
    with applied(pipe, parse("last:2"), guidance_scale=SCALE):
        assert not torch.allclose(tiny.run(pipe), found, atol=1e-3)


class OnFrom(Listener):
    def __init__(self, denoiser, step):
        self.denoiser, self.step = denoiser, step

    def step_ends(self, step):
        if step.index + 1 == self.step:
            self.denoiser.enable_adapters()


def test_a_full_mask_with_a_student_is_the_base(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    with applied(pipe, parse(f"last:0+lora:{tmp_path}"), guidance_scale=SCALE):
        assert torch.equal(tiny.run(pipe), plain)


def test_two_students_at_once_are_refused(tmp_path):
    saved(tmp_path)
    with pytest.raises(ValueError, match="is a student already"):
        parse(f"lora:{tmp_path}+lora:{tmp_path}")


@pytest.fixture(scope="module")
def mini_sd():
    pipe = StableDiffusionPipeline.from_pretrained(MINI_SD)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, captions, variant, *, steps, scale=5.0):
    noise = [torch.Generator("cpu").manual_seed(seed) for seed in range(len(captions))]
    with applied(pipe, parse(variant), guidance_scale=scale) as trace:
        images = pipe(
            captions,
            num_inference_steps=steps,
            guidance_scale=scale,
            generator=noise,
            output_type="pt",
        ).images
    return images.clamp(0, 1), trace.steps["rows"].tolist()


def test_mini_sd_comes_with_an_adapter_of_its_own_for_one_scale(mini_sd):
    assert sum(path.stat().st_size for path in Path(MODELS["mini-sd"].adapter).iterdir()) <= 1.5e6
    captions = ["a large red circle on a white background"] * 2
    before = state(mini_sd)
    student, rows = drawn(mini_sd, captions, "lora", steps=2)
    unguided, _ = drawn(mini_sd, captions, "unguided", steps=2)
    assert rows == [2, 2]
    assert torch.isfinite(student).all()
    assert float((student - unguided).abs().max()) > 0.05
    assert_same(state(mini_sd), before)
    with pytest.raises(ValueError, match="made for a guidance scale of 5, not 4"):
        drawn(mini_sd, captions, "lora", steps=2, scale=4.0)


@pytest.mark.network
@pytest.mark.slow  # 64 images of 50 steps
def test_the_adapter_of_mini_sd_is_nearer_to_guidance_than_no_guidance(mini_sd):
    captions = held_out_captions(16)
    images = {
        variant: drawn(mini_sd, captions, variant, steps=50)[0]
        for variant in ("cfg", "unguided", "lora")
    }
    distance = {
        name: float(sdbench.score("lpips", images[name], images["cfg"]).mean()) for name in images
    }
    assert distance["cfg"] == 0
    assert distance["lora"] <= 0.5 * distance["unguided"]
