import copy

import pytest
import torch
from torchvision.transforms.functional import to_pil_image
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from sdbench.instruments import weights
from sdbench.instruments.quality import provenance, score
from tests import tiny


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "red</w>", "blue</w>", "star</w>"]
    text = {
        **sizes,
        "vocab_size": len(words),
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = {**sizes, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval()
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, model, processor


def test_clip_score_is_100_times_the_cosine_or_zero(pair, small_clip):
    folder, model, processor = small_clip
    prompts = ["a red star", "a blue star", "star", "a star a"]
    inputs = processor(
        text=prompts, images=[to_pil_image(x) for x in pair[0]], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        cosines = model(**inputs).logits_per_image.diag() / model.logit_scale.exp()
    scores = score(f"clip_score:{folder}", pair[0], prompts)
    torch.testing.assert_close(scores, (100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)

    # One of a model and its opposite has a positive cosine, whatever the random start.
    model.visual_projection.weight.data.neg_()
    model.save_pretrained(folder / "opposite")
    processor.save_pretrained(folder / "opposite")
    opposite = score(f"clip_score:{folder / 'opposite'}", pair[0], prompts)
    torch.testing.assert_close(opposite, (-100 * cosines).clamp(min=0), rtol=1e-3, atol=1e-3)
    model.visual_projection.weight.data.neg_()
    assert (scores + opposite > 0).all()


def saved(folder, small_clip, *, positions, length):
    """A small model that tells texts apart, beside its opposite, and its processor."""
    _, model, processor = small_clip
    words = copy.deepcopy(tiny._tokenizer())
    words.model_max_length = length
    processor = type(processor)(image_processor=processor.image_processor, tokenizer=words)

    config = copy.deepcopy(model.config)
    text = config.text_config
    text.vocab_size, text.max_position_embeddings = len(words), positions
    text.bos_token_id, text.eos_token_id = words.bos_token_id, words.eos_token_id
    torch.manual_seed(0)
    sharp = type(model)(config).eval()
    for weight in sharp.parameters():
        weight.data.mul_(10 if weight.ndim > 1 else 1)

    for part in (folder, folder / "opposite"):
        sharp.save_pretrained(part)
        processor.save_pretrained(part)
        sharp.visual_projection.weight.data.neg_()
    return sharp, processor


def cosines(model, processor, images, prompts, *, tokens):
    """As a user of transformers would take them, times 100."""
    inputs = processor(
        text=prompts,
        images=[to_pil_image(image) for image in images],
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=tokens,
    )
    with torch.no_grad():
        return 100 * model(**inputs).logits_per_image.diag() / model.logit_scale.exp()


@pytest.mark.parametrize(
    ("positions", "length", "tokens"),
    [(77, 77, 77), (77, VERY_LARGE_INTEGER, 77), (12, VERY_LARGE_INTEGER, 12), (77, 12, 12)],
)
def test_a_long_prompt_keeps_its_end_as_the_tokenizer_cuts_it(
    pair, small_clip, tmp_path, positions, length, tokens
):
    model, processor = saved(tmp_path, small_clip, positions=positions, length=length)
    words = [0, 1, tokens - 3, tokens - 2, tokens - 1, tokens, 3 * tokens]
    prompts = [" ".join((["red", "blue", "star"] * count)[:count]) for count in words]
    images = pair[0][:1].expand(len(prompts), -1, -1, -1)
    expected = cosines(model, processor, images, prompts, tokens=tokens)
    assert len(set(expected.tolist())) > 3

    # A score is at least 0, and so is that of the opposite.
    found, opposite = (
        score(f"clip_score:{folder}", images, prompts)
        for folder in (tmp_path, tmp_path / "opposite")
    )
    torch.testing.assert_close(found - opposite, expected, rtol=1e-3, atol=1e-3)


def test_clip_provenance_changes_with_the_weights(small_clip):
    folder, model, _ = small_clip
    name = f"clip_score:{folder}"
    record = provenance([name])[name]
    assert record["network"] == str(folder)
    assert record["sha256"] == weights.tensors_sha256(
        model.state_dict()[key] for key in sorted(model.state_dict())
    )


def test_missing_clip_model_is_named():
    with pytest.raises(ValueError, match="no CLIP model at 'no/such'"):
        score("clip_score:no/such", torch.full((2, 3, 16, 16), 0.5), ["a", "b"])
