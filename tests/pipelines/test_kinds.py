"""A class of diffusers for every kind of fault that the seam had, each held against the oracle."""

import diffusers
import pytest

from tools.pipelines.judge import judged
from tools.pipelines.outcomes import REFUSED, WORKS
from tools.pipelines.runner import load_recipes
from tools.pipelines.small import RECIPES

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about itself

KINDS = {
    "HiDreamImagePipeline": "text stands layer by layer, rows second",
    "ZImagePipeline": "samples are lists, conditional ones first, and w is less by one",
    "DiTPipeline": "no latents are prepared, and both halves are carried through the loop",
}
FURTHER = {
    "AnimateDiffPipeline": "text stands once per frame",
    "LuminaPipeline": "conditional rows come first",
    "AceStepPipeline": "conditional rows come first, of sound",
    "KandinskyV22InpaintPipeline": "half of the channels are a variance that is not guided",
    "LTXImageToVideoPipeline": "the first frame is cut off",
    "LTX2ConditionPipeline": "some tokens are given",
    "TextToVideoSDPipeline": "frames are rows for the scheduler",
    "SkyReelsV2DiffusionForcingPipeline": "every frame has a scheduler of its own",
    "AmusedImg2ImgPipeline": "only the progress bar tells the loop's length",
    "StableCascadePriorPipeline": "the network is called prior",
    "KandinskyCombinedPipeline": "two pipelines run one after another",
    "Cosmos3OmniPipeline": "tokens of text come before the lists of samples",
    "Ideogram4Pipeline": "the conditional call has tokens of a text before those of the latents",
    "UnCLIPPipeline": "each of three loops has its own scheduler, and the last is not guided",
    "StableUnCLIPPipeline": "a prior has a loop before",
    "LTXI2VLongMultiPromptPipeline": "the last timestep is left out",
}


def outcome(name, images):
    load_recipes()
    row = judged(RECIPES[name](getattr(diffusers, name)), images)
    return row["outcome"], row["reason"]


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_works(name):
    assert outcome(name, 2) == (WORKS, "")


@pytest.mark.slow
@pytest.mark.parametrize("name", FURTHER)
def test_a_further_kind_works(name):
    assert outcome(name, 1) == (WORKS, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("StableDiffusionSAGPipeline", "not always the same latents"),
        ("StableDiffusionAttendAndExcitePipeline", "and again in the same step"),
        ("CycleDiffusionPipeline", "more than two predictions of each"),
    ],
)
def test_guidance_of_another_kind_is_refused_with_its_reason(name, reason):
    found, said = outcome(name, 1)
    assert found == REFUSED
    assert reason in said
