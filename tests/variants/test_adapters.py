import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file, save_file

import sdbench
from sdbench.distill.captions import held_out_captions
from sdbench.distill.examples import Examples
from sdbench.distill.student import full_student, lora_student
from sdbench.models.registry import MINI_SD, MODELS
from sdbench.models.students import CARD_FILE, DENOISER_FILE, EMBEDDING_FILE, LORA_FILE, base_record
from sdbench.records.files import write_json
from sdbench.study.runner import run
from sdbench.study.study import Study
from sdbench.variants.adapters import applied, student_in
from sdbench.variants.guidance import guided_by
from sdbench.variants.registry import parse
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.trace import Listener
from tests import tiny

SCALE = 7.5
FILES = {"lora": LORA_FILE, "full": DENOISER_FILE}


def saved(folder, *, method="lora", card=True, **changes):
    """A student with random weights, which change the images and are none that the file would round."""
    pipe = tiny.stable_diffusion()
    base = base_record(pipe.unet)
    settings = {"rank": 2, "alpha": 4, "targets": ("attention", "convolutions")} | changes
    student = full_student(pipe) if method == "full" else lora_student(pipe, **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in student.learnt.values():
            weight.add_(0.1 * torch.randn_like(weight))
            if method == "lora":
                weight.copy_(weight.half())
    student.save(folder)
    if card:
        scales = {"guidance_scale": SCALE}
        if student.strength is not None:
            scales = {"guidance_scale": None, "w_range": list(student.strength.w_range)}
        write_json(folder / CARD_FILE, {"model": "tiny", "base": base} | scales)
    return student


def without_a_factor(file):
    weights = load_file(file)
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, file, {"format": "pt"})


def state(pipe):
    return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_student_is_put_in_and_the_base_comes_back_bitwise(tmp_path, method):
    student, pipe = saved(tmp_path, method=method), tiny.stable_diffusion()
    before, plain = state(pipe), tiny.run(pipe)
    modules = [type(module) for module in pipe.unet.modules()]
    with student.in_place(SCALE):
        expected = tiny.run(student.pipe)
    with student_in(pipe, tmp_path / FILES[method], guidance_scale=SCALE):
        assert [
            type(module) for module in pipe.unet.modules()
        ] == modules  # a step costs what it costs without
        found = tiny.run(pipe)
    assert_same(state(pipe), before)
    with (
        pytest.raises(ZeroDivisionError),
        student_in(pipe, tmp_path / FILES[method], guidance_scale=SCALE),
    ):
        raise ZeroDivisionError
    tiny.assert_same_latents(found, expected, tolerance=1e-4)
    assert float((found - plain).abs().max()) > 1e-2
    assert_same(state(pipe), before)
    assert torch.equal(tiny.run(pipe), plain)


def test_stock_diffusers_loads_what_is_saved(tmp_path):
    saved(tmp_path)
    ours, stock = tiny.stable_diffusion(), tiny.stable_diffusion()
    with student_in(ours, tmp_path / LORA_FILE, guidance_scale=SCALE):
        expected = tiny.run(ours)
    stock.load_lora_weights(tmp_path)
    tiny.assert_same_latents(tiny.run(stock), expected, tolerance=1e-4)


def test_a_new_adapter_changes_nothing(tmp_path):
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    lora_student(pipe, rank=2, alpha=2, targets=("attention", "feed-forward")).save(tmp_path)
    assert torch.equal(tiny.run(pipe), plain)
    other = tiny.stable_diffusion()
    with student_in(other, tmp_path / LORA_FILE, guidance_scale=SCALE):
        assert torch.equal(tiny.run(other), plain)


def test_putting_a_student_in_warns_of_nothing(tmp_path):
    saved(tmp_path)
    heard, handler = [], logging.Handler(logging.WARNING)
    handler.emit = heard.append
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_warning()
    diffusers_logging.add_handler(handler)
    try:
        tiny.stable_diffusion().load_lora_weights(tmp_path)
        assert heard.pop().getMessage().startswith("No LoRA keys")  # what stock diffusers says
        heard.clear()
        with student_in(tiny.stable_diffusion(), tmp_path / LORA_FILE, guidance_scale=SCALE):
            pass
        assert heard == []
    finally:
        diffusers_logging.remove_handler(handler)
        diffusers_logging.set_verbosity(before)


