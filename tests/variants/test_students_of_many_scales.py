"""Students that are given the guidance scale: by an embedding or by their denoiser's own input."""

import json

import pytest
import torch
from safetensors.torch import save_file

import sdbench
from sdbench.distill.examples import Examples
from sdbench.distill.student import lora_student
from sdbench.models.students import CARD_FILE, EMBEDDING_FILE, LORA_FILE, base_record
from sdbench.records.files import write_json
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.guidance import guided_by
from sdbench.variants.schedule import GuidanceSchedule
from sdbench.variants.student_weights import student_in
from tests import tiny
from tests.variants.students import SCALE, assert_same, refused, saved, state


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
