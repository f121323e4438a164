"""Students of the tiny pipelines, with random weights, and what the tests of them ask."""

import pytest
import torch

from sdbench.distill.student import full_student, lora_student
from sdbench.models.students import CARD_FILE, DENOISER_FILE, LORA_FILE, base_record
from sdbench.records.files import write_json
from sdbench.variants.student_weights import student_in
from tests import tiny

SCALE = 7.5
FILES = {"lora": LORA_FILE, "full": DENOISER_FILE}


def saved(folder, *, method="lora", card=True, **changes):
    """A student with random weights that change the images and that the file does not round."""
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


def state(pipe):
    return {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def refused(pipe, folder, message):
    with (
        pytest.raises(ValueError, match=message),
        student_in(pipe, folder / LORA_FILE, guidance_scale=SCALE),
    ):
        pass