def refused(pipe, folder, message):
    with (
        pytest.raises(ValueError, match=message),
        student_in(pipe, folder / LORA_FILE, guidance_scale=SCALE),
    ):
        pass


def test_a_student_of_another_scale_or_base_is_refused(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    with (
        pytest.raises(ValueError, match=r"made for a guidance scale of 7\.5, not 3"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=3.0),
    ):
        pass
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.2)
    with (
        pytest.raises(ValueError, match="made for another base"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass
    xl = tiny.stable_diffusion_xl()
    with (
        pytest.raises(ValueError, match="made for another base"),
        student_in(xl, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass


def test_half_precision_is_still_the_same_base(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.to(torch.bfloat16)
    with student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE):
        pass


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / LORA_FILE).unlink(), "is no adapter for StableDiffusionPipeline"),
        (
            lambda folder: (folder / LORA_FILE).write_bytes(b"nothing"),
            "is no adapter for StableDiffusionPipeline",
        ),
        (
            lambda folder: without_a_factor(folder / LORA_FILE),
            "of a layer it holds one factor alone",
        ),
        (lambda folder: (folder / CARD_FILE).write_text("["), "is not readable JSON"),
    ],
    ids=["missing", "broken", "half", "card"],
)
def test_what_is_no_student_is_named(tmp_path, spoil, message):
    saved(tmp_path)
    spoil(tmp_path)
    pipe = tiny.stable_diffusion()
    before = state(pipe)
    refused(pipe, tmp_path, message)
    assert_same(state(pipe), before)


def test_a_pipeline_with_adapters_of_its_own_is_refused(tmp_path):
    saved(tmp_path)
    pipe = tiny.stable_diffusion()
    pipe.load_lora_weights(tmp_path)
    with (
        pytest.raises(ValueError, match="already has adapters"),
        student_in(pipe, tmp_path / LORA_FILE, guidance_scale=SCALE),
    ):
        pass
    assert pipe.get_list_adapters()


def test_a_student_needs_one_pass_per_step_and_counts_so(tmp_path):
    saved(tmp_path / "student")
    pipe, variant = tiny.stable_diffusion(), parse(f"lora:{tmp_path / 'student'}")
    with tiny.counted_rows(pipe) as rows, applied(pipe, variant, guidance_scale=SCALE) as trace:
        tiny.run(pipe)
    assert rows == [2] * 4  # two images
    assert not trace.steps["guided"].any()


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
    with pytest.raises(ValueError, match="execution must be eager"):
        run(study, tmp_path / "run", pipe=tiny.stable_diffusion())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora:nowhere", "'nowhere' holds no LoRA"),
        ("full:nowhere", "'nowhere' holds no whole denoiser"),
        ("full", "expected full:PATH"),
    ],
)
def test_a_student_that_is_not_there_is_refused_when_its_name_is_read(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_model_without_an_adapter_of_its_own_says_so():
    pipe = tiny.stable_diffusion()
    with (
        pytest.raises(ValueError, match="comes without an adapter of its own"),
        applied(pipe, parse("lora"), guidance_scale=SCALE),
    ):
        pass


def test_the_alpha_is_in_the_saved_weights(tmp_path):
    plain, scaled = saved(tmp_path / "a", alpha=2), saved(tmp_path / "b", alpha=4)
    a, b = (load_file(tmp_path / name / LORA_FILE) for name in "ab")
    assert json.dumps(sorted(a)) == json.dumps(sorted(b))
    assert plain.alpha == 1.0
    assert scaled.alpha == 2.0
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight * (2.0 if ".lora_B." in name else 1.0))


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


def test_a_student_of_many_scales_is_told_the_scale_and_the_base_comes_back(tmp_path):
    student, pipe = saved(tmp_path, w_range=(2.0, 8.0)), tiny.stable_diffusion()
    before, plain = state(pipe), tiny.run(pipe)
    images = {}
    for scale in (3.0, SCALE):
        with applied(pipe, parse(f"lora:{tmp_path}"), guidance_scale=scale) as trace:
            images[scale] = tiny.run(pipe)
        assert not trace.steps["guided"].any()
        with student.in_place(scale), guided_by(student.pipe, GuidanceSchedule.none):
            tiny.assert_same_latents(images[scale], tiny.run(student.pipe), tolerance=1e-4)
    assert float((images[3.0] - images[SCALE]).abs().max()) > 1e-3
    assert_same(state(pipe), before)
    assert torch.equal(tiny.run(pipe), plain)


