"""A metric that does not take the images of a study is named before the first call."""

import pytest
from diffusers import StableDiffusionPipeline

import sdbench
from sdbench.experiments.planning import Target, plan
from sdbench.instruments import quality
from sdbench.instruments.metric import Metric
from sdbench.study import runner
from sdbench.study.check import prepare
from sdbench.study.study import Study
from tests import tiny

CALL = {"prompts": tiny.PROMPTS, "seeds": [0], "num_steps": 4, "guidance_scale": 7.5}


@pytest.fixture(autouse=True)
def demanding(monkeypatch):
    """A metric that takes 20 pixels a side: LPIPS would need its network."""
    metric = Metric(
        "demanding",
        lambda a, b: (a - b).mean((1, 2, 3)),
        "reference",
        False,
        dict,
        smallest_side=20,
    )
    monkeypatch.setitem(quality.METRICS, "demanding", metric)


def study(**changes):
    given = {"model": "tiny", "variants": ["cfg"], "metrics": ["demanding"], **CALL, **changes}
    return Study(**given)


class Binned(StableDiffusionPipeline):
    """Runs at one size, and cuts its images to the size that is asked for."""

    def __call__(self, *args, height, width, **kwargs):
        output = super().__call__(*args, height=64, width=64, **kwargs)
        if kwargs["output_type"] == "pt":
            output.images = output.images[..., :height, :width]
        return output


class Packed(StableDiffusionPipeline):
    """Its latents are a sequence, as Flux's are."""

    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        if kwargs["output_type"] == "latent":
            output.images = output.images.flatten(2)
        return output


def made(kind):
    pipe = tiny.stable_diffusion()
    return tiny.ready(kind(**pipe.components, requires_safety_checker=False))


@pytest.mark.parametrize(
    ("kind", "size", "judged"),
    [
        (StableDiffusionPipeline, {}, "16 x 16"),
        (StableDiffusionPipeline, {"height": 16, "width": 64}, "16 x 64"),
        (StableDiffusionPipeline, {"height": 64, "width": 16}, "64 x 16"),
        (Binned, {"height": 16, "width": 40}, "16 x 40"),
        (Packed, {}, "16 x 16"),
    ],
)
def test_images_that_a_metric_does_not_take_are_known_before_a_study(kind, size, judged):
    message = f"demanding needs images of at least 20 pixels a side, not {judged} pixels"
    with pytest.raises(ValueError, match=message):
        prepare(made(kind), study(**size))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        (StableDiffusionPipeline, {"height": 24, "width": 24}),
        (StableDiffusionPipeline, {"height": 24, "width": 64}),
        (Binned, {"height": 24, "width": 40}),
        (Packed, {"height": 24, "width": 24}),
    ],
)
def test_images_that_a_metric_takes_are_not_refused(kind, size):
    prepare(made(kind), study(**size))


def test_images_that_no_metric_judges_may_have_any_size():
    prepare(tiny.stable_diffusion(), study(metrics=[]))
    prepare(tiny.stable_diffusion(), study(metrics=[], output="latent", height=16, width=16))


def test_a_study_is_refused_before_its_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="demanding needs images of at least 20"):
        runner.run(study(), tmp_path / "out", pipe=tiny.stable_diffusion())
    assert not (tmp_path / "out").exists()


def test_a_sweep_is_refused_before_its_first_image():
    with pytest.raises(ValueError, match="demanding needs images of at least 20"):
        sdbench.sensitivity(tiny.stable_diffusion(), **CALL, metrics=["demanding"])


def test_a_plan_is_refused_before_its_search(tmp_path):
    tuning = study(prompts=["a"]).generation
    held_out = study(prompts=["b"], seeds=[1]).generation
    pipe = tiny.stable_diffusion()
    with pytest.raises(ValueError, match="demanding needs images of at least 20"):
        plan(pipe, tuning, held_out, Target((2,)), tmp_path / "out", metric="demanding")
