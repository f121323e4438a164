import math

import pytest
import torch

from sdbench.instruments import quality
from sdbench.instruments.metric import Metric
from sdbench.instruments.quality import score
from sdbench.instruments.video_quality import flicker, judged, over_frames, score_videos
from tests import alexnet

FRAMES = 4


@pytest.fixture
def videos():
    return torch.rand(2, FRAMES, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def red(monkeypatch):
    """A metric of the prompt: how much red there is."""
    metric = Metric("red", lambda images, prompts: images[:, 0].mean((1, 2)), "prompt", True, dict)
    monkeypatch.setitem(quality.METRICS, "red", metric)


@pytest.fixture
def lpips():
    with alexnet.made_up():
        yield


@pytest.mark.parametrize("name", ["ssim", "psnr", "flip"])
def test_mean_and_worst_are_those_of_the_frames(videos, name):
    """The oracle scores the frames as images."""
    video, reference = videos
    video[2] = 1 - reference[2]  # the worst by far
    values = score(name, video, reference)
    found = judged([name], video, prompt="", reference=reference)
    assert set(found) == {name, f"{name}_worst"}
    assert found[name] == pytest.approx(float(values.mean()), rel=1e-6)
    assert found[f"{name}_worst"] == float(values[2])


def test_a_metric_of_the_prompt_needs_no_reference(videos):
    video = videos[0]
    found = judged(["red", "ssim"], video, prompt="a red star")
    of_frames = video[:, 0].mean((1, 2))
    assert set(found) == {"red", "red_worst"}
    assert found["red"] == pytest.approx(float(of_frames.mean()))
    assert found["red_worst"] == float(of_frames.min())


def test_frames_without_a_value_do_not_count(videos):
    """The first frame of a pipeline that is given it is identical: its PSNR is infinite."""
    video, reference = videos
    video[0] = reference[0]
    found = judged(["psnr"], video, prompt="", reference=reference)
    assert found["psnr"] == pytest.approx(float(score("psnr", video[1:], reference[1:]).mean()))
    assert all(map(math.isnan, over_frames("psnr", torch.full((3,), torch.nan))))


def test_flicker_is_the_mean_lpips_between_neighbours(videos, lpips):
    video = videos[0]
    steps = [float(score("lpips", video[[i + 1]], video[[i]])) for i in range(FRAMES - 1)]
    assert flicker(video) == pytest.approx(sum(steps) / len(steps), rel=1e-5)
    assert flicker(video[:1].expand_as(video)) == 0
    assert math.isnan(flicker(video[:1]))


def test_flicker_comes_with_lpips_and_needs_no_reference(videos, lpips):
    assert set(judged(["lpips"], videos[0], prompt="")) == {"flicker"}
    found = judged(["lpips"], videos[0], prompt="", reference=videos[0])
    assert (found["lpips"], found["lpips_worst"]) == (0, 0)
    assert found["flicker"] > 0


def test_several_videos_have_their_means(videos):
    reference = videos.flip(0)
    found = score_videos("ssim", videos, reference)
    every = score("ssim", videos.flatten(0, 1), reference.flatten(0, 1)).reshape(2, FRAMES)
    assert found == pytest.approx(every.mean(dim=1).tolist(), rel=1e-6)
    assert score_videos("red", videos, ["a", "b"]) == pytest.approx(
        videos[:, :, 0].mean((1, 2, 3)).tolist()
    )


def test_videos_of_another_length_are_refused(videos):
    with pytest.raises(ValueError, match="4 images against 3 references"):
        judged(["ssim"], videos[0], prompt="", reference=videos[1, :3])
