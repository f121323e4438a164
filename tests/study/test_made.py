from types import SimpleNamespace

import pytest
import torch
from diffusers.utils import BaseOutput

from sdbench.study.made import made_by


def made(output, *, decoded=True, pairs=2):
    return made_by("Pipe", output, decoded=decoded, pairs=pairs)


def frames(*shape):
    return SimpleNamespace(frames=torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "shape", "kind"),
    [
        ("images", (2, 3, 8, 8), "image"),
        ("image", (2, 3, 8, 8), "image"),
        ("frames", (2, 5, 3, 8, 8), "video"),
        ("video", (2, 5, 3, 8, 8), "video"),
        ("audios", (2, 2, 64), "audio"),
    ],
)
def test_an_output_says_by_its_field_what_was_made(field, shape, kind):
    found = made(SimpleNamespace(**{field: torch.zeros(shape)}))
    assert (found.kind, found.images.shape) == (kind, shape)


def test_a_video_with_sound_is_a_video():
    found = made(SimpleNamespace(frames=torch.zeros(2, 5, 3, 8, 8), audio=torch.zeros(2, 64)))
    assert found.kind == "video"


def test_videos_may_come_in_a_list_and_a_single_one_without_its_batch():
    listed = SimpleNamespace(frames=[torch.zeros(5, 3, 8, 8)] * 2)
    assert made(listed).images.shape == (2, 5, 3, 8, 8)
    assert made(frames(5, 3, 8, 8), pairs=1).images.shape == (1, 5, 3, 8, 8)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (frames(5, 3, 8, 8), r"made torch.float32 of shape \(5, 3, 8, 8\); videos are floats"),
        (frames(2, 5, 8, 8, 3), "videos are floats of shape"),
        (frames(4, 5, 3, 8, 8), r"Pipe made 4 videos for 2 \(prompt, seed\) pairs"),
        (SimpleNamespace(images=torch.zeros(8, 3, 8, 8)), "Pipe made 8 images for 2"),
        (BaseOutput(rgb=torch.zeros(2), depth=torch.zeros(2)), "Pipe makes rgb, depth: expected"),
        ((torch.zeros(2),), "Pipe makes tuple: expected images"),
    ],
)
def test_what_a_study_cannot_measure_is_named(output, message):
    with pytest.raises(ValueError, match=message):
        made(output)


def test_latents_may_have_any_form():
    found = made(frames(3, 7), decoded=False)
    assert (found.kind, found.images.shape) == ("video", (3, 7))