def told_by_its_input(folder):
    """A student of many scales of a denoiser that takes a guidance scale itself."""
    pipe = tiny.flux(guidance_embeds=True)
    base = base_record(pipe.transformer)
    student = lora_student(pipe, rank=2, alpha=2, targets=("attention",), w_range=(2.0, 8.0))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in student.learnt.values():
            weight.add_(0.1 * torch.randn_like(weight)).copy_(
                weight.half()
            )  # the file holds float16
    student.save(folder)
    write_json(
        folder / CARD_FILE,
        {"model": "tiny", "base": base, "guidance_scale": None, "w_range": [2.0, 8.0]},
    )
    return student


def test_a_denoiser_that_takes_a_scale_is_told_it_there(tmp_path):
    student, pipe = told_by_its_input(tmp_path), tiny.flux(guidance_embeds=True)
    assert (student.projection, (tmp_path / EMBEDDING_FILE).exists()) == (None, False)
    plain, images = tiny.run(pipe), {}
    for scale in (3.0, SCALE):
        with applied(pipe, parse(f"lora:{tmp_path}"), guidance_scale=scale) as trace:
            images[scale] = tiny.run(pipe)
        assert not trace.steps["guided"].any()
        with student.in_place(scale), guided_by(student.pipe, GuidanceSchedule.none):
            tiny.assert_same_latents(images[scale], tiny.run(student.pipe), tolerance=1e-4)
        alone = tiny.run(
            student.pipe, guidance_scale=scale, true_cfg_scale=1.0
        )  # the oracle: stock, in one pass
        tiny.assert_same_latents(images[scale], alone, tolerance=1e-4)
    assert float((images[3.0] - images[SCALE]).abs().max()) > 1e-4
    assert torch.equal(tiny.run(pipe), plain)


def given(student, scales):
    """What the student's call gets for rows that are taught these scales."""
    rows = torch.zeros(len(scales), 3)
    examples = Examples(
        (), {"guidance": rows[:, 0] + 3.5}, rows, rows, rows[:, 0], torch.tensor(scales)
    )
    return student.given(examples)[1]


def test_each_row_is_told_the_scale_that_it_is_taught(tmp_path):
    assert given(told_by_its_input(tmp_path), [2.0, 8.0])["guidance"].tolist() == [2.0, 8.0]


@pytest.mark.parametrize("targets", [("attention", "feed-forward"), ("convolutions", "timestep")])
def test_each_row_has_the_strength_that_its_scale_asks_for(tmp_path, targets):
    student = saved(tmp_path, w_range=(1.0, 10.0), targets=targets)
    torch.manual_seed(0)
    sample, text = torch.randn(3, 4, 8, 8), torch.randn(3, 7, tiny.WIDTH)
    call = {"timestep": torch.tensor(500), "encoder_hidden_states": text, "return_dict": False}
    scales = [1.0, 4.0, 10.0]
    with torch.no_grad():
        (together,) = student.denoiser(
            sample, **call, timestep_cond=given(student, scales)["timestep_cond"]
        )
        for row, scale in enumerate(scales):
            told = given(student, [scale] * 3)["timestep_cond"]
            torch.testing.assert_close(
                student.denoiser(sample, **call, timestep_cond=told)[0][row], together[row]
            )
    with student.teaching():
        (teacher,) = student.denoiser(sample, **call)
    torch.testing.assert_close(together[0], teacher[0])
    assert float((together[1:] - teacher[1:]).abs().amax(dim=(1, 2, 3)).min()) > 1e-3


def test_at_w_1_a_student_of_many_scales_is_the_conditional_teacher(tmp_path):
    saved(tmp_path, w_range=(1.0, 8.0))
    pipe = tiny.stable_diffusion()
    with guided_by(pipe, GuidanceSchedule.none):
        conditional = tiny.run(pipe)
    found = {}
    for scale in (1.0, 1.0001, 2.0):
        with (
            student_in(pipe, tmp_path / LORA_FILE, guidance_scale=scale),
            guided_by(pipe, GuidanceSchedule.none),
        ):
            found[scale] = float((tiny.run(pipe) - conditional).abs().max())
    assert found[1.0] == 0
    assert 0 < found[1.0001] < 0.1 * found[2.0]


