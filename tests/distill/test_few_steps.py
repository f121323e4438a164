"""A student of few steps: what it starts from, what teaches it, and what its folder says."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from sdbench.distill import held_out, trainer
from sdbench.distill.settings import Settings
from sdbench.distill.student import halved_student
from sdbench.distill.trainer import distill
from sdbench.models.students import CARD_FILE, LORA_FILE
from sdbench.records.files import read_table, write_json
from sdbench.variants.adapters import applied
from sdbench.variants.grammar import parse
from sdbench.variants.student_weights import student_in
from tests import tiny
from tests.variants.students import SCALE, assert_same, saved, state

SETTINGS = Settings(
    guidance_scale=SCALE, stage="steps", steps=4, rows=2, num_steps=2, warmup=1, learning_rate=1e-2,
    evaluate_every=4, save_every=2,
)  # fmt: skip
KNOWN = {"model": "tiny", "captions": tiny.PROMPTS, "held_out": tiny.PROMPTS}


@pytest.fixture(autouse=True)
def without_lpips(monkeypatch):
    monkeypatch.setattr(trainer, "provenance", lambda metrics: {})
    monkeypatch.setattr(trainer, "require_size", lambda *size: None)
    monkeypatch.setattr(held_out, "score", lambda name, a, b: (a - b).abs().flatten(1).mean(dim=1))


@pytest.fixture
def start(tmp_path):
    saved(tmp_path / "start")
    return tmp_path / "start"


def train(out, start, pipe=None, *, mode="new", **changes):
    settings = replace(SETTINGS, **changes)
    pipe = pipe or tiny.stable_diffusion()
    return distill(pipe, settings, out, start=start, mode=mode, **KNOWN)


def has_card(folder, **changes):
    card = json.loads((folder / CARD_FILE).read_text("utf-8"))
    write_json(folder / CARD_FILE, card | changes)


@pytest.mark.parametrize("teacher", ["student", "guided"])
def test_it_begins_as_the_student_that_it_starts_from(start, teacher):
    own, other = tiny.stable_diffusion(), tiny.stable_diffusion()
    halved_student(own, start / LORA_FILE, has_own_teacher=teacher == "student")
    with student_in(other, start / LORA_FILE, guidance_scale=SCALE):
        expected = tiny.run(other)
    tiny.assert_same_latents(tiny.run(own), expected, tolerance=1e-4)


def test_its_teacher_stays_while_it_learns(start):
    pipe = tiny.stable_diffusion()
    student = halved_student(pipe, start / LORA_FILE, has_own_teacher=True)
    before = tiny.run(pipe)
    for weight in student.learnt.values():
        weight.data.add_(1.0)
    with student.teaching():
        assert torch.equal(tiny.run(pipe), before)
    assert not torch.equal(tiny.run(pipe), before)
    assert all(weight.requires_grad for weight in student.learnt.values())
    assert len(student.learnt) == len(load_file(start / LORA_FILE))


def test_without_a_teacher_of_its_own_the_base_teaches(start):
    pipe = tiny.stable_diffusion()
    base = tiny.run(pipe)
    student = halved_student(pipe, start / LORA_FILE, has_own_teacher=False)
    with student.teaching():
        assert torch.equal(tiny.run(pipe), base)


@pytest.mark.parametrize(("teacher", "learning_rate"), [("student", 5e-4), ("guided", 5e-3)])
def test_it_learns_and_leaves_the_pipeline_as_it_was(tmp_path, start, teacher, learning_rate):
    pipe = tiny.stable_diffusion()
    before, known = state(pipe), set(vars(pipe.unet))
    long = {"steps": 20, "evaluate_every": 20, "learning_rate": learning_rate}
    folder = train(tmp_path / "out", start, pipe, teacher=teacher, **long)
    assert_same(state(pipe), before)
    assert set(vars(pipe.unet)) == known

    loss = read_table(tmp_path / "out", "training")["held_out_loss"]
    assert loss.iloc[-1] < 0.9 * loss.iloc[0], loss.tolist()
    first, last = (load_file(part / LORA_FILE) for part in (start, folder))
    assert {name: weight.shape for name, weight in last.items()} == {
        name: weight.shape for name, weight in first.items()
    }


def test_its_card_says_how_many_steps_and_what_it_started_from(tmp_path, start):
    card = json.loads((train(tmp_path / "out", start) / CARD_FILE).read_text("utf-8"))
    assert (card["num_steps"], card["guidance_scale"]) == (2, SCALE)
    assert card["start"]["num_steps"] is None
    assert len(card["start"]["sha256"]) == 16
    assert card["settings"]["stage"] == "steps"
    assert "rank" not in card["settings"]  # it is the other student's


def test_each_round_is_the_teacher_of_the_next(tmp_path, start):
    first = train(tmp_path / "first", start)
    second = train(tmp_path / "second", first, num_steps=1)
    card = json.loads((second / CARD_FILE).read_text("utf-8"))
    assert (card["num_steps"], card["start"]["num_steps"]) == (1, 2)


def test_a_run_that_was_cut_short_ends_with_the_same_weights(tmp_path, start, monkeypatch):
    """Within a round of trajectories, whose rows are learnt several times."""
    whole = train(tmp_path / "whole", start)
    monkeypatch.setattr(
        "sdbench.distill.optimisation.write_checkpoint", interrupting(after=1), raising=True
    )
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", start)
    monkeypatch.undo()
    monkeypatch.setattr(trainer, "provenance", lambda metrics: {})
    monkeypatch.setattr(trainer, "require_size", lambda *size: None)
    monkeypatch.setattr(held_out, "score", lambda name, a, b: (a - b).abs().flatten(1).mean(dim=1))
    cut = train(tmp_path / "cut", start, mode="resume")
    assert_same(load_file(cut / LORA_FILE), load_file(whole / LORA_FILE))


def interrupting(*, after):
    """What writes a checkpoint, and then ends the run."""
    from sdbench.distill.checkpoint import write_checkpoint

    written = []

    def write(path, checkpoint):
        write_checkpoint(path, checkpoint)
        written.append(checkpoint["done"])
        if len(written) == after:
            raise KeyboardInterrupt

    return write


def test_a_run_is_not_resumed_from_another_student(tmp_path, start):
    train(tmp_path / "out", start)
    saved(tmp_path / "other", rank=3)
    with pytest.raises(ValueError, match="start"):
        train(tmp_path / "out", tmp_path / "other", mode="resume")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"guidance_scale": 3.0}, "made for a guidance scale of 3, not 7.5"),
        ({"guidance_scale": None}, "made for no scale, not 7.5"),
        ({"w_range": [2.0, 8.0]}, "guidance scales of 2 to 8; the second stage is for one scale"),
        ({"num_steps": 5}, "made for 5 steps, an odd number: no half of it is whole"),
        ({"num_steps": 8}, "made for 8 steps, half of which is 4, not 2"),
        ({"base": {"denoiser": "Other", "parameters": 1, "values": {}}}, "made for another base"),
    ],
)
def test_a_student_that_cannot_be_halved_is_refused_before_anything_is_written(
    tmp_path, start, card, message
):
    has_card(start, **card)
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "out", start)
    assert not (tmp_path / "out").exists()


def test_a_lora_without_a_card_is_refused(tmp_path, start):
    (start / CARD_FILE).unlink()
    with pytest.raises(ValueError, match=r"has no card.json: it does not say what it is"):
        train(tmp_path / "out", start)


def test_a_stage_and_its_start_go_together(tmp_path, start):
    with pytest.raises(ValueError, match="stage 'steps' needs a student to start from"):
        train(tmp_path / "out", None)
    with pytest.raises(ValueError, match="only the stage 'steps' starts from a student"):
        train(tmp_path / "out", start, stage="guidance")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_range": (2.0, 8.0)}, "for one guidance scale, not for a range"),
        ({"method": "full"}, "trains a LoRA; method 'full' is none"),
        ({"data": "images"}, "learns from trajectories, not from images"),
        ({"teacher": "someone"}, "unknown teacher 'someone'; there are: student, guided"),
        ({"stage": "third"}, "unknown stage 'third'; there are: guidance, steps"),
    ],
)
def test_what_the_second_stage_does_not_do_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SETTINGS, **changes)


def test_running_it_at_another_number_of_steps_is_said(tmp_path, start):
    has_card(start, num_steps=4)
    pipe = tiny.stable_diffusion()
    variant = parse(f"lora:{start}")
    with applied(pipe, variant, guidance_scale=SCALE):
        tiny.run(pipe)
    other = tiny.stable_diffusion()
    other.call["num_inference_steps"] = 5
    said = r"the student '.*' is made for 4 steps; it runs with 5"
    with applied(other, variant, guidance_scale=SCALE), pytest.warns(RuntimeWarning, match=said):
        tiny.run(other)


def test_a_moved_folder_is_the_same_start(tmp_path, start):
    train(tmp_path / "out", start)
    shutil.copytree(start, tmp_path / "moved")
    train(tmp_path / "out", tmp_path / "moved", mode="resume")