def test_load_opens_a_student_of_many_scales_as_a_stock_pipeline(tmp_path):
    saved(tmp_path / "student", w_range=(2.0, 6.0))
    base = tiny.stable_diffusion()
    base.save_pretrained(tmp_path / "base")
    card = json.loads((tmp_path / "student" / CARD_FILE).read_text()) | {
        "model": str(tmp_path / "base")
    }
    write_json(tmp_path / "student" / CARD_FILE, card)
    stock = sdbench.load(tmp_path / "student", device="cpu")
    stock.call, found = base.call, {}
    for scale in (4.0, 6.0, 4.0):  # fused anew for each
        with applied(base, parse(f"lora:{tmp_path / 'student'}"), guidance_scale=scale):
            expected = tiny.run(base)
        with tiny.counted_rows(stock) as rows:
            images = tiny.run(stock, guidance_scale=scale)
        assert rows == [2] * 4  # stock guidance is off
        tiny.assert_same_latents(images, expected, tolerance=1e-4)
        assert torch.equal(found.setdefault(scale, images), images)
    with pytest.raises(ValueError, match=r"made for guidance scales of 2 to 6, not 7\.5"):
        tiny.run(stock, guidance_scale=7.5)
    assert torch.equal(tiny.run(stock, guidance_scale=4.0), found[4.0])


def test_a_new_student_of_many_scales_is_the_base_and_its_teacher_ignores_the_embedding(tmp_path):
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    with guided_by(pipe, GuidanceSchedule.none):
        unguided = tiny.run(pipe)
    student = lora_student(pipe, rank=2, alpha=2, targets=("attention",), w_range=(2.0, 8.0))
    with student.in_place(SCALE), guided_by(pipe, GuidanceSchedule.none):
        assert torch.equal(tiny.run(pipe), unguided)
    with torch.no_grad():
        student.projection.weight.add_(1.0)
    with student.in_place(SCALE), guided_by(pipe, GuidanceSchedule.none):
        assert not torch.equal(tiny.run(pipe), unguided)
    with student.teaching():
        assert torch.equal(tiny.run(pipe), plain)


def test_a_schedule_tells_the_scale_in_unguided_steps_only(tmp_path):
    saved(tmp_path, w_range=(2.0, 8.0))
    pipe = tiny.stable_diffusion()
    plain = tiny.run(pipe)
    with applied(pipe, parse(f"last:0+lora:{tmp_path}"), guidance_scale=SCALE):
        assert torch.equal(tiny.run(pipe), plain)
    with applied(pipe, parse(f"last:2+lora:{tmp_path}"), guidance_scale=SCALE) as trace:
        assert not torch.equal(tiny.run(pipe), plain)
    assert trace.steps["guided"].tolist() == [True, True, False, False]


def test_a_scale_beyond_the_range_is_refused(tmp_path):
    saved(tmp_path, w_range=(2.0, 8.0))
    with (
        pytest.raises(ValueError, match="made for guidance scales of 2 to 8, not 9"),
        student_in(tiny.stable_diffusion(), tmp_path / LORA_FILE, guidance_scale=9.0),
    ):
        pass


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"nothing"),
        lambda file: save_file({"other": torch.zeros(2)}, file),
    ],
    ids=["broken", "foreign"],
)
def test_a_spoilt_embedding_is_named_and_nothing_is_changed(tmp_path, spoil):
    saved(tmp_path, w_range=(2.0, 8.0))
    spoil(tmp_path / EMBEDDING_FILE)
    pipe = tiny.stable_diffusion()
    before, learning = state(pipe), [weight.requires_grad for weight in pipe.unet.parameters()]
    refused(pipe, tmp_path, EMBEDDING_FILE)
    assert_same(state(pipe), before)
    assert [weight.requires_grad for weight in pipe.unet.parameters()] == learning


def test_the_embedding_counts_among_the_weights_of_a_student(tmp_path):
    saved(tmp_path, w_range=(2.0, 8.0))
    before = parse(f"lora:{tmp_path}").content
    (tmp_path / EMBEDDING_FILE).unlink()
    assert parse(f"lora:{tmp_path}").content != before


def test_a_pipeline_without_an_embedding_of_the_scale_is_told_so():
    pipe = tiny.stable_diffusion_3()
    with pytest.raises(ValueError, match="StableDiffusion3Pipeline has no `time_cond_proj`"):
        lora_student(pipe, rank=2, alpha=2, targets=("attention",), w_range=(2.0, 8.0))
    assert all("lora" not in name for name, _ in pipe.transformer.named_modules())


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
